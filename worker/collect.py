"""Collecting: giving back what nobody can ask for any more.

Nothing durable goes before its successor is proved: the segments that have the rows were read again from disk and
compared with their checksums, and the state that names them lies in its file. And nothing goes that a reader of an
older manifest may still open: a layout has to be there for the grace period before what it replaced is taken away.
Times are this worker's own clock, and begin anew with each worker.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, replace

import structlog

from storage.backends.sqlite.pruning import EVER_MS, Due
from storage.backends.sqlite.state import ManifestMoved, State
from storage.backends.sqlite.workshop import WorkIndex
from storage.records import Sequence
from storage.settings import Settings
from worker.jobs import BuildFailed, BuildJob, run_builder

log = structlog.get_logger()

PERIOD_S = 1.0
"""Collecting is never urgent."""
SLICES_MAX = 4
"""Slices of the log that one turn prunes: applying waits meanwhile."""
PROVE_RETRY_S = 60.0
AHEAD_MS = 24 * 3_600_000
"""A time that is further ahead than this is of a clock that was wrong, and is not waited for."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A layout, what it freed, and when this worker saw it first; `is_open` until that was given back."""

    layout: int
    sealed_through: Sequence
    garbage: tuple[str, ...]
    at: float
    is_open: bool


class Collector:
    """The collector of one index that this worker holds."""

    def __init__(self, index: WorkIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._grace_s = settings.grace_ms / 1000
        self._seen: list[_Seen] = []
        self._forgotten_layout = index.state().collected_layout
        self._is_pruning = False
        self._is_resting = False
        self._proved: set[str] = set()
        self._proved_layout = -1
        self._proving: asyncio.Task[None] | None = None
        self._prove_not_before = -math.inf
        self._turned_at = -math.inf
        self._forgot_at = -math.inf
        self._forgot_sealed_at = -math.inf

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing waits to be given back; what only has to become hours and days old does not count."""
        return not (self._is_pruning or self._is_resting or any(seen.is_open for seen in self._seen))

    def due_at(self) -> float:
        """When there may be something for a turn to do, by the monotonic clock."""
        due = self._forgot_at + max(self._grace_s, PERIOD_S)
        if not self.is_at_rest:
            due = min([due, *(seen.at + self._grace_s for seen in self._seen if seen.is_open)])
        if self._is_pruning or self._is_resting:
            due = self._turned_at
        return max(due, self._turned_at + PERIOD_S)

    async def turn(self) -> None:
        """Collect what is due. Raises LeaseLost."""
        now = time.monotonic()
        if now - self._turned_at < PERIOD_S:
            return
        self._turned_at = now
        settled = self._settled(now)
        if settled is not None and self._is_proved(settled, now):
            await self._give_back(settled)
        if now - self._forgot_at > max(self._grace_s, PERIOD_S):
            self._forgot_at = now
            await self._forget()

    def _settled(self, now: float) -> _Seen | None:
        """The newest layout that has been there for the grace period: nobody reads by an older one."""
        # Before the state, so that nothing is in it that a later layout freed.
        garbage = self._index.garbage()
        state = self._index.state()
        if not self._seen or self._seen[-1].layout != state.layout:
            is_open = bool(garbage) or self._has_sealed(state)
            self._seen.append(_Seen(state.layout, state.sealed_through, garbage, now, is_open))
        old = [seen for seen in self._seen if now - seen.at > self._grace_s]
        if not old:
            return None
        garbage = tuple(dict.fromkeys(name for seen in old for name in seen.garbage))
        is_open = any(seen.is_open for seen in old)
        self._seen[: len(old)] = [replace(old[-1], garbage=garbage, is_open=is_open)]
        return self._seen[0]

    def _has_sealed(self, state: State) -> bool:
        """Whether the state still remembers, or the log still keeps, what was sealed by this layout or before it."""
        if not state.sealed_through:
            return False
        return state.layout != self._forgotten_layout or self._index.has_to_prune(self._due(state.sealed_through))

    async def _give_back(self, settled: _Seen) -> None:
        if settled.garbage and await self._index.remove_garbage(settled.garbage):
            self._seen[0] = replace(settled, garbage=())
            self._is_resting = True
        if settled.layout != self._forgotten_layout and settled.sealed_through:
            await self._forget_sealed(settled, time.monotonic())
        for _ in range(SLICES_MAX):
            if not await self._prune(settled.sealed_through):
                break
        if self._is_resting and not self._is_pruning:
            self._is_resting = await self._index.rest()
        # What could not be forgotten now is forgotten as of the newer layout that was in the way.
        self._seen[0] = replace(self._seen[0], is_open=bool(self._seen[0].garbage))

    async def _forget_sealed(self, settled: _Seen, now: float) -> None:
        """As of the newest layout at once; as of one that others follow, which under load always do, now and then."""
        is_newest = settled.layout == self._index.state().layout
        if not is_newest and now - self._forgot_sealed_at < self._grace_s:
            return
        try:
            await self._index.forget_sealed(
                await self._index.snapshot(), layout=settled.layout, through=settled.sealed_through
            )
        except ManifestMoved:
            return  # A build was published meanwhile; its layout has its own turn.
        self._forgot_sealed_at = now
        self._forgotten_layout = settled.layout
        self._is_resting = True

    def _is_proved(self, settled: _Seen, now: float) -> bool:
        """Whether the state, and every segment that the layout has sealed, was read from disk and is what was written.

        What is not is read by a builder beside the turns: a large segment takes seconds, and applying must not wait.
        """
        if self._proving is not None and not self._proving.done():
            return False
        rows = self._index.segments()
        self._proved &= {row.name for row in rows}
        sealed = settled.sealed_through
        names = tuple(row.name for row in rows if row.first_sequence <= sealed and row.name not in self._proved)
        is_proved = not names and (not sealed or self._proved_layout >= settled.layout)
        if not is_proved and now >= self._prove_not_before:
            # The state is read as it is then, and so has what every layout up to now has sealed.
            self._proving = asyncio.create_task(self._prove(names, self._index.state().layout), name="prove")
        return is_proved

    async def _prove(self, names: tuple[str, ...], layout: int) -> None:
        try:
            await run_builder(
                BuildJob(
                    kind="verify",
                    index=self._index.spec.id,
                    folder=self._index.folder.path.absolute(),
                    name="",
                    config=self._index.spec.config,
                    inputs=names,
                    graph_rows_min=0,
                    threads=1,
                )
            )
        except BuildFailed as error:
            # Without the proof the log keeps its bodies, and replaced segments stay: they are the other copy.
            log.error("segment.unproved", index=self._index.spec.id, reason=str(error))
            self._prove_not_before = time.monotonic() + PROVE_RETRY_S
        else:
            self._proved.update(names)
            self._proved_layout = layout

    async def _prune(self, sealed_through: Sequence) -> bool:
        """Take one slice from the log, where something in it is old enough; True when there may be more."""
        due = self._due(sealed_through)
        if self._is_pruning or self._index.has_to_prune(due):
            self._is_pruning = await self._index.prune(due)
        return self._is_pruning

    def _due(self, sealed_through: Sequence) -> Due:
        """What the log gives up: bodies, and later the rows they belonged to."""
        now_ms = time.time_ns() // 1_000_000
        retain_ms, remember_ms = self._settings.log_retain_ms, self._settings.mutation_retain_ms
        forgotten = self._index.forgotten_through()
        return Due(
            through=sealed_through,
            # What need not be kept goes whatever the clock says.
            bodies_before_ms=now_ms - retain_ms if retain_ms else EVER_MS,
            rows_before_ms=now_ms - remember_ms,
            ahead_ms=now_ms + AHEAD_MS,
            # An outcome says nothing of what is kept for longer than it is.
            bodies_forgotten=forgotten if retain_ms <= remember_ms else Sequence(0),
            rows_forgotten=forgotten,
        )

    async def _forget(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        await self._index.forget(
            removed_before_ms=now_ms - self._settings.cursor_ttl_ms,
            outcomes_before_ms=now_ms - self._settings.mutation_retain_ms,
            ahead_ms=now_ms + AHEAD_MS,
        )

    async def close(self) -> None:
        """Stop what runs beside the turns."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.gather(self._proving, return_exceptions=True)
