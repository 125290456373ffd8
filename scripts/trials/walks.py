"""Walks over a listing while everything is written to, killed and started again: exact, or clearly expired.

Every walk is a trial. Its pages come from several services. What it found must be the ids that were alive after one
mutation that was the newest when the walk began, no more, no less, and in order; which ids those were is known at the
end of the session, from the log and the model. In every second session cursors live for a second, and a walk may be
told that its cursor has expired; what it found before must be right all the same.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from scripts.trials.subject import fast_folder
from scripts.trials.workers_client import Client, Refused
from scripts.trials.workers_crew import RESTLESS, Crew, Stuck, crew, send
from scripts.trials.workers_load import Load, mutations_of
from scripts.trials.writes import Model

SHORT = 16
FULL = 2_000
PER_SESSION = 200
WALKERS = 8
SERVICES = 2
WORKERS = 2
INDEXES = ("one", "two")
PROMISE = "walks are exact, or clearly expired"
CURSOR_MS = 1_000


@dataclass
class Walk:
    """One walk, and what it found. It was begun after mutation `least` and before `most` was followed by another."""

    number: int
    index: str
    prefix: str
    count: int
    is_short_lived: bool
    least: str = ""
    most: str = ""
    total: int = -1
    ids: list[str] = field(default_factory=list)
    pages: int = 0
    is_expired: bool = False
    seconds: float = 0.0

    @classmethod
    def of(cls, number: int, dice: random.Random) -> Walk:
        """The walk of a number."""
        prefix = dice.choice(["", "", "v", "v1", "v2", "v30", "w"])
        is_short_lived = number // PER_SESSION % 2 == 1
        return cls(number, dice.choice(INDEXES), prefix, dice.choice([1, 7, 20, 60, 500]), is_short_lived)

    async def go(self, clients: list[Client], dice: random.Random) -> None:
        """Page after page, from one service or another. Raises Refused, Stuck."""
        started = time.monotonic()
        self.least = await self._head(dice.choice(clients))
        cursor = ""
        while True:
            question = {"count": str(self.count), "prefix": self.prefix, "cursor": cursor}
            try:
                page = await dice.choice(clients).call("GET", f"/{self.index}/list?{urlencode(question)}")
            except Refused as refused:
                if cursor and self.is_short_lived and "expired" in str(refused):
                    self.is_expired = True
                    break
                raise
            if not cursor:
                # A process answers as of what it knows: what is the newest anywhere by now is as late as it can be.
                heads = [await self._head(client) for client in clients]
                self.most, self.total = max(heads), page["totalCount"]
            check(page["totalCount"] == self.total, f"walk {self.number}: totalCount stays what it was")
            self.pages += 1
            self.ids += [one["id"] for one in page["vectors"]]
            cursor = page["nextCursor"]
            if not cursor:
                break
            if dice.random() < 0.3:
                await asyncio.sleep(dice.uniform(0, 0.3))
        self.seconds = time.monotonic() - started

    async def _head(self, client: Client) -> str:
        info = await client.call("GET", f"/{self.index}/info?latest=true")
        return str(info.get("processedUpToMutation", ""))

    def fits(self, alive: tuple[str, ...]) -> bool:
        """Whether it found what it must, if these were the ids, in order."""
        wanted = [id for id in alive if id.startswith(self.prefix)]
        if self.total != len(wanted):
            return False
        return self.ids == (wanted[: len(self.ids)] if self.is_expired else wanted)

    def trial(self, verdict: str, note: str = "") -> Trial:
        """What it came to."""
        what = f"{self.index}, prefix {self.prefix!r}, {self.pages} pages of {self.count}"
        note = note or ("expired" if self.is_expired else f"{len(self.ids)} ids")
        # Walks go on beside each other: each has its share of the time.
        seconds = round(self.seconds / WALKERS, 3)
        return Trial(number=self.number, promise=PROMISE, what=what, verdict=verdict, note=note, seconds=seconds)


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the walks that were not done yet; a replayed one is alone in its session."""
    done = Trials(results / f"walks-{seed}.jsonl", replay)
    wanted = done.wanted(range(trials))
    for session in sorted({number // PER_SESSION for number in wanted}):
        for trial in _session(seed, [number for number in wanted if number // PER_SESSION == session]):
            done.note(trial)
    return done.result(range(trials))


def _session(seed: int, numbers: list[int]) -> list[Trial]:
    is_short_lived = numbers[0] // PER_SESSION % 2 == 1
    environ = RESTLESS | ({"HEADRACE_CURSOR_TTL_MS": str(CURSOR_MS)} if is_short_lived else {})
    walked: list[Walk] = []
    with tempfile.TemporaryDirectory(prefix="headrace-walks-", dir=fast_folder()) as folder:
        try:
            with crew(Path(folder), services=SERVICES, workers=WORKERS, environ=environ, level="warning") as some:
                return asyncio.run(_walk_all(some, seed, numbers, walked))
        except (Broken, Stuck, Refused, BaseExceptionGroup) as error:
            reason = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            last = Walk(numbers[min(len(walked), len(numbers) - 1)], "see the note", "", 0, is_short_lived)
            return [last.trial(type(reason).__name__.lower(), str(reason))]


async def _walk_all(some: Crew, seed: int, numbers: list[int], walked: list[Walk]) -> list[Trial]:
    load = Load(some, INDEXES, pause_s=0.05)
    await load.begin(seed * 1_000_003 + numbers[0], 2)
    await load.moves(100)
    over = asyncio.Event()
    shaking = asyncio.create_task(_shake(some, random.Random(seed * 1_000_003 + numbers[0]), over))
    left = iter(numbers)
    try:
        async with asyncio.TaskGroup() as group:
            for place in range(WALKERS):
                group.create_task(_walk(some, seed, left, walked, place))
    finally:
        # What is down now is brought back first.
        over.set()
        await shaking
    await load.end()
    await load.compare()
    return await _judge(some, load, walked)


async def _walk(some: Crew, seed: int, left: Iterator[int], walked: list[Walk], place: int) -> None:
    clients = [Client(port, f"walker-{place}") for port in some.ports]
    try:
        for number in left:
            dice = random.Random(seed * 1_000_003 + number)
            walk = Walk.of(number, dice)
            await walk.go(clients, dice)
            walked.append(walk)
    finally:
        for client in clients:
            client.close()


async def _shake(some: Crew, dice: random.Random, over: asyncio.Event) -> None:
    """Kill one process after the other, and now and then stop and start a whole."""
    while not over.is_set():
        await asyncio.sleep(dice.uniform(0.5, 4))
        member = dice.choice(some.members)
        if dice.random() < 0.7:
            send(await asyncio.to_thread(lambda member=member: member.child), signal.SIGKILL)  # type: ignore[misc]
        else:
            await asyncio.to_thread(member.end, dice.choice([signal.SIGTERM, signal.SIGKILL]))
            member.start()
            await asyncio.to_thread(member.heard_ready)


async def _judge(some: Crew, load: Load, walked: list[Walk]) -> list[Trial]:
    """Compare each walk with what was alive after each mutation that it may have been pinned to."""
    client = Client(some.ports[0])
    trials = []
    for name in INDEXES:
        acknowledged = {one: write for writer in load.writers for one, write in writer.acknowledged}
        ids = [str(one["mutationId"]) for one in await mutations_of(client, name)]
        mine = sorted((walk for walk in walked if walk.index == name), key=lambda walk: walk.least)
        spans = [(bisect_left(ids, walk.least), bisect_left(ids, walk.most)) for walk in mine]
        wanted = {place for least, most in spans for place in range(least, most + 1)}
        model, alive = Model(), {}
        for place, id in enumerate(ids):
            model.apply(acknowledged[id])
            if place in wanted:
                alive[place] = tuple(sorted(model.rows))
        for walk, (least, most) in zip(mine, spans, strict=True):
            if any(walk.fits(alive[place]) for place in range(least, most + 1)):
                trials.append(walk.trial("kept"))
            else:
                note = f"{len(walk.ids)} ids of {walk.total} are those of no mutation from {walk.least} to {walk.most}"
                trials.append(walk.trial("inexact", note))
    client.close()
    return trials
