"""The scrub: reading everything of an index again now and then, because disks forget silently.

It runs in a builder, at a pace that leaves the disk to others. What is derived and damaged is written anew; a damaged
primary file is opened anew by everybody, refused, and its vectors named; a damaged log takes no more writes; a damaged
state is answered from no more, and nothing lasting is made of it.

When an index was scrubbed last is the time of an empty file in its folder, so that a worker that is started again more
often than scrubs are due still does them. One scrub at a time in a process: after a long rest all indexes are due.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog

from storage.backends.sqlite.inspection import Finding, Part
from storage.backends.sqlite.workshop import WorkIndex
from storage.errors import StateDamaged
from storage.records import IndexId
from storage.settings import Settings
from storage.telemetry import SCRUB_FINDINGS, SCRUBS
from worker.jobs import BuildFailed, BuildJob, run_builder

log = structlog.get_logger()

RETRY_S = 60.0
MARK = "SCRUBBED"
"""The file whose time is that of the last scrub. Without it, the index counts as scrubbed when it is first seen."""

_one_at_a_time: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class Scrubber:
    """The scrubs of one index that this worker holds. `scrubbed_at` outlives it: an index is closed and opened."""

    def __init__(
        self,
        index: WorkIndex,
        settings: Settings,
        scrubbed_at: MutableMapping[IndexId, float],
        wanted: Callable[[], None],
    ) -> None:
        """`wanted` is called when a scrub found something, which calls for a turn."""
        self._index = index
        self._settings = settings
        self._scrubbed_at = scrubbed_at
        self._mark = index.folder.path / MARK
        self._interval_s = settings.scrub_interval_ms / 1000
        scrubbed_at.setdefault(index.spec.id, time.monotonic() - _age_s(self._mark, self._interval_s))
        self._wanted = wanted
        self._reading: asyncio.Task[None] | None = None
        self._found: tuple[Finding, ...] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether one is under way, or has found something that no turn has seen to yet."""
        return self._found is not None or (self._reading is not None and not self._reading.done())

    def due_at(self) -> float:
        """When a turn has something to do, by the monotonic clock."""
        if self._found is not None:
            return 0.0
        if self.is_busy or not self._interval_s:
            return float("inf")
        return self._scrubbed_at[self._index.spec.id] + self._interval_s

    async def turn(self) -> None:
        """Begin one that is due, or see to what one found. Raises LeaseLost, and StateDamaged to halt the index."""
        if self._found is not None:
            found, self._found = self._found, None
            await self._see_to(found)
        elif self.due_at() <= time.monotonic():
            self._reading = asyncio.create_task(self.read(), name="scrub")

    async def read(self) -> None:
        """Read everything once, when no other index is being read; the next turn sees to what is found."""
        async with _one_at_a_time.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(1)):
            await self._read()

    async def _read(self) -> None:
        started = time.monotonic()
        try:
            answer = await run_builder(self._job("scrub"))
        except BuildFailed as error:
            log.error("scrub.failed", index=self._index.spec.id, reason=str(error))
            # Not so long after it was due: it may have waited for others since.
            self._scrubbed_at[self._index.spec.id] = time.monotonic() - self._interval_s + RETRY_S
            return
        self._scrubbed_at[self._index.spec.id] = time.monotonic()
        with suppress(OSError):  # The index may have been deleted meanwhile, or the disk be full.
            os.utime(self._mark)
        SCRUBS.inc()
        log.info(
            "scrub.finished",
            index=self._index.spec.id,
            findings=len(answer.findings),
            seconds=round(time.monotonic() - started, 3),
        )
        if answer.findings:
            self._found = answer.findings
            self._wanted()

    def _job(self, kind: str) -> BuildJob:
        return BuildJob(
            kind=kind,
            index=self._index.spec.id,
            folder=self._index.folder.path.absolute(),
            name="",
            config=self._index.spec.config,
            graph_rows_min=0,
            threads=1,
            bytes_per_second=self._settings.scrub_bytes_per_second,
        )

    async def condemn_if_damaged(self) -> None:
        """Have every reader refuse the state where it is damaged: an index that is halted is scrubbed no more.

        What stopped the worker may also have been an error of the moment, so all of the state is read again. Raises
        BuildFailed.
        """
        answer = await run_builder(self._job("compare"))
        if any(finding.is_certain for finding in answer.findings):
            await self._index.condemn()

    async def _see_to(self, found: tuple[Finding, ...]) -> None:
        for finding in found:
            SCRUB_FINDINGS.labels(finding.part).inc()
            log.critical("scrub.found", index=self._index.spec.id, part=finding.part, reason=finding.message)
        segments = tuple(dict.fromkeys(finding.segment for finding in found if finding.segment))
        if segments:
            await self._index.publish_again(segments)
        of_log = [finding.message for finding in found if finding.part is Part.LOG and finding.is_certain]
        if of_log:
            await self._index.note_log_damage(of_log[0])
        of_state = [finding.message for finding in found if finding.part is Part.STATE and finding.is_certain]
        if of_state:
            await self._index.condemn()
            raise StateDamaged(of_state[0])

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(self._reading, return_exceptions=True)


def _age_s(mark: Path, age_max_s: float) -> float:
    """How long ago the last scrub was, by the wall clock: a jump of it brings one scrub forward, or puts it off once.

    Makes the mark where there is none.
    """
    try:
        return min(max(time.time() - mark.stat().st_mtime, 0.0), age_max_s)
    except FileNotFoundError:
        with suppress(OSError):
            mark.touch(mode=0o600)
        return 0.0
