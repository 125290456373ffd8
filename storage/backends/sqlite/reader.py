"""Opening and following snapshots of one index in one process.

A manifest has two numbers. A request must reach `applied` before it answers: catching up reads the log bodies and
tombstones since the snapshot it has, which costs as much as was written. An index that is being asked is followed
whenever the worker rings, so that a request finds little left to read. `layout` may lag: the new one is opened in a
thread, with a tail of its own, while the old layout, with a newer tail and newer tombstones, goes on answering; labels
are the same in every layout. Nothing a manifest names is removed before the grace period, so a body or a file that is
missing means that the manifest is old: it is read again, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.migrate import is_current_by, migrate
from storage.backends.sqlite.state import Advance, Manifest, PartRow, SegmentRow, State, StateReader
from storage.batch import unpack_vectors
from storage.errors import LogDamaged, SegmentDamaged, StateDamaged, StorageError, StoreBusy
from storage.records import IndexSpec, Label, MetadataIndex, Progress, Sequence
from storage.segment.format import ColumnFile
from storage.segment.read import OpenSegment, open_segment
from storage.snapshot import LivePart, Mask, Part, Snapshot
from storage.tail import FixedTail, Tail

log = structlog.get_logger()

_AnyReader = TypeVar("_AnyReader", StateReader, LogReader)

OPEN_TRIES_MAX = 5
INLINE_BYTES_MAX = 1024 * 1024
"""Catching up on more than this goes to a thread: reading and copying it would hold up every other request."""
INLINE_ROWS_MAX = 10_000
"""Opening an index with more versions, or more mutations, goes to a thread as well."""
FOLLOWED_S = 2.0
"""An index is followed for this long after it was asked: what nobody asks need not be read as it is written."""
SWAP_RETRY_S = 1.0
"""How long after a layout could not be opened it is tried again."""


class _Outdated(Exception):
    """The manifest names something that is gone: a newer one exists."""


class IndexReader:
    """One process's view of one index. All methods belong to one event loop."""

    def __init__(self, spec: IndexSpec, folder: IndexFolder) -> None:
        self.spec = spec
        self._folder = folder
        self._state_reader = _current(lambda: StateReader(Reader(folder.state)), folder.state, "state")
        self._log = _current(lambda: LogReader(folder), folder.log, "log")
        self._following = asyncio.Lock()
        self._catching_up: asyncio.Task[_Opened] | None = None
        self._relayout: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._asked_at = -FOLLOWED_S
        self._seen_version = -1
        self._checked_log_at = -1
        self._state = self._state_reader.state()
        self._check_age()
        self._opened: _Opened | None = None
        self._swap_not_before = 0.0

    def progress(self) -> Progress:
        """How far the worker is now: microseconds."""
        return self.state().progress

    def state(self) -> State:
        """The progress row now."""
        version = self._state_reader.version()
        if version != self._seen_version:
            # The version is taken first: a commit in between is then seen again, never missed.
            self._state = self._state_reader.state()
            self._seen_version = version
        return self._state

    def _check_age(self) -> None:
        """Refuse a state that has not sealed what the log gave up for it: an older one lies in its place.

        The state is read again before it is refused: both may have moved on since it was.
        """
        pruned_through = self._log.head()[1]
        if pruned_through > self._state.sealed_through:
            self._state = self._state_reader.state()
            check_age(self.spec.name, self._state, pruned_through)

    def check_log(self) -> None:
        """Compare the log with what was applied of it; once for each moment. Raises LogDamaged.

        Another log, or the end of this one gone, would otherwise be taken for what was written.
        """
        state = self.state()
        if self._checked_log_at != state.applied:
            check_applied(self.spec.name, state, self._log)
            self._checked_log_at = state.applied

    @property
    def state_reader(self) -> StateReader:
        """Point reads of committed state, from the event loop."""
        return self._state_reader

    def another_state_reader(self) -> StateReader:
        """One for a thread, which closes it."""
        return StateReader(Reader(self._folder.state))

    @property
    def log(self) -> LogReader:
        """Point reads of the committed log, from the event loop."""
        return self._log

    def current(self) -> Snapshot | None:
        """The index as of what `progress` says now, where nothing has to be read for it."""
        self._asked_at = time.monotonic()
        opened, state = self._opened, self.state()
        if opened is None or opened.snapshot.applied < state.applied:
            return None
        if opened.snapshot.layout < state.layout:
            self._swap_when_due()
        return opened.snapshot

    def metadata_indexes(self) -> tuple[MetadataIndex, ...]:
        """The processed ones, out of a manifest that was compared with its sums."""
        opened = self._opened
        if opened is not None and opened.covers(self.state()):
            return opened.snapshot.metadata_indexes
        return self._state_reader.manifest().metadata_indexes

    @property
    def is_small(self) -> bool:
        """Whether opening the index anew costs next to nothing."""
        return _is_small(self._state)

    async def snapshot(self) -> Snapshot:
        """The index, at least as of what `progress` says now.

        All who wait, wait for the same, and whoever gives up ends nothing: the next one finds it under way, or done.
        """
        current = self.current()
        if current is not None:
            return current
        wanted, under_way = self._state.applied, self._catching_up
        if under_way is not None and not under_way.done():
            opened = await asyncio.shield(under_way)
            # It may have begun before the last publish.
            if opened.snapshot.applied >= wanted:
                return opened.snapshot
            under_way = self._catching_up
        if under_way is None or under_way.done():
            under_way = self._catching_up = asyncio.create_task(self._followed(), name="catch-up")
            under_way.add_done_callback(_retrieved)
        return (await asyncio.shield(under_way)).snapshot

    async def _followed(self) -> _Opened:
        async with self._following:
            return await self._follow(self.state())

    def follow(self) -> None:
        """Catch up beside the requests, where there were any lately: something was published."""
        is_asked = self._opened is not None and time.monotonic() - self._asked_at < FOLLOWED_S
        if is_asked and (self._follower is None or self._follower.done()):
            self._follower = asyncio.create_task(self._keep_up(), name="follow")

    async def _keep_up(self) -> None:
        # What is wrong with the index is told to whoever asks.
        with suppress(StorageError, OSError):
            while self._opened is not None and self._opened.snapshot.applied < self.state().applied:
                await self.snapshot()

    async def settled(self) -> Snapshot:
        """The index now, in the newest layout: for the worker, which plans on what it has published."""
        for _ in range(OPEN_TRIES_MAX):
            snapshot = await self.snapshot()
            if snapshot.layout >= self.state().layout:
                return snapshot
            if self._relayout is not None:
                await self._relayout
        raise StoreBusy(f"index {self.spec.name!r}: its newest layout could not be opened yet; try again in a second")

    async def _follow(self, state: State) -> _Opened:
        opened = self._opened
        if opened is None:
            opened = self._open_small(state)
            if opened is None:
                opened = await self._open_anew()
        elif opened.snapshot.applied < state.applied:
            opened = await self._catch_up(opened)
        self._opened = opened
        if opened.snapshot.layout < state.layout:
            self._swap_when_due()
        return opened

    def _swap_when_due(self) -> None:
        is_swapping = self._relayout is not None and not self._relayout.done()
        if not is_swapping and time.monotonic() >= self._swap_not_before:
            self._relayout = asyncio.create_task(self._swap_layout(), name="relayout")

    async def _catch_up(self, opened: _Opened) -> _Opened:
        advance = self._state_reader.advance(opened.snapshot.applied)
        if opened.snapshot.layout < advance.state.collected_layout:
            # Nobody asked for so long that what there was to catch up on is collected in part.
            return await self._open_anew()
        try:
            if sum(part.bytes for part in advance.parts) <= INLINE_BYTES_MAX:
                return opened.advanced(advance, _bodies(self._log, advance.parts))
            return await asyncio.to_thread(self._advanced, opened, advance)
        except _Outdated:
            return await self._open_anew()

    def _advanced(self, opened: _Opened, advance: Advance) -> _Opened:
        with closing(LogReader(self._folder)) as log:
            return opened.advanced(advance, _bodies(log, advance.parts))

    async def _swap_layout(self) -> None:
        """Open the newest layout beside the one that answers, then put it in its place."""
        try:
            async with self._following:
                tail = self._fixed_tail()
            opened = await asyncio.to_thread(self._open, tail)
            # Opening takes time. Requests wait only for what is applied while this is caught up on.
            opened = await self._caught_up(opened)
            async with self._following:
                opened = await self._caught_up(opened)
                if self._opened is None or self._opened.snapshot.layout < opened.snapshot.layout:
                    self._opened = opened
        except SegmentDamaged:
            # What is mapped may be what is damaged: whoever asks next opens all of it, and is told.
            log.exception("layout.swap_failed", index=self.spec.id)
            async with self._following:
                self._opened = None
        except Exception:
            # The old layout goes on answering, and a request that sees a newer one later tries again.
            self._swap_not_before = time.monotonic() + SWAP_RETRY_S
            log.exception("layout.swap_failed", index=self.spec.id)

    async def _caught_up(self, opened: _Opened) -> _Opened:
        return await self._catch_up(opened) if opened.snapshot.applied < self.state().applied else opened

    def _fixed_tail(self) -> FixedTail | None:
        """The tail as it is while nobody appends to it: held, or from the one place that follows."""
        return None if self._opened is None else self._opened.tail.fixed()

    async def _open_anew(self) -> _Opened:
        return await asyncio.to_thread(self._open, self._fixed_tail())

    def _open(self, tail: FixedTail | None) -> _Opened:
        """Read the manifest and everything it names; again when something is already gone.

        Of the tail that there is, what the manifest names need not be read again.
        """
        # In a thread, so on connections of its own: a read on the event loop's would see the moment this one began.
        with closing(StateReader(Reader(self._folder.state))) as reader, closing(LogReader(self._folder)) as log:
            return self._open_by(reader, log, tail)

    def _open_small(self, state: State) -> _Opened | None:
        """Open an index that is read in less time than another connection takes; None for one that may not be."""
        return self._open_by(self._state_reader, self._log, None) if _is_small(state) else None

    def _open_by(self, reader: StateReader, log: LogReader, tail: FixedTail | None) -> _Opened:
        # Verifying takes time, in which a newer manifest may come to be; what it has in common is verified.
        verified: dict[str, OpenSegment] = {}
        for _ in range(OPEN_TRIES_MAX):
            manifest = reader.manifest()
            if manifest.parts:
                check_applied(self.spec.name, manifest.state, log)
            try:
                segments = self._segments(manifest, verified)
                return self._assemble(manifest, segments, tail, log)
            except _Outdated:
                continue
        raise StateDamaged(
            f"index {self.spec.name!r}: {OPEN_TRIES_MAX} manifests in a row named files or log bodies that do not exist"
        )

    def _segments(self, manifest: Manifest, verified: dict[str, OpenSegment]) -> dict[str, OpenSegment]:
        old = self._opened.segments if self._opened is not None else {}
        opened = {}
        for row in manifest.segments:
            columns = _columns_of(row, manifest)
            # One that was published again is to be verified again.
            key = _key(row)
            segment = verified.get(key) or old.get(key)
            if segment is None or not segment.has_columns(columns):
                segment = verified[key] = self._open_segment(row, columns)
            opened[key] = segment
        return opened

    def _open_segment(self, row: SegmentRow, columns: tuple[ColumnFile, ...]) -> OpenSegment:
        folder = self._folder.segments / row.name
        try:
            segment = open_segment(folder, self.spec.config, checksum=row.checksum, columns=columns)
        except FileNotFoundError as error:
            raise _Outdated(row.name) from error
        if segment.damaged:
            log.warning("segment.damaged", index=self.spec.id, segment=row.name, files=list(segment.damaged))
        return segment

    def _assemble(
        self, manifest: Manifest, segments: dict[str, OpenSegment], held: FixedTail | None, log: LogReader
    ) -> _Opened:
        if manifest.state.sealed_through < log.head()[1]:
            raise _Outdated("the log was pruned further than this manifest has sealed")
        tail = Tail(self.spec.config.dimensions)
        wanted = manifest.parts
        if held is not None:
            tail = Tail.rest_of(held, manifest.state.sealed_through)
            wanted = tuple(part for part in manifest.parts if part.sequence > tail.last_sequence)
        _extend(tail, wanted, _bodies(log, wanted))
        dead = np.array(manifest.tombstones, dtype=np.uint64)
        parts: list[Part] = [*segments.values(), tail.part()]
        snapshot = Snapshot(
            spec=self.spec,
            applied=manifest.state.applied,
            layout=manifest.state.layout,
            parts=tuple(_live_part(part, np.ones(part.rows, dtype=np.bool_), dead) for part in parts),
            metadata_indexes=manifest.metadata_indexes,
        )
        if snapshot.vectors != manifest.state.vectors:
            raise StateDamaged(
                f"index {self.spec.name!r} should have {manifest.state.vectors} vectors at mutation "
                f"{manifest.state.applied}, and its segments and tail have {snapshot.vectors}"
            )
        return _Opened(snapshot, segments, tail)

    async def close(self) -> None:
        """Let go of the databases; snapshots that are in use stay readable."""
        under_way = [task for task in (self._catching_up, self._relayout, self._follower) if task is not None]
        await asyncio.gather(*under_way, return_exceptions=True)
        async with self._following:
            # Whoever closes a database as the last moves its WAL into the file and waits for the disk.
            await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        self._state_reader.close()
        self._log.close()


def _retrieved(task: asyncio.Task[_Opened]) -> None:
    """What went wrong is told to whoever waits. That nobody does any more is no failure."""
    if not task.cancelled():
        task.exception()


def _key(row: SegmentRow) -> str:
    return f"{row.name}@{row.published_ms}"


def check_age(index: str, state: State, pruned_through: Sequence) -> None:
    """Raise StateDamaged where the log gave up bodies that the state does not know to be sealed."""
    if pruned_through > state.sealed_through:
        raise StateDamaged(
            f"index {index!r} has sealed mutations up to {state.sealed_through}, and its log gave up "
            f"those up to {pruned_through}: its state is an older one; restore the newer, or run "
            "`headrace doctor --salvage`"
        )


def check_applied(index: str, state: State, log: LogReader) -> None:
    """Refuse a log that ends before what was applied of it, or has another mutation there. Raises LogDamaged."""
    rows = log.rows("SELECT chain FROM mutations WHERE sequence = ?", (state.applied,))
    head = log.head()[0]
    if head.sequence < state.applied or (rows and rows[0][0] != state.applied_chain):
        raise LogDamaged(
            f"index {index!r} has applied mutation {state.applied} ({state.applied_id}), and its log ends at "
            f"{head.sequence} or has another mutation there: a part of the log was lost; `headrace doctor` says what"
        )


def _current(opened: Callable[[], _AnyReader], path: Path, kind: str) -> _AnyReader:
    """A reader of a database that has the schema of this program: an older one is brought up to date first."""
    reader = opened()
    try:
        if is_current_by(reader.rows, path, kind):
            return reader
    except BaseException:
        reader.close()
        raise
    reader.close()
    migrate(path, kind)
    return opened()


def _is_small(state: State) -> bool:
    is_short = state.applied_bytes <= INLINE_BYTES_MAX and not state.layout
    return is_short and max(state.next_label, state.applied) <= INLINE_ROWS_MAX


class _Opened:
    """A snapshot together with what the next one is made from."""

    def __init__(self, snapshot: Snapshot, segments: dict[str, OpenSegment], tail: Tail) -> None:
        self.snapshot = snapshot
        self.segments = segments
        self.tail = tail

    def covers(self, state: State) -> bool:
        """Whether this is what the manifest says, layout included."""
        return self.snapshot.applied >= state.applied and self.snapshot.layout >= state.layout

    def advanced(self, advance: Advance, bodies: dict[int, bytes]) -> _Opened:
        """The snapshot at a later `applied`, in the same layout."""
        _extend(self.tail, advance.parts, bodies)
        dead = np.array(advance.tombstones, dtype=np.uint64)
        tail = self.tail.part()
        old = self.snapshot.parts[-1].live
        live = np.concatenate([old, np.ones(tail.rows - len(old), dtype=np.bool_)])
        snapshot = Snapshot(
            spec=self.snapshot.spec,
            applied=advance.state.applied,
            layout=self.snapshot.layout,
            parts=(
                *(_dimmed(part, dead) for part in self.snapshot.parts[:-1]),
                _live_part(tail, live, dead),
            ),
            metadata_indexes=advance.metadata_indexes,
        )
        return _Opened(snapshot, self.segments, self.tail)


def _bodies(log: LogReader, parts: Items[PartRow]) -> dict[int, bytes]:
    bodies = log.bodies([part.sequence for part in parts])
    if len(bodies) != len(parts):
        raise _Outdated(f"{len(parts) - len(bodies)} log bodies are pruned")
    return bodies


def _extend(tail: Tail, parts: Items[PartRow], bodies: dict[int, bytes]) -> None:
    for part in parts:
        tail.append(part.sequence, Label(part.first_label), unpack_vectors(bodies[part.sequence]))


def _dimmed(part: LivePart, dead: NDArray[np.uint64]) -> LivePart:
    """The part without some labels; the part itself when it has none of them."""
    return _live_part(part.part, part.live, dead, part.live_count) if len(dead) else part


def _live_part(part: Part, live: Mask, dead: NDArray[np.uint64], live_count: int | None = None) -> LivePart:
    rows = _rows_with(part.labels, dead)
    if len(rows):
        # The mask of the older snapshot may be in use by a search in a thread.
        live = live.copy()
        live[rows] = False
    elif live_count is not None:
        return LivePart(part, live, live_count)
    return LivePart(part, live, int(np.count_nonzero(live)))


def _rows_with(labels: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows of a part that carry one of these labels."""
    if not len(labels) or not len(wanted):
        return np.empty(0, dtype=np.int64)
    rows = np.minimum(np.searchsorted(labels, wanted), len(labels) - 1)
    found: NDArray[np.int64] = rows[labels[rows] == wanted]
    return found


def _columns_of(row: SegmentRow, manifest: Manifest) -> tuple[ColumnFile, ...]:
    indexes = {index.id: index for index in manifest.metadata_indexes}
    return tuple(
        ColumnFile(metadata_index=indexes[column.metadata_index], file=column.file, checksum=column.checksum)
        for column in manifest.columns
        if column.segment == row.name and column.metadata_index in indexes
    )


__all__ = ["IndexReader"]
