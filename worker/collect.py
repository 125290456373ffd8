"""Collecting: giving back what nobody can ask for any more.

Nothing durable goes before its successor is proved. A log body goes when the segment that has its rows was re-read
and verified, the state that names the segment lies in its file, and the grace period for readers of the older manifest
is over. Everything else here is younger than its successor by the same grace period.
"""

from __future__ import annotations

import time
from contextlib import suppress

import structlog

from storage.backends.sqlite.state import ManifestMoved
from storage.backends.sqlite.workshop import WorkIndex
from storage.records import Sequence
from storage.settings import Settings
from worker.jobs import BuildFailed, BuildJob, run_builder

log = structlog.get_logger()

PERIOD_MS = 1_000
"""Collecting is never urgent."""


class Collector:
    """The collector of one index that this worker holds."""

    def __init__(self, index: WorkIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        # What was published before this worker came may have been published just before.
        self._layout_moved_at = time.monotonic()
        self._layout_is_settled = False
        self._verified: set[str] = set()
        self._turned_at = 0.0
        self._forgot_at = 0.0

    def layout_moved(self) -> None:
        """A publish replaced something: its readers have the grace period from now."""
        self._layout_moved_at = time.monotonic()
        self._layout_is_settled = False

    async def turn(self, *, is_idle: bool) -> None:
        """Collect what is due. Raises LeaseLost."""
        with suppress(ManifestMoved):  # A build was published meanwhile: what it replaced has its own grace period.
            await self._collect(is_idle=is_idle)

    async def _collect(self, *, is_idle: bool) -> None:
        now = time.monotonic()
        if now - self._turned_at < PERIOD_MS / 1000:
            return
        self._turned_at = now
        grace_s = self._settings.grace_ms / 1000
        if is_idle and not self._layout_is_settled and now - self._layout_moved_at > grace_s:
            await self._settle()
        if now - self._forgot_at > max(grace_s, 1):
            self._forgot_at = now
            await self._forget()

    async def _settle(self) -> None:
        """Everybody reads the newest layout by now: what it replaced can go."""
        now_ms = time.time_ns() // 1_000_000
        await self._index.remove_garbage(now_ms - self._settings.grace_ms)
        state = self._index.state()
        if state.sealed_through and not await self._is_verified():
            return
        if state.sealed_through:
            await self._index.forget_sealed(await self._index.snapshot())
        if await self._prune(state.sealed_through, now_ms):
            return
        await self._index.rest()
        self._layout_is_settled = True

    async def _is_verified(self) -> bool:
        """Whether every segment was read from disk and is what was written; a build may still lie in memory only."""
        names = tuple(row.name for row in self._index.segments() if row.name not in self._verified)
        if not names:
            return True
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
            # Without the proof the log keeps its bodies: they are the other copy.
            log.error("segment.unproved", index=self._index.spec.id, reason=str(error))
            self.layout_moved()  # Not at once again: another grace period from now.
            return False
        self._verified.update(names)
        return True

    async def _prune(self, sealed_through: Sequence, now_ms: int) -> bool:
        return await self._index.prune(
            through=sealed_through,
            older_than_ms=now_ms - max(self._settings.log_retain_ms, self._settings.grace_ms),
            expired_ms=now_ms - self._settings.mutation_retain_ms,
        )

    async def _forget(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        await self._index.forget(
            removed_before_ms=now_ms - self._settings.cursor_ttl_ms,
            outcomes_before_ms=now_ms - self._settings.mutation_retain_ms,
        )
