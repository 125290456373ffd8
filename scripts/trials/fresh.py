"""Read what you wrote: write, ask `/info` on one process until it is processed, then look for it on another.

Every round is a trial. Many clients do rounds at once on several indexes, while their segments are sealed, merged and
collected all the time. Each client has ids of its own, so it knows exactly what it must find. A replayed round begins
with an empty index and so is only alike; what its neighbours do at the moment is nobody's choice anyway.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from scripts.trials.report import Trial, Trials
from scripts.trials.subject import fast_folder
from scripts.trials.workers_client import PAUSE_S, Client, Refused
from scripts.trials.workers_crew import PATIENCE_S, RESTLESS, Crew, Stuck, crew

SHORT = 400
FULL = 100_000
SERVICES = 3
CLIENTS = 24
INDEX_COUNT = 6
DIMENSIONS = 32
IDS = 60
BATCH_MAX = 3
CALMER = RESTLESS | {"HEADRACE_SEAL_BYTES": "400000", "HEADRACE_SEAL_MUTATIONS": "800"}
"""Layouts change every few seconds; more would only take time from the rounds."""
PROMISE = "what /info names is found on every process"
ASKED = {"query": 4, "filter": 2, "get": 3, "list": 2}
POLLED = {"info?latest=true": 5, "info": 4, "wait_for": 1}


class Stale(Exception):
    """A wrong answer."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round does. `writer`, `poller` and `reader` are services; the last two differ."""

    number: int
    action: str
    places: tuple[int, ...]
    writer: int
    poller: int
    reader: int
    polled: str
    asked: str

    @classmethod
    def of(cls, seed: int, number: int) -> Round:
        """The round of a number."""
        dice = random.Random(seed * 1_000_003 + number)
        poller, reader = dice.sample(range(SERVICES), 2)
        return cls(
            number=number,
            action=dice.choices(["upsert", "insert", "delete_by_ids"], [6, 2, 3])[0],
            places=tuple(dice.sample(range(IDS), dice.randint(1, BATCH_MAX))),
            writer=dice.choice([poller, dice.randrange(SERVICES)]),
            poller=poller,
            reader=reader,
            polled=dice.choices(list(POLLED), list(POLLED.values()))[0],
            asked=dice.choices(list(ASKED), list(ASKED.values()))[0],
        )

    def __str__(self) -> str:
        where = f"written to {self.writer}, {self.polled} on {self.poller}, {self.asked} on {self.reader}"
        return f"{self.action} of {len(self.places)}, {where}"


def values_of(seed: int, number: int, place: int) -> list[float]:
    """A vector that is exact in float32 and like no other."""
    dice = random.Random(f"{seed} {number} {place}")
    return [float(dice.randint(-99, 99)) for _ in range(DIMENSIONS)]


@dataclass
class Person:
    """One client: its connections to every service, and what it has written."""

    seed: int
    name: str
    index: str
    clients: list[Client]
    rows: dict[str, int] = field(default_factory=dict)
    """The round that wrote each of its vectors."""
    places: dict[str, int] = field(default_factory=dict)

    def path(self, rest: str) -> str:
        """Of its index."""
        return f"/{self.index}/{rest}"

    async def do(self, one: Round) -> None:
        """One round. Raises Stale, Stuck, Refused."""
        ids = [f"{self.name}-{place}" for place in one.places]
        before = {id: self.values(id) for id in ids if id in self.rows}
        mutation = await self._write(one, ids)
        await self._poll(one, mutation)
        await self._ask(one, ids, before)

    def values(self, id: str) -> list[float]:
        """Of a vector it has written."""
        return values_of(self.seed, self.rows[id], self.places[id])

    async def _write(self, one: Round, ids: list[str]) -> str:
        if one.action == "delete_by_ids":
            body = orjson.dumps({"ids": ids})
            for id in ids:
                self.rows.pop(id, None)
        else:
            lines = []
            for id, place in zip(ids, one.places, strict=True):
                values = values_of(self.seed, one.number, place)
                lines.append(orjson.dumps({"id": id, "values": values, "metadata": {"round": one.number}}))
                if one.action == "upsert" or id not in self.rows:
                    self.rows[id], self.places[id] = one.number, place
            body = b"\n".join(lines)
        key = f"{self.name} {one.number}"
        answer = await self.clients[one.writer].call("POST", self.path(one.action), body, key)
        return str(answer["mutationId"])

    async def _poll(self, one: Round, mutation: str) -> None:
        client = self.clients[one.poller]
        path = f"info?wait_for={mutation}&timeout=30" if one.polled == "wait_for" else one.polled
        deadline = time.monotonic() + PATIENCE_S
        # Mutation ids ascend in the order of the log, and whatever is named is processed.
        while (await client.call("GET", self.path(path))).get("processedUpToMutation", "") < mutation:
            if time.monotonic() > deadline:
                raise Stuck(f"{mutation} is not processed")
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, one: Round, ids: list[str], before: dict[str, list[float]]) -> None:
        client = self.clients[one.reader]
        match one.asked:
            case "get":
                found = await client.call("POST", self.path("get_by_ids"), orjson.dumps({"ids": ids}))
                self._same(found, [id for id in ids if id in self.rows], values=True)
            case "list":
                found = await client.call("GET", self.path(f"list?prefix={self.name}-&count=1000"))
                self._equal(sorted(one["id"] for one in found["vectors"]), sorted(self.rows))
            case "filter":
                query = {"vector": [1.0] * DIMENSIONS, "topK": 100, "filter": {"round": one.number}}
                query |= {"returnMetadata": "all"}
                found = (await client.call("POST", self.path("query"), orjson.dumps(query)))["matches"]
                self._same(found, [id for id in self.rows if self.rows[id] == one.number])
            case _:
                await self._nearest(client, ids[0], before.get(ids[0]))

    async def _nearest(self, client: Client, id: str, before: list[float] | None) -> None:
        """A vector is the nearest to itself; one that is gone is not found where it was."""
        vector = self.values(id) if id in self.rows else before
        if vector is None:
            return
        query = orjson.dumps({"vector": vector, "topK": 2, "returnMetadata": "all", "returnValues": True})
        found = (await client.call("POST", self.path("query"), query))["matches"]
        mine = [one for one in found if one["id"] == id]
        self._same(mine, [id] if id in self.rows else [], values=True)
        if before is not None and id in self.rows and before != vector:
            old = orjson.dumps({"vector": before, "topK": 1, "returnValues": True})
            for one in (await client.call("POST", self.path("query"), old))["matches"]:
                if one["id"] == id and one["values"] == before:
                    raise Stale(f"{id} is found as it was before")

    def _same(self, found: list[Any], ids: list[str], *, values: bool = False) -> None:
        self._equal(sorted(one["id"] for one in found), sorted(ids))
        for one in found:
            self._equal([one["id"], one["metadata"]["round"]], [one["id"], self.rows[one["id"]]])
            if values:
                self._equal([one["id"], *one["values"]], [one["id"], *self.values(one["id"])])

    def _equal(self, found: list[Any], wanted: list[Any]) -> None:
        if found != wanted:
            raise Stale(f"{str(found)[:200]}, not {str(wanted)[:200]}")

    def close(self) -> None:
        """Let go of its connections."""
        for client in self.clients:
            client.close()


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the rounds that were not done yet."""
    done = Trials(results / f"fresh-{seed}.jsonl", replay)
    if numbers := done.wanted(range(trials)):
        with (
            tempfile.TemporaryDirectory(prefix="headrace-fresh-", dir=fast_folder()) as folder,
            crew(Path(folder), services=SERVICES, workers=1, environ=CALMER, level="warning") as some,
        ):
            asyncio.run(_rounds(some, seed, iter(numbers), done.note))
    return done.result(range(trials))


async def _rounds(some: Crew, seed: int, numbers: Iterator[int], note: Callable[[Trial], None]) -> None:
    first = Client(some.ports[0])
    for place in range(INDEX_COUNT):
        config = {"dimensions": DIMENSIONS, "metric": "cosine"}
        await first.call("POST", "", orjson.dumps({"name": f"index-{place}", "config": config}))
    first.close()

    async def live(place: int) -> None:
        name = f"c{place}"
        clients = [Client(port, name) for port in some.ports]
        person = Person(seed, name, f"index-{place % INDEX_COUNT}", clients)
        try:
            for number in numbers:
                note(await _trial(person, Round.of(seed, number)))
        finally:
            person.close()

    async with asyncio.TaskGroup() as group:
        for place in range(CLIENTS):
            group.create_task(live(place))


async def _trial(person: Person, one: Round) -> Trial:
    started = time.monotonic()
    verdict, text = "kept", ""
    try:
        await person.do(one)
    except Stale as error:
        verdict, text = "stale", str(error)
    except Stuck as error:
        verdict, text = "stuck", str(error)
    except Refused as error:
        verdict, text = "refused", str(error)
    # Rounds run beside each other: each has its share of the time.
    seconds = round((time.monotonic() - started) / CLIENTS, 5)
    return Trial(number=one.number, promise=PROMISE, what=str(one), verdict=verdict, note=text, seconds=seconds)
