"""Writers that go on whatever is done to the crew, and the comparison of everything acknowledged with a model.

Writers repeat a write under its Idempotency-Key until it is acknowledged,
so nothing is uncertain at the end. The log must hold each write once, those of one writer in its order, and must have
done to the vectors what a dictionary does that is given the same writes in the order of the log.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import orjson

from scripts.trials.promises import check
from scripts.trials.workers_client import Client
from scripts.trials.workers_crew import PATIENCE_S, Crew, Stuck
from scripts.trials.writes import DIMENSIONS, GROUPS, Model, Row, Write, model_of, row_of


@dataclass
class Writer:
    """One writer of one index: what was acknowledged to it, in its order."""

    index: str
    dice: random.Random
    ports: list[int]
    acknowledged: list[tuple[str, Write]] = field(default_factory=list)


@dataclass
class Load:
    """Writers on several indexes and services."""

    crew: Crew
    indexes: tuple[str, ...]
    pause_s: float = 0.0
    """What a writer waits between two writes."""
    writers: list[Writer] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self, seed: int, per_index: int) -> None:
        """Make the indexes and start writing."""
        client = Client(self.crew.ports[0])
        for name in self.indexes:
            config = {"dimensions": DIMENSIONS, "metric": "euclidean"}
            await client.call("POST", "", orjson.dumps({"name": name, "config": config}))
        client.close()
        self.writers = [
            Writer(name, random.Random(f"{seed} {name} {place}"), self.crew.ports)
            for name in self.indexes
            for place in range(per_index)
        ]
        self.go_on()

    def go_on(self) -> None:
        """Start writing, again."""
        self._stopping = False
        self._tasks = [asyncio.create_task(self._write(place, one)) for place, one in enumerate(self.writers)]

    async def end(self) -> None:
        """Every write that was begun is acknowledged after this. Raises what a writer met."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """Raise what a writer met."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _write(self, place: int, writer: Writer) -> None:
        agent = f"writer-{place}"
        clients = [Client(port, agent) for port in writer.ports]
        try:
            while not self._stopping:
                number = next(self._numbers)
                write = Write.at_random(writer.dice, number)
                key = f"write-{number}"
                mutation = await _settled(clients, writer, f"/{writer.index}/{write.action}", write.body(), key)
                writer.acknowledged.append((mutation, write))
                await asyncio.sleep(self.pause_s)
        finally:
            for client in clients:
                client.close()

    @property
    def count(self) -> int:
        """How many writes were acknowledged."""
        return sum(len(one.acknowledged) for one in self.writers)

    async def moves(self, count: int = 20, patience_s: float = PATIENCE_S) -> None:
        """Wait until so many more were acknowledged. Raises Stuck, and what a writer met."""
        goal, deadline = self.count + count, time.monotonic() + patience_s
        while self.count < goal:
            self.check()
            if time.monotonic() > deadline:
                raise Stuck(f"{goal - self.count} of {count} writes are not acknowledged")
            await asyncio.sleep(0.02)

    def newest(self, index: str) -> str:
        """The newest mutation of an index that was acknowledged."""
        return max(one.acknowledged[-1][0] for one in self.writers if one.index == index and one.acknowledged)

    async def applied(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until what is acknowledged now is applied, in every index, as every service says. Raises Stuck."""
        wanted = {name: self.newest(name) for name in self.indexes}
        deadline = time.monotonic() + patience_s
        for port in self.crew.ports:
            client = Client(port)
            try:
                for name, mutation in wanted.items():
                    while (info := await client.call("GET", f"/{name}/info?latest=true")).get(
                        "processedUpToMutation", ""
                    ) < mutation:
                        self.check()
                        if time.monotonic() > deadline:
                            raise Stuck(f"{name}: {mutation} is not applied: {info}")
                        await asyncio.sleep(0.1)
            finally:
                client.close()

    async def compare(self) -> None:
        """Everything that every service says of every index, against the model. Raises Broken, Stuck, Refused."""
        await self.applied()
        for port in self.crew.ports:
            client = Client(port)
            try:
                for name in self.indexes:
                    await _compare(client, name, [one.acknowledged for one in self.writers if one.index == name])
            finally:
                client.close()


async def _settled(clients: list[Client], writer: Writer, path: str, body: bytes, key: str) -> str:
    """Acknowledged by whichever service answers first; a write may be asked of several, one after the other."""
    deadline = time.monotonic() + PATIENCE_S
    last: object = None
    while time.monotonic() < deadline:
        client = writer.dice.choice(clients)
        try:
            status, answer = await client.once("POST", path, body, key, within_s=8.0)
        except (OSError, EOFError) as error:
            last = error
        else:
            if status == 200:
                return str(answer["result"]["mutationId"])
            check(status in (429, 503), f"{path} answered {status}: {answer.get('errors')}")
            last = answer.get("errors")
        await asyncio.sleep(0.05)
    raise Stuck(f"{path} got no answer for {PATIENCE_S:g} s: {last!r}")


async def _compare(client: Client, name: str, writers: list[list[tuple[str, Write]]]) -> None:
    await _compare_vectors(client, name, model_of(name, await mutations_of(client, name), writers))


async def mutations_of(client: Client, name: str) -> list[dict[str, Any]]:
    """The whole log, oldest first."""
    found: list[dict[str, Any]] = []
    before = ""
    while True:
        page = await client.call("GET", f"/{name}/mutations?count=1000{before}")
        found += page["mutations"]
        if page["nextBefore"] is None:
            return found[::-1]
        before = f"&before={page['nextBefore']}"


async def _compare_vectors(client: Client, name: str, model: Model) -> None:
    listed: dict[str, Row] = {}
    page: dict[str, str] = {"include": "values,metadata", "count": "1000"}
    while page:
        answer = await client.call("GET", f"/{name}/list?{urlencode(page)}")
        listed |= {one["id"]: (one["values"], one["metadata"]["group"]) for one in answer["vectors"]}
        page = page | {"cursor": answer["nextCursor"]} if answer["nextCursor"] else {}
    wrong = [id for id in sorted(listed.keys() | model.rows.keys()) if listed.get(id) != model.rows.get(id)]
    check(not wrong, f"{name}: {len(wrong)} differ: {[(id, listed.get(id), model.rows.get(id)) for id in wrong[:2]]}")
    info = await client.call("GET", f"/{name}/info?latest=true")
    check(info["vectorCount"] == len(model.rows), f"{name}: {len(model.rows)} vectors, not {info['vectorCount']}")
    for group in range(0, GROUPS, 9):
        expected = {id for id, (_, own) in model.rows.items() if own == group}
        query = {"vector": row_of(0)[0], "topK": 100, "filter": {"group": group}}
        found = await client.call("POST", f"/{name}/query", orjson.dumps(query))
        check({one["id"] for one in found["matches"]} == expected, f"{name}: group {group} is {expected}: {found}")
