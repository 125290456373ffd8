"""The worker's loop: who needs a turn, and giving it.

A ring names an index; a sweep looks at every index now and then, because rings are hints; an index that is open gets
a turn about once a second, for builds and collecting that become due with time. Nothing polls thousands of databases:
the sweep reads one small file for each index, and opens those that are behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict

import structlog

from storage.backends.sqlite.driver import DatabaseError
from storage.backends.sqlite.workshop import Workshop
from storage.doorbell import Doorbell, Side
from storage.errors import Damaged, Unavailable
from storage.records import IndexId, Sequence
from storage.runtime import runtime_folder
from storage.settings import Settings
from worker.lease import BEAT_S, Registration
from worker.tending import Tending

log = structlog.get_logger()

TURNS_MAX = 8
"""Indexes that have a turn at the same time; the rest wait."""
BUILDS_MAX = 1
"""Builds at the same time: one takes every core it is given."""
TICK_S = 0.5
STOP_S = 5.0
"""How long turns that are under way may take to end by themselves."""
VISITS_PER_SWEEP = 4
"""Idle indexes that each sweep opens for collecting, in turn."""


class Loop:
    """One worker process. Make it with `start`; `run` returns when `stop` is set."""

    def __init__(self, settings: Settings, workshop: Workshop, registration: Registration) -> None:
        self._settings = settings
        self._workshop = workshop
        self._registration = registration
        self._bell = Doorbell(runtime_folder(settings.data), Side.WORKER, self._heard)
        self._builders = asyncio.Semaphore(BUILDS_MAX)
        self._turns = asyncio.Semaphore(TURNS_MAX)
        self._tended: OrderedDict[IndexId, Tending] = OrderedDict()
        self._running: dict[IndexId, asyncio.Task[None]] = {}
        self._rung: set[IndexId] = set()
        self._applied: dict[IndexId, Sequence] = {}
        self._halted: set[IndexId] = set()
        self._visited = 0
        self._stopping = False

    @classmethod
    async def start(cls, settings: Settings) -> Loop:
        """Open the data folder, become known to other workers, and listen for rings."""
        workshop = await Workshop.open(settings)
        loop = cls(settings, workshop, await Registration.join(workshop.data))
        loop._bell.open()
        return loop

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then let go of everything."""
        chores = [
            asyncio.create_task(self._beat(), name="beat"),
            asyncio.create_task(self._sweep(), name="sweep"),
            asyncio.create_task(self._tick(), name="tick"),
        ]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([*chores, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [*chores, stopped]:
                task.cancel()
            await asyncio.gather(*chores, stopped, return_exceptions=True)
            await self._close()

    def _heard(self, id: IndexId) -> None:
        """Give an index a turn as soon as there is room."""
        if id in self._tended:
            self._tended.move_to_end(id)
        self._give_turn(id)

    def _give_turn(self, id: IndexId) -> None:
        if self._stopping:
            return
        if id in self._running:
            self._rung.add(id)
            return
        task = self._running[id] = asyncio.create_task(self._turn(id), name="turn")
        task.add_done_callback(lambda _: self._turned(id))

    def _turned(self, id: IndexId) -> None:
        del self._running[id]
        if id in self._rung and not self._stopping:
            self._rung.discard(id)
            self._give_turn(id)

    async def _turn(self, id: IndexId) -> None:
        async with self._turns:
            try:
                await self._tend(id)
            except Unavailable as error:
                # The sweep comes back to it.
                log.warning("index.unavailable", index=id, reason=str(error))
            except Damaged as error:
                # Going on could make damage durable: the index stands still until somebody looks at it.
                log.critical("index.halted", index=id, reason=str(error))
                self._halted.add(id)
                await self._let_go(id)
            except Exception:
                log.exception("index.failed", index=id)
                await self._let_go(id)

    async def _tend(self, id: IndexId) -> None:
        if not self._workshop.lives(id):
            await self._discard(id)
            return
        if id in self._halted:
            return
        tending = self._tended.get(id)
        if tending is None:
            index = await self._workshop.open_index(id)
            if index is None:
                return
            tending = self._tended[id] = Tending(
                index, self._settings, self._registration, self._builders, lambda: self._bell.ring(id)
            )
        if await tending.turn():
            self._applied[id] = tending.index.state().applied
        else:
            await self._let_go(id)

    async def _discard(self, id: IndexId) -> None:
        """Take a deleted index away, under a raised epoch so that no other worker goes on with it."""
        folder = self._workshop.data.index(id).path
        if not folder.exists():
            return
        tending = self._tended.get(id)
        if tending is None or not tending.index.epoch:
            try:
                owner = self._workshop.owner(id)
            except Damaged as error:
                # Another worker may be taking it away, or it cannot be read: nobody needs it any more.
                log.warning("index.unavailable", index=id, reason=str(error))
                owner = ""
            if owner and not self._registration.is_dead(owner):
                return  # Its holder has heard the same and takes it away.
        await self._let_go(id)
        self._workshop.discard(id)
        # Other service processes may have its files open, and with them their space.
        self._bell.ring(id)
        log.info("index.discarded", index=id)

    async def _let_go(self, id: IndexId) -> None:
        tending = self._tended.pop(id, None)
        if tending is not None:
            with contextlib.suppress(Unavailable, Damaged, DatabaseError):
                await tending.close()

    async def _beat(self) -> None:
        while True:
            try:
                await self._registration.beat()
            except Unavailable as error:
                log.warning("heartbeat.missed", reason=str(error))
            await asyncio.sleep(BEAT_S)

    async def _sweep(self) -> None:
        """Look at every index: at once after the start, then slowly."""
        while True:
            started = time.monotonic()
            try:
                await self._sweep_once()
            except (Unavailable, Damaged, OSError) as error:
                log.warning("sweep.failed", reason=str(error))
            took = time.monotonic() - started
            await asyncio.sleep(max(self._settings.sweep_ms / 1000, took))

    async def _sweep_once(self) -> None:
        known = self._workshop.indexes()
        for number, (id, lives) in enumerate(known.items()):
            if await asyncio.to_thread(self._is_behind if lives else self._workshop.has_folder, id):
                self._heard(id)
            if number % 100 == 0:
                await asyncio.sleep(0)
        self._visit([id for id, lives in known.items() if lives])
        for folder in await asyncio.to_thread(self._workshop.sweep_folders, self._settings.grace_ms / 1000):
            log.critical("folder.quarantined", folder=str(folder))

    def _is_behind(self, id: IndexId) -> bool:
        if id in self._halted:
            return False
        if id not in self._applied:
            try:
                head, applied = self._workshop.glance(id)
            except (Damaged, Unavailable) as error:
                log.warning("index.unavailable", index=id, reason=str(error))
                return False
            self._applied[id] = applied
            return head > applied
        return self._workshop.witnessed(id) > self._applied[id]

    def _visit(self, ids: list[IndexId]) -> None:
        """Idle indexes have chores too; a few of them each time."""
        for _ in range(min(VISITS_PER_SWEEP, len(ids))):
            self._visited += 1
            self._heard(ids[self._visited % len(ids)])

    async def _tick(self) -> None:
        """Give open indexes their turn for what becomes due with time, and close those unused the longest."""
        while True:
            await asyncio.sleep(TICK_S)
            await self._trim()
            for id in list(self._tended):
                self._give_turn(id)

    async def _trim(self) -> None:
        for id in list(self._tended):
            if len(self._tended) <= self._settings.open_indexes_max:
                return
            # Asked for each anew: a ring may have come while the one before was let go.
            tending = self._tended.get(id)
            if tending is not None and id not in self._running and not tending.is_busy:
                await self._let_go(id)

    async def _close(self) -> None:
        self._stopping = True
        self._rung.clear()
        for tending in self._tended.values():
            tending.stop()
        turns = list(self._running.values())
        if turns:
            _, late = await asyncio.wait(turns, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for id in list(self._tended):
            await self._let_go(id)
        self._bell.close()
        await self._registration.leave()
        await self._workshop.close()
