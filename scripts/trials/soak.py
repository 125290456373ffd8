"""An hour, or eight, of mixed load with a worker killed every minute: nothing grows, and nothing is lost.

Writers, readers and walkers go on while memory, descriptors, maps, write-ahead logs and backlog of every process are
sampled. After a warm-up the slope of each is compared with a bound; at the end everything is held to the model. Each
minute is a trial, and so is each thing that must not grow. A soak is one piece: it is not gone on with, and a run of
few minutes says nothing of slopes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from scripts.trials.promises import Broken
from scripts.trials.report import Journal, Trial
from scripts.trials.soak_samples import BACKLOG_MAX, BOUNDS, WAL_BYTES_MAX, Sample, growth, sample
from scripts.trials.subject import fast_folder
from scripts.trials.workers import check_folder, check_log
from scripts.trials.workers_client import Client, Refused
from scripts.trials.workers_crew import RESTLESS, Crew, Stuck, crew, send
from scripts.trials.workers_load import Load
from scripts.trials.writes import GROUPS, IDS, row_of

SHORT = 2
FULL = 60
SLOPES_FROM = 30
"""Fewer minutes than this are too few for a slope."""
MINUTE_S = 60.0
SHORT_MINUTE_S = 12.0
SAMPLE_S = 5.0
WARM_UP_S = 1200.0
"""Until then threads start, caches fill, and the allocator finds its size."""
INDEXES = ("one", "two", "three")
SERVICES = 2
WORKERS = 2
READERS = 4
PROMISE = "soak"


@dataclass
class Soak:
    """One run."""

    crew: Crew
    load: Load
    dice: random.Random
    minute_s: float
    samples: list[Sample] = field(default_factory=list)
    kept: list[Trial] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def minutes(self, count: int, samples: Path) -> None:
        """So many, each with a kill. Raises Stuck, Broken, Refused."""
        self._tasks = [asyncio.create_task(self._read(place)) for place in range(READERS)]
        self._tasks.append(asyncio.create_task(self._sample(samples)))
        try:
            for number in range(count):
                started = time.monotonic()
                victim = self.crew.workers[number % WORKERS]
                kill_at = self.dice.uniform(0.2, 0.8) * self.minute_s
                await self._pass(kill_at)
                send(victim.child, signal.SIGKILL)
                await self._pass(self.minute_s - kill_at)
                await self.load.moves(1)
                took = round(time.monotonic() - started, 3)
                what = f"{victim.name} is killed after {kill_at:.0f} s"
                note = f"{self.load.count} writes so far"
                self.kept.append(
                    Trial(
                        number=number,
                        promise=f"{PROMISE}: all goes on",
                        what=what,
                        verdict="kept",
                        seconds=took,
                        note=note,
                    )
                )
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass(self, seconds: float) -> None:
        """Let time pass, and hear of what goes wrong meanwhile."""
        await asyncio.sleep(seconds)
        self.load.check()
        for task in self._tasks:
            if task.done():
                task.result()

    async def _sample(self, path: Path) -> None:
        started = time.monotonic()
        while True:
            one = await asyncio.to_thread(sample, self.crew, time.monotonic() - started)
            self.samples.append(one)
            with path.open("a") as file:
                file.write(json.dumps({"at_s": one.at_s, "values": one.values}) + "\n")
            await asyncio.sleep(SAMPLE_S)

    async def _read(self, place: int) -> None:
        """Queries of all kinds, records, and walks."""
        dice = random.Random(place)
        client = Client(self.crew.ports[place % SERVICES], f"reader-{place}")
        try:
            for number in itertools.count():
                index = dice.choice(INDEXES)
                query = {"vector": row_of(dice.randrange(1 << 20))[0], "topK": dice.choice([1, 10, 100])}
                if number % 3 == 0:
                    query |= {"filter": {"group": dice.randrange(GROUPS)}, "returnMetadata": "all"}
                await client.call("POST", f"/{index}/query", orjson.dumps(query))
                ids = [f"v{dice.randrange(IDS):03}" for _ in range(10)]
                await client.call("POST", f"/{index}/get_by_ids", orjson.dumps({"ids": ids}))
                await client.call("GET", f"/{index}/info")
                if number % 20 == 0:
                    await _walk(client, index)
                await asyncio.sleep(0.2)
        finally:
            client.close()


async def _walk(client: Client, index: str) -> None:
    cursor = ""
    while True:
        page = await client.call("GET", f"/{index}/list?count=50{cursor}")
        if not page["nextCursor"]:
            return
        cursor = f"&cursor={page['nextCursor']}"


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """So many minutes, and what grew."""
    del replay
    results.mkdir(parents=True, exist_ok=True)
    journal = Journal(results / f"soak-{seed}.jsonl")
    journal.path.unlink(missing_ok=True)
    samples = results / f"soak-{seed}-samples.jsonl"
    samples.unlink(missing_ok=True)
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="headrace-soak-", dir=fast_folder()) as folder:
        started = time.monotonic()
        verdict, note = "kept", "0 lost, 0 doubled, 0 out of order; every count and every vector is that of the model"
        try:
            _all(Path(folder), trials, seed, samples, done)
        except (Broken, Stuck, Refused, AssertionError) as error:
            verdict, note = type(error).__name__.lower(), str(error)
        seconds = round(time.monotonic() - started - sum(trial.seconds for trial in done), 3)
        done.append(
            Trial(
                number=len(done),
                promise=f"{PROMISE}: the model at the end",
                what=f"{trials} minutes",
                verdict=verdict,
                note=note,
                seconds=seconds,
            )
        )
    for trial in done:
        journal.add(trial)
    for trial in done[trials:]:
        sys.stderr.write(f"{trial.promise}: {trial.verdict}: {trial.what}: {trial.note}\n")
    return done


def _all(folder: Path, minutes: int, seed: int, samples: Path, done: list[Trial]) -> None:
    minute_s = MINUTE_S if minutes >= SLOPES_FROM else SHORT_MINUTE_S
    # The log of every request would be the only thing that grows.
    environ = RESTLESS | {"HEADRACE_AUDIT_FILE": "/dev/null"}
    with crew(folder, services=SERVICES, workers=WORKERS, environ=environ, level="warning") as some:
        asyncio.run(_soak(some, minutes, minute_s, seed, samples, done))
        check_log(some)
    asyncio.run(check_folder(folder))


async def _soak(some: Crew, minutes: int, minute_s: float, seed: int, samples: Path, done: list[Trial]) -> None:
    load = Load(some, INDEXES, pause_s=0.15)
    await load.begin(seed, 2)
    soak = Soak(some, load, random.Random(seed), minute_s)
    try:
        await soak.minutes(minutes, samples)
        await load.end()
    finally:
        done += soak.kept
    done += verdicts(soak.samples, minutes)
    await load.compare()


def verdicts(samples: list[Sample], minutes: int) -> list[Trial]:
    """What grew, and what passed its bound."""
    found = []

    def add(what: str, is_kept: bool, note: str) -> None:
        verdict = "kept" if is_kept else "grows"
        promise = f"{PROMISE}: {what.partition(' of ')[0]}"
        number = minutes + len(found)
        found.append(Trial(number=number, promise=promise, what=what, verdict=verdict, seconds=0.0, note=note))

    wal, backlog = (max(one.values[name] for one in samples) for name in ("wal bytes", "backlog"))
    add("wal bytes", wal <= WAL_BYTES_MAX, f"at most {wal / 1e6:.1f} MB, bound {WAL_BYTES_MAX / 1e6:.0f} MB")
    add("backlog", backlog <= BACKLOG_MAX, f"at most {backlog:.0f} mutations, bound {BACKLOG_MAX}")
    if minutes < SLOPES_FROM:
        return found
    steady = [one for one in samples if one.at_s >= WARM_UP_S]
    for name in sorted(steady[-1].values):
        bound = BOUNDS.get(name.partition(" of ")[0])
        if bound is None:
            continue
        times = np.array([one.at_s for one in steady if name in one.values])
        values = np.array([one.values[name] for one in steady if name in one.values])
        per_hour, typical = growth(times, values)
        note = f"median {typical:,.1f}, {per_hour:+,.2f} an hour, bound {bound:+,.2f}"
        add(name, per_hour <= bound, note)
    return found
