"""The worker's loop: who needs a turn, and giving it.

A ring names an index; a sweep looks at every index now and then, because rings are hints; an index that is open says
when its next turn is due, for builds and collecting that become due with time. An index that nobody writes to is
closed, so it costs nothing but the sweep's look: one small file, and never more than a few hundred of them a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from storage.backends.sqlite.driver import DatabaseError
from storage.backends.sqlite.state import LeaseLost
from storage.backends.sqlite.workshop import Workshop
from storage.doorbell import Doorbell, Side
from storage.errors import Damaged, LogDamaged, SegmentDamaged, StateDamaged, StoreFailed, StoreFull, Unavailable
from storage.memory import give_back_memory
from storage.records import IndexId, Sequence
from storage.runtime import runtime_folder
from storage.settings import Settings
from worker.jobs import BuildFailed
from worker.lease import BEAT_S, Registration
from worker.policy import IDLE_SEAL_BYTES
from worker.tending import Tending

log = structlog.get_logger()

TURNS_MAX = 8
"""Indexes that have a turn at the same time; the rest wait."""
BUILDS_MAX = 1
"""Builds at the same time: one takes every core it is given."""
TICK_S = 0.5
IDLE_S = 30.0
"""An index that nobody writes to for this long is closed once everything is built and given back."""
HALT_S = 5.0
HALT_MAX_S = 600.0
"""An index that contradicts itself is looked at again after this long, twice as long each time, up to the maximum."""
STOP_S = 5.0
"""How long turns that are under way may take to end by themselves."""
LOOKS_MAX = 100
"""Indexes that the sweep looks at before it pauses."""
LOOK_PAUSE_S = 0.5
"""So thousands of indexes cost the sweep a few milliseconds of every second; it only takes longer to come round."""
MANY = 16
"""So many open indexes take memory worth giving back."""
VISITS_PER_SWEEP = 4
"""Idle indexes that each sweep opens for collecting, in turn."""
VISIT_AGAIN_S = 3600.0
"""How long an index that was closed with nothing left to do is not visited."""


@dataclass(frozen=True, slots=True)
class Halt:
    """How long an index is left alone that contradicted itself, by the monotonic clock."""

    until: float
    wait_s: float

    @classmethod
    def after(cls, earlier: Halt | None) -> Halt:
        """From now, and twice as long as before."""
        wait_s = HALT_S if earlier is None else min(2 * earlier.wait_s, HALT_MAX_S)
        return cls(time.monotonic() + wait_s, wait_s)


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
        self._visit_not_before: dict[IndexId, float] = {}
        self._scrubbed_at: dict[IndexId, float] = {}
        self._halted: dict[IndexId, Halt] = {}
        self._gone: set[IndexId] = set()
        self._visited = 0
        self._most_tended = 0
        self._is_swept = False
        self._stopping = False

    @classmethod
    async def start(cls, settings: Settings) -> Loop:
        """Open the data folder, become known to other workers, and listen for rings."""
        workshop = await Workshop.open(settings)
        try:
            loop = cls(settings, workshop, await Registration.join(workshop.data))
            loop._bell.open()
        except BaseException:
            await workshop.close()
            raise
        return loop

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then let go of everything."""
        chores = [
            asyncio.create_task(self._beat(), name="beat"),
            asyncio.create_task(self._sweep(), name="sweep"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._keep_reserve(), name="reserve"),
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
                log.warning("index.unavailable", index=id, reason=str(error))
                if isinstance(error, StoreFailed):
                    await self._let_go(id)  # After a sync that failed, what is open may not be what is on disk.
                if isinstance(error, StoreFull | StoreFailed) and self._workshop.reserve.give():
                    self._rung.add(id)  # What was acknowledged is applied, whatever the disk has come to.
                # Otherwise the sweep comes back to it.
            except Damaged as error:
                # Going on could make damage durable: the index stands still, and is looked at again now and then.
                log.critical("index.halted", index=id, reason=str(error))
                self._halted[id] = Halt.after(self._halted.get(id))
                await self._tell_others(id, error)
                await self._let_go(id)
            except Exception:
                log.exception("index.failed", index=id)
                await self._let_go(id)

    async def _tend(self, id: IndexId) -> None:
        if not self._workshop.lives(id):
            await self._discard(id)
            return
        if self._stands_still(id):
            return
        tending = self._tended.get(id)
        if tending is None:
            await self._trim(self._settings.open_indexes_max - 1)
            index = await self._workshop.open_index(id)
            if index is None:
                return
            tending = self._tended[id] = Tending(
                index,
                self._settings,
                self._registration,
                self._builders,
                published=lambda: self._bell.ring(id),
                wanted=lambda: self._give_turn(id),
                is_short=lambda: self._workshop.reserve.room().is_low,
                scrubbed_at=self._scrubbed_at,
            )
            self._most_tended = max(self._most_tended, len(self._tended))
        is_ours = await tending.turn()
        if is_ours and self._halted.pop(id, None) is not None:
            log.warning("index.resumed", index=id)
        self._applied[id] = tending.index.state().applied
        if not is_ours:
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
            self._visit_not_before[id] = time.monotonic() + VISIT_AGAIN_S if tending.is_at_rest else 0.0
            with contextlib.suppress(Unavailable, Damaged, DatabaseError):
                await tending.close()

    async def _tell_others(self, id: IndexId, error: Damaged) -> None:
        """Have what is damaged not used by those who opened it before it was.

        A log that cannot be applied takes no more writes: they might never be applied. Segments are verified anew.
        """
        tending = self._tended.get(id)
        if tending is None or not tending.index.epoch:
            return
        with contextlib.suppress(Unavailable, Damaged, LeaseLost, BuildFailed):
            if isinstance(error, LogDamaged):
                await tending.index.note_log_damage(str(error))
            elif isinstance(error, SegmentDamaged):
                await tending.index.publish_again([row.name for row in tending.index.segments()])
            elif isinstance(error, StateDamaged):
                await tending.scrubber.condemn_if_damaged()

    def is_halted(self, id: IndexId) -> bool:
        """Whether this worker leaves an index alone, because it contradicts itself, and has not seen it work since."""
        return id in self._halted

    def _stands_still(self, id: IndexId) -> bool:
        """Whether it is too early to look whether an index contradicts itself still.

        SQLite says of a page that could not be read what it says of one that is wrong. What is wrong is found again
        by the same checks, before anything is written.
        """
        halt = self._halted.get(id)
        return halt is not None and time.monotonic() < halt.until

    async def scrub_now(self, id: IndexId) -> None:
        """Read all of an index again and see to what is found, whenever it was done last."""
        tending = self._tended.get(id)
        if tending is not None:
            await tending.scrubber.read()
            await self._turn_now(id)

    async def _turn_now(self, id: IndexId) -> None:
        self._give_turn(id)
        while id in self._running:
            await asyncio.gather(self._running[id], return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            try:
                await self._registration.beat()
            except Unavailable as error:
                log.warning("heartbeat.missed", reason=str(error))
                if isinstance(error, StoreFull | StoreFailed):
                    self._workshop.reserve.give()
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
        ids = [id for id in known if id not in self._gone]
        pause_s = 0.0
        for start in range(0, len(ids), LOOKS_MAX):
            await asyncio.sleep(pause_s)
            started = time.monotonic()
            some = {id: known[id] for id in ids[start : start + LOOKS_MAX]}
            for id in await asyncio.to_thread(self._look, some):
                self._heard(id)
            # After a start somebody may be waiting: then half of the time is pause enough.
            pause_s = LOOK_PAUSE_S if self._is_swept else time.monotonic() - started
        self._is_swept = True
        self._visit([id for id in ids if known[id]])
        for folder in await asyncio.to_thread(self._workshop.sweep_folders, self._settings.grace_ms / 1000):
            log.critical("folder.quarantined", folder=str(folder))

    def _look(self, known: Mapping[IndexId, bool]) -> list[IndexId]:
        """Which of these indexes need a turn; in a thread, as it reads a file for each."""
        return [id for id, lives in known.items() if (self._is_behind(id) if lives else self._is_left(id))]

    def _is_left(self, id: IndexId) -> bool:
        """Whether a deleted index has files still. Those that are gone never come back."""
        if self._workshop.has_folder(id):
            return True
        self._gone.add(id)
        return False

    def _is_behind(self, id: IndexId) -> bool:
        if id in self._halted:
            return not self._stands_still(id)
        if id not in self._applied:
            try:
                glance = self._workshop.glance(id)
            except (Damaged, Unavailable) as error:
                log.warning("index.unavailable", index=id, reason=str(error))
                return False
            self._applied[id] = glance.applied
            if glance.is_settled and glance.tail_bytes <= IDLE_SEAL_BYTES:
                self._visit_not_before[id] = time.monotonic() + VISIT_AGAIN_S
            return glance.head > glance.applied
        return self._workshop.witnessed(id) > self._applied[id]

    def _visit(self, ids: list[IndexId]) -> None:
        """Closed indexes may have chores too; a few of them each time."""
        now, visits = time.monotonic(), 0
        for _ in ids:
            self._visited += 1
            id = ids[self._visited % len(ids)]
            if id not in self._tended and self._visit_not_before.get(id, 0.0) <= now:
                self._heard(id)
                visits += 1
                if visits == VISITS_PER_SWEEP:
                    return

    async def _tick(self) -> None:
        """Give open indexes their turn when it is due, and close those that nobody needs open."""
        while True:
            await asyncio.sleep(TICK_S)
            await self._trim(self._settings.open_indexes_max)
            now = time.monotonic()
            for id, tending in list(self._tended.items()):
                if tending.due_at <= now:
                    self._give_turn(id)
                elif id not in self._running and tending.is_at_rest and now - tending.wrote_at > IDLE_S:
                    await self._let_go(id)
            await self._give_back_memory()

    async def _give_back_memory(self) -> None:
        """Where many indexes were open and half of them are not any more, what they took is of use to others."""
        open_now = len(self._tended)
        if self._most_tended >= MANY and 2 * open_now <= self._most_tended:
            self._most_tended = open_now
            await asyncio.to_thread(give_back_memory)

    async def _keep_reserve(self) -> None:
        """Make the reserve, and make it whole again when there is room; then what waited for room goes on."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                has_room = await asyncio.to_thread(self._workshop.reserve.keep)
            except OSError as error:
                log.warning("reserve.failed", reason=str(error))
                continue
            if has_room:
                for id, tending in list(self._tended.items()):
                    tending.hear_of_room()
                    self._give_turn(id)

    async def _trim(self, count_max: int) -> None:
        """Close those that were rung for longest ago."""
        for id in list(self._tended):
            if len(self._tended) <= count_max:
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
        try:
            await self._registration.leave()
        finally:
            await self._workshop.close()
