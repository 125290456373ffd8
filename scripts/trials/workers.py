"""Three workers on one data folder: stopped for longer than a lease, let go again, killed; one after the other, or all.

Every disturbance is a trial, under load from two services on several indexes. Those of one session share a data
folder, and are held to a model at its end: exactly once, in order, nothing acknowledged lost; no epoch taken twice,
no row in two segments, no segment missing. What was not done of a session is done by the next run of the same seed.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials, ended_by
from scripts.trials.subject import fast_folder
from scripts.trials.workers_client import ACCOUNT, Refused
from scripts.trials.workers_crew import (
    PATIENCE_S,
    RESTLESS,
    Crew,
    Stuck,
    crew,
    send,
)
from scripts.trials.workers_load import Load
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.inspection import inspect_index
from storage.open import open_store
from storage.records import AccountId
from storage.settings import Settings
from tests.contract.program import children_of, is_alive
from worker.lease import SILENCE_S

SHORT = 4
FULL = 300
PER_SESSION = 10
WORKERS = 3
SERVICES = 2
INDEXES = ("one", "two", "three")
WRITERS = 2
"""Of each index."""
PROMISE = "several workers: exactly once, in order, fenced"
TAKE_OVER_S = SILENCE_S + 30.0
"""How long the others may take until they do the work of one that is silent; most of it is for a busy machine."""
HALTED = ("index.halted", "mutation.failed", "mutation.set_aside", "index.failed", "folder.quarantined", "no json")


class Session:
    """One crew, its load, and what is done to it."""

    def __init__(self, some: Crew, load: Load, dice: random.Random) -> None:
        self._crew = some
        self._load = load
        self._dice = dice
        self.kinds: dict[str, tuple[int, Callable[[], Awaitable[str]]]] = {
            "stop one for longer than a lease": (4, lambda: self._stop(1, longer=True)),
            "stop two for longer than a lease": (2, lambda: self._stop(2, longer=True)),
            "stop all for longer than a lease": (1, lambda: self._stop(3, longer=True)),
            "stop some for less": (4, lambda: self._stop(self._dice.randint(1, 3), longer=False)),
            "kill one": (4, lambda: self._kill(1)),
            "kill all": (1, lambda: self._kill(3)),
            "kill one, supervisor first": (1, self._kill_whole),
            "kill a stopped one": (2, self._kill_stopped),
            "kill builders": (2, self._kill_builders),
            "stop a service": (2, self._stop_service),
            "kill a service": (1, self._kill_service),
        }

    async def disturb(self, kind: str) -> str:
        """Do it, and see that all goes on. Raises Stuck and Broken."""
        await asyncio.sleep(self._dice.uniform(0, 1.5))
        note = await self.kinds[kind][1]()
        await self._load.moves()
        await self._load.applied()
        return note

    def _some(self, count: int) -> list[int]:
        return [member.child for member in self._dice.sample(self._crew.workers, count)]

    async def _stop(self, count: int, *, longer: bool) -> str:
        some = self._some(count)
        for pid in some:
            send(pid, signal.SIGSTOP)
        note = ""
        try:
            if not longer:
                await asyncio.sleep(self._dice.uniform(0.1, 4))
            elif count == WORKERS:
                await asyncio.sleep(SILENCE_S + 2)
            else:
                note = await self._taken_over(some)
        finally:
            for pid in some:
                send(pid, signal.SIGCONT)
        return note

    async def _taken_over(self, stopped: list[int]) -> str:
        """The others must apply what is written, unless who is stopped holds the lock of a database."""
        started = time.monotonic()
        try:
            # Services refuse at once what waits for a lock that a stopped process holds: that is not asked here.
            await self._load.applied(TAKE_OVER_S)
        except Stuck:
            if holds_lock(stopped, self._crew.folder):
                return "it held the lock of a database"
            raise
        await asyncio.sleep(max(0.0, SILENCE_S + 2 - (time.monotonic() - started)))
        return f"taken over in {time.monotonic() - started:.1f} s"

    async def _kill(self, count: int) -> str:
        for pid in self._some(count):
            send(pid, signal.SIGKILL)
        return ""

    async def _kill_stopped(self) -> str:
        [pid] = self._some(1)
        send(pid, signal.SIGSTOP)
        await asyncio.sleep(self._dice.choice([0.2, SILENCE_S + 2]))
        send(pid, signal.SIGKILL)
        return ""

    async def _kill_whole(self) -> str:
        member = self._dice.choice(self._crew.workers)
        child = member.child
        await asyncio.to_thread(member.end, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while is_alive(child):
            if time.monotonic() > deadline:
                raise Stuck("a worker does not end with its supervisor")
            await asyncio.sleep(0.05)
        member.start()
        await asyncio.to_thread(member.heard_ready)
        return ""

    async def _kill_builders(self) -> str:
        """For a while, whatever is being built."""
        killed, deadline = 0, time.monotonic() + 6
        while time.monotonic() < deadline and killed < 3:
            for member in self._crew.workers:
                for pid in children_of(member.child):
                    await asyncio.sleep(self._dice.uniform(0, 0.5))
                    killed += send(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)
        return f"{killed} killed"

    async def _stop_service(self) -> str:
        pid = self._dice.choice(self._crew.services).child
        send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._dice.uniform(1, 7))
        finally:
            send(pid, signal.SIGCONT)
        return ""

    async def _kill_service(self) -> str:
        send(self._dice.choice(self._crew.services).child, signal.SIGKILL)
        return ""


def holds_lock(pids: list[int], folder: Path) -> bool:
    """Whether one of these processes holds a lock for writing on a file of an index."""
    inodes = {path.stat().st_ino for path in (folder / "data" / "indexes").rglob("*") if path.name.endswith(LOCKED)}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "->":
            continue  # Who only waits for a lock.
        if "WRITE" in fields and int(fields[4]) in pids and int(fields[5].rpartition(":")[2]) in inodes:
            return True
    return False


LOCKED = ("-shm", "log.lock", ".db")


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the sessions that were not done yet; a replayed trial is its whole session."""
    done = Trials(results / f"workers-{seed}.jsonl", replay)
    for numbers in done.blocks(trials, PER_SESSION):
        for trial in _session(seed, numbers):
            done.note(trial)
    return done.result(range(trials))


def _session(seed: int, numbers: range) -> list[Trial]:
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="headrace-workers-", dir=fast_folder()) as folder:
        started = time.monotonic()
        try:
            with crew(Path(folder), services=SERVICES, workers=WORKERS, environ=RESTLESS) as some:
                asyncio.run(_disturb(some, seed, numbers, done))
                check_log(some)
            asyncio.run(check_folder(Path(folder)))
        except (Broken, Stuck, Refused, AssertionError) as error:
            seconds = time.monotonic() - started
            done.append(ended_by(error, numbers, done, promise=PROMISE, seconds=seconds))
    return done


async def _disturb(some: Crew, seed: int, numbers: range, done: list[Trial]) -> None:
    load = Load(some, INDEXES, pause_s=0.02)
    await load.begin(seed * 1_000_003 + numbers[0], WRITERS)
    await load.moves()
    for number in numbers:
        started = time.monotonic()
        dice = random.Random(seed * 1_000_003 + number)
        session = Session(some, load, dice)
        weights = [weight for weight, _ in session.kinds.values()]
        # The first ones of a run are one of each kind that differs most, so that a short run has them all.
        kind = dice.choices(list(session.kinds), weights)[0] if number >= len(FIRST) else FIRST[number]
        try:
            note = await session.disturb(kind)
        except (Broken, Stuck) as error:
            raise type(error)(f"{kind}: {error}") from error
        seconds = round(time.monotonic() - started, 3)
        done.append(Trial(number=number, promise=PROMISE, what=kind, verdict="kept", note=note, seconds=seconds))
    await load.end()
    await load.compare()


FIRST = ("kill one", "stop one for longer than a lease", "kill builders", "stop some for less")


def check_log(some: Crew) -> None:
    """What the processes said: nothing halted or failed, and no epoch of an index was taken twice. Raises Broken."""
    loud = some.complaints(*HALTED)
    check(not loud, f"nothing is halted, set aside or failed: {loud[:2]}")
    taken = Counter((event["index"], event["epoch"]) for event in some.complaints("lease.taken"))
    twice = [lease for lease, count in taken.items() if count > 1]
    check(not twice, f"an epoch belongs to one worker: {twice[:3]}")
    some.stop()


async def check_folder(folder: Path) -> None:
    """What lies on disk: whole, every row in one part only, every segment once. Raises Broken."""
    data = DataFolder(folder / "data")
    store = await open_store(Settings(data=data.path))
    try:
        specs = await store.indexes(AccountId(ACCOUNT))
        for spec in specs:
            findings = inspect_index(data.index(spec.id))
            check(not findings, f"{spec.name}: doctor finds nothing: {[one.message for one in findings[:2]]}")
            snapshot = await store.snapshot(spec)
            names = [part.part.name for part in snapshot.parts]
            check(len(set(names)) == len(names), f"{spec.name}: a segment is named once: {names}")
            labels = np.concatenate([part.part.labels for part in snapshot.parts] or [np.empty(0, np.uint64)])
            check(len(np.unique(labels)) == len(labels), f"{spec.name}: a row is in one part only")
    finally:
        await store.close()
