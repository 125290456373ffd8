"""Waiting for progress: woken by the worker's ring, and by a slow look of its own for all waiters together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from storage.errors import StorageError
from storage.records import IndexId, Sequence

LOOK_S = 0.25
"""Rings are hints: everybody who waits is looked after this often, with one look per index."""


class Waiters:
    """Who waits for which sequence of which index, in one process.

    `applied` says how far an index is, and raises when it is gone; `remind` rings for the worker again.
    """

    def __init__(self, applied: Callable[[IndexId], Sequence], remind: Callable[[IndexId], None]) -> None:
        self._applied = applied
        self._remind = remind
        self._waiting: dict[IndexId, list[tuple[Sequence, asyncio.Future[None]]]] = defaultdict(list)
        self._looking: asyncio.TimerHandle | None = None

    async def wait(self, index: IndexId, sequence: Sequence, timeout_s: float) -> bool:
        """Wait until `sequence` is applied; False when the time is up first. Raises what `applied` raises."""
        if self._applied(index) >= sequence:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (sequence, waiter)
        self._waiting[index].append(entry)
        self._look_later()
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return False
        finally:
            self._forget(index, entry)
        return True

    def heard(self, index: IndexId) -> None:
        """Something happened to an index: wake whom it concerns."""
        waiting = self._waiting.get(index)
        if not waiting:
            return
        try:
            applied = self._applied(index)
        except StorageError as error:
            for _, waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        for sequence, waiter in waiting:
            if sequence <= applied and not waiter.done():
                waiter.set_result(None)

    def _forget(self, index: IndexId, entry: tuple[Sequence, asyncio.Future[None]]) -> None:
        self._waiting[index].remove(entry)
        if not self._waiting[index]:
            del self._waiting[index]

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        for index in list(self._waiting):
            self.heard(index)
            if any(not waiter.done() for _, waiter in self._waiting.get(index, ())):
                self._remind(index)
        if self._waiting:
            self._look_later()

    def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
