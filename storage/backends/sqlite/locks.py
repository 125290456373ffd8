"""The lock of one log: whoever appends, prunes, vacuums or checkpoints holds it.

SQLite's own busy handler sleeps and retries, which is no queue: with two writing processes single commits waited for
seconds. Waiters on a file lock are woken by the kernel. A holder that was stopped must not hang everyone, so waiting
has a deadline.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from storage.errors import StoreBusy
from storage.files import lock_at_once


class FileLock:
    """An exclusive lock between processes; within one process, callers queue in order."""

    def __init__(self, path: Path, timeout_ms: int) -> None:
        self._path = path
        self._timeout_ms = timeout_ms
        self._inside = asyncio.Lock()
        # Descriptors are close-on-exec, so a child never keeps the lock of a dead parent.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock for the block. Raises StoreBusy when it could not be had in time."""
        async with self._inside:
            if lock_at_once(self._descriptor):
                try:
                    yield
                finally:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            else:
                descriptor = await self._wait()
                try:
                    yield
                finally:
                    os.close(descriptor)

    async def _wait(self) -> int:
        """Let a thread of its own sleep in the kernel's queue: a pool could be filled by waiters that never wake."""
        attempt = _Attempt(self._path)
        threading.Thread(target=attempt.run, name="log-lock", daemon=True).start()
        try:
            await asyncio.wait_for(asyncio.shield(attempt.taken), self._timeout_ms / 1000)
        except TimeoutError as error:
            if not attempt.abandoned():
                return attempt.descriptor
            raise StoreBusy(
                f"waited {self._timeout_ms} ms for {self._path.name} of index {self._path.parent.name} "
                "and another process still holds it; try again"
            ) from error
        except asyncio.CancelledError:
            if not attempt.abandoned():
                os.close(attempt.descriptor)
            raise
        return attempt.descriptor

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class _Attempt:
    """One wait for the lock, on a descriptor of its own: whoever was told that it is taken closes it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self.taken: asyncio.Future[None] = self._loop.create_future()
        self._guard = threading.Lock()
        self._state = "waiting"

    def run(self) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        with self._guard:
            if self._state == "abandoned":
                os.close(self.descriptor)
                return
            self._state = "taken"
        with suppress(RuntimeError):  # The loop may have been closed meanwhile; then nobody is left to tell.
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if not self.taken.done():
            self.taken.set_result(None)

    def abandoned(self) -> bool:
        """Give up; False when the lock was taken after all, and is then the caller's."""
        with self._guard:
            if self._state == "taken":
                return False
            self._state = "abandoned"
            return True
