"""The scrub: reading everything of an index again now and then, because disks forget silently.

It runs in a builder, at a pace that leaves the disk to others. What is derived and damaged is written anew; a damaged
primary file is opened anew by everybody, refused, and its vectors named; a damaged log takes no more writes; a damaged
state is answered from no more, and nothing lasting is made of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

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
        # The first is due an interval after the start: what is opened is verified anyway.
        scrubbed_at.setdefault(index.spec.id, time.monotonic())
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
        if self.is_busy or not self._settings.scrub_interval_ms:
            return float("inf")
        return self._scrubbed_at[self._index.spec.id] + self._settings.scrub_interval_ms / 1000

    async def turn(self) -> None:
        """Begin one that is due, or see to what one found. Raises LeaseLost, and StateDamaged to halt the index."""
        if self._found is not None:
            found, self._found = self._found, None
            await self._see_to(found)
        elif self.due_at() <= time.monotonic():
            self._reading = asyncio.create_task(self.read(), name="scrub")

    async def read(self) -> None:
        """Read everything once; the next turn sees to what is found."""
        started = time.monotonic()
        try:
            answer = await run_builder(
                BuildJob(
                    kind="scrub",
                    index=self._index.spec.id,
                    folder=self._index.folder.path.absolute(),
                    name="",
                    config=self._index.spec.config,
                    graph_rows_min=0,
                    threads=1,
                    bytes_per_second=self._settings.scrub_bytes_per_second,
                )
            )
        except BuildFailed as error:
            log.error("scrub.failed", index=self._index.spec.id, reason=str(error))
            self._scrubbed_at[self._index.spec.id] += RETRY_S
            return
        self._scrubbed_at[self._index.spec.id] = time.monotonic()
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
