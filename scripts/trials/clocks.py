"""Clocks that jump ten years either way, while everything runs and between two starts.

Every jump is a trial, under load. Nothing that was acknowledged may be lost, and nothing may get stuck: writes are
applied, a killed worker's indexes are taken over, a walk goes on or has expired, a repeated write is known, a token
that has expired is refused and is good again when the clock is right. At the end of a session the clock is right, and
what was written under any other must have been given back as soon as it is old: log bodies, outcomes, removed
versions, deleted indexes. Only the time of day jumps; monotonic time, as that of a real machine, does not.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from scripts.trials.clocks_shift import VARIABLE, set_clock
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials, ended_by
from scripts.trials.subject import fast_folder, launch
from scripts.trials.workers import check_folder, check_log
from scripts.trials.workers_client import ACCOUNT, Client, Refused
from scripts.trials.workers_crew import PATIENCE_S, RESTLESS, ROOT, Crew, Stuck, crew, send
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder, IndexFolder

SHORT = 4
FULL = 200
PER_SESSION = 10
SERVICES = 2
WORKERS = 2
WRITERS = 4
INDEXES = ("one", "two")
DIMENSIONS = 4
TOKEN = "trial"
DAY_MS = 86_400_000
YEARS_MS = 3_652 * DAY_MS
JUMPS = {"ten years ahead": YEARS_MS, "ten years back": -YEARS_MS, "right": 0, "an hour back": -3_600_000}
WAYS = {"running": 3, "stopped": 1}
PROMISE = "clocks that jump lose nothing and stop nothing"
SOON = RESTLESS | {
    "HEADRACE_TOKEN": TOKEN,
    "HEADRACE_CURSOR_TTL_MS": "2000",
    "HEADRACE_MUTATION_RETAIN_MS": "3000",
    "HEADRACE_LOG_RETAIN_MS": "1000",
}
"""Everything that is kept for a time is kept for seconds."""


@dataclass
class Keeper:
    """A writer of ids of its own, who knows what must be there."""

    index: str
    name: str
    dice: random.Random
    clients: list[Client]
    rows: dict[str, float] = field(default_factory=dict)
    count: int = 0
    last: str = ""

    async def write(self) -> None:
        """One write, repeated until it is acknowledged: twice is as good as once."""
        self.count += 1
        id = f"{self.name}-{self.dice.randrange(40):02}"
        key = f"{self.name} {self.count}"
        if self.dice.random() < 0.3:
            self.rows.pop(id, None)
            body, action = orjson.dumps({"ids": [id]}), "delete_by_ids"
        else:
            self.rows[id] = float(self.count)
            body = orjson.dumps({"id": id, "values": [1.0, 0.0, 0.0, self.rows[id]]})
            action = "upsert"
        path = f"/{self.index}/{action}"
        answer = await self.dice.choice(self.clients).call("POST", path, body, key)
        self.last = answer["mutationId"]

    async def compare(self) -> None:
        """What it wrote is what every service has, and lists. Raises Broken."""
        ids = [f"{self.name}-{place:02}" for place in range(40)]
        for client in self.clients:
            found = await client.call("POST", f"/{self.index}/get_by_ids", orjson.dumps({"ids": ids}))
            have = {one["id"]: one["values"][3] for one in found}
            check(have == self.rows, f"{self.name} has {have}, not {self.rows}")
            page = await client.call("GET", f"/{self.index}/list?count=1000&prefix={self.name}-")
            listed = [one["id"] for one in page["vectors"]]
            check(listed == sorted(self.rows), f"{self.name} lists {listed}, not {sorted(self.rows)}")


class Session:
    """A crew under a clock that can be set."""

    def __init__(self, some: Crew, clock: Path, token: str, seed: int) -> None:
        self._crew = some
        self._clock = clock
        self._clients = [Client(port, "keeper", token=TOKEN) for port in some.ports]
        self._guests = [Client(port, "guest", token=token) for port in some.ports]
        self._now = "right"
        self._writing = asyncio.Event()
        self._writing.set()
        self.keepers = [
            Keeper(
                INDEXES[place % 2],
                f"k{place}",
                random.Random(f"{seed} {place}"),
                [Client(port, "keeper", token=TOKEN) for port in some.ports],
            )
            for place in range(WRITERS)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Make the indexes and write."""
        for name in INDEXES:
            await self._create(name)
        self._tasks = [asyncio.create_task(self._write(keeper)) for keeper in self.keepers]
        await self._moves()

    async def _create(self, name: str) -> None:
        config = {"dimensions": DIMENSIONS, "metric": "euclidean"}
        await self._clients[0].call("POST", "", orjson.dumps({"name": name, "config": config}))

    async def _write(self, keeper: Keeper) -> None:
        while True:
            await self._writing.wait()
            await keeper.write()
            await asyncio.sleep(0.05)

    async def _moves(self, count: int = 20) -> None:
        """So many more writes are acknowledged, and applied on every service."""
        goal, deadline = sum(one.count for one in self.keepers) + count, time.monotonic() + PATIENCE_S
        while sum(one.count for one in self.keepers) < goal:
            for task in self._tasks:
                if task.done():
                    task.result()
            if time.monotonic() > deadline:
                raise Stuck("writes are not acknowledged")
            await asyncio.sleep(0.02)
        await self._applied()

    async def _applied(self) -> None:
        for name in INDEXES:
            newest = max(keeper.last for keeper in self.keepers if keeper.index == name)
            for client in self._clients:
                deadline = time.monotonic() + PATIENCE_S
                while (await client.call("GET", f"/{name}/info?latest=true")).get("processedUpToMutation", "") < newest:
                    if time.monotonic() > deadline:
                        raise Stuck(f"{newest} is not applied")
                    await asyncio.sleep(0.05)

    async def jump(self, number: int, dice: random.Random) -> str:
        """Set the clock, and see that all goes on. Says what was done."""
        wanted = dice.choice([name for name in JUMPS if name != self._now])
        if number % PER_SESSION == 0:
            wanted = "ten years ahead"  # What is worst is in every session, and in the shortest run.
        way = dice.choices(list(WAYS), list(WAYS.values()))[0]
        page = await self._clients[0].call("GET", "/one/list?count=3")
        await self._create(f"extra-{number}")
        await self._clients[0].call("POST", f"/extra-{number}/upsert", b'{"id":"a","values":[1,0,0,0]}', f"x{number}")
        if way == "running":
            set_clock(self._clock, JUMPS[wanted])
        else:
            await self._restart(wanted)
        self._now = wanted
        await self._clients[1].call("DELETE", f"/extra-{number}")
        if dice.random() < 0.5:
            await asyncio.to_thread(self._kill_a_worker, dice)
        await self._moves()
        await self._guest()
        await self._repeat(number)
        await self._walk_on(page)
        return f"{wanted}, {way}"

    async def _restart(self, wanted: str) -> None:
        self._writing.clear()
        await asyncio.to_thread(self._crew.stop)
        set_clock(self._clock, JUMPS[wanted])
        await asyncio.to_thread(self._crew.start)
        self._writing.set()

    def _kill_a_worker(self, dice: random.Random) -> None:
        send(dice.choice(self._crew.workers).child, signal.SIGKILL)

    async def _repeat(self, number: int) -> None:
        """A write and its repetition are one."""
        body, path, key = b'{"ids":["none"]}', "/one/delete_by_ids", f"twice {number}"
        first = await self._clients[0].call("POST", path, body, key)
        again = await self._clients[1].call("POST", path, body, key)
        check(first == again, f"a write under a key is done once: {first} and {again}")

    async def _guest(self) -> None:
        """The token lives for a day: ten years later it is refused, and after that it is good again."""
        for client in self._guests:
            try:
                await client.call("GET", "/one/info")
                is_good = True
            except Refused as refused:
                check(refused.status in (401, 403), f"a token that has expired is refused: {refused}")
                is_good = False
            check(is_good == (JUMPS[self._now] < DAY_MS), f"a token is good until it has expired: {self._now}")

    async def _walk_on(self, page: dict[str, object]) -> None:
        """A walk that was begun before goes on, or has expired."""
        if page["nextCursor"]:
            try:
                await self._clients[1].call("GET", f"/one/list?count=3&cursor={page['nextCursor']}")
            except Refused as refused:
                check("expired" in str(refused), f"a walk goes on or has expired: {refused}")

    async def end(self) -> None:
        """Set the clock right, hold everything to what was written, and see what is given back."""
        set_clock(self._clock, 0)
        self._now = "right"
        await self._moves(250)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for keeper in self.keepers:
            # What was under way when it was cancelled may or may not have been done.
            for id in list(keeper.rows):
                keeper.rows[id] = float(keeper.count + 1)
                body = orjson.dumps({"id": id, "values": [1.0, 0.0, 0.0, keeper.rows[id]]})
                keeper.last = (await self._clients[0].call("POST", f"/{keeper.index}/upsert", body, f"end {id}"))[
                    "mutationId"
                ]
        await self._applied()
        for keeper in self.keepers:
            await keeper.compare()
        await self._given_back()
        for client in (*self._clients, *self._guests):
            client.close()

    async def _given_back(self) -> None:
        data = DataFolder(self._crew.folder / "data")
        deadline = time.monotonic() + PATIENCE_S
        left = ["something"]
        while left:
            if time.monotonic() > deadline:
                raise Stuck(f"what is old is given back: {left}")
            await asyncio.sleep(0.5)
            left = [str(path.name) for path in data.trash.iterdir()]
            for path in data.indexes.iterdir():
                left += _kept(IndexFolder(path))


def _kept(folder: IndexFolder) -> list[str]:
    """What an index that nobody writes to should have forgotten by now."""
    with closing(Reader(folder.state)) as state, closing(Reader(folder.log)) as log:
        [(sealed,)] = state.rows("SELECT sealed_through FROM progress")
        counts = {
            "bodies": log.rows("SELECT count(*) FROM bodies WHERE sequence <= ?", (sealed,)),
            "rows": log.rows("SELECT count(*) FROM mutations, head WHERE mutations.sequence < pruned_through"),
            "outcomes": state.rows("SELECT count(*) FROM outcomes"),
            "versions": state.rows("SELECT count(*) FROM vectors WHERE removed > 0"),
        }
    return [f"{count} {what}" for what, [(count,)] in counts.items() if count]


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the sessions that were not done yet; a replayed trial is its session up to it."""
    done = Trials(results / f"clocks-{seed}.jsonl", replay)
    for numbers in done.blocks(trials, PER_SESSION):
        for trial in _session(seed, numbers):
            done.note(trial)
    return done.result(range(trials))


def _session(seed: int, numbers: range) -> list[Trial]:
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="headrace-clocks-", dir=fast_folder()) as name:
        folder, started = Path(name), time.monotonic()
        set_clock(folder / "clock", 0)
        environ = SOON | {VARIABLE: str(folder / "clock")}
        try:
            with crew(
                folder, services=SERVICES, workers=WORKERS, environ=environ, level="warning", preload="clocks_shift"
            ) as some:
                asyncio.run(_jumps(some, folder, seed, numbers, done))
                check_log(some)
            asyncio.run(check_folder(folder))
        except (Broken, Stuck, Refused, AssertionError) as error:
            seconds = time.monotonic() - started
            done.append(ended_by(error, numbers, done, promise=PROMISE, seconds=seconds))
    return done


async def _jumps(some: Crew, folder: Path, seed: int, numbers: range, done: list[Trial]) -> None:
    token = await asyncio.to_thread(make_token, folder)
    session = Session(some, folder / "clock", token, seed * 1_000_003 + numbers[0])
    await session.begin()
    for number in numbers:
        started = time.monotonic()
        what = await session.jump(number, random.Random(seed * 1_000_003 + number))
        seconds = round(time.monotonic() - started, 3)
        done.append(Trial(number=number, promise=PROMISE, what=what, verdict="kept", seconds=seconds))
    await session.end()


def make_token(folder: Path) -> str:
    """A token that lives for a day, by the clock that is right."""
    command = [*launch("service"), "token", "create", "guest", "--grant", f"read:{ACCOUNT}", "--expires", "24h"]
    made = subprocess.run(
        [*command, "--data", str(folder / "data")],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()
