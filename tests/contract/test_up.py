"""`headrace up` as a whole: what one process answers holds in the others, and what was acknowledged survives."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from tests.contract.conftest import CLOUDFLARE_TWICE
from tests.contract.program import PATIENCE_S, Program, axis, eventually, is_alive, ndjson, running

ROUNDS = 300
READERS = 4
DIMENSIONS = 32
SURVIVORS = range(1, 1500, 90)
"""Some of the vectors that the restart test does not delete."""
SMALL_SEALS = (
    *("--seal-bytes", "65536", "--graph-rows-min", "500", "--seal-idle-ms", "200"),
    *("--grace-ms", "500", "--sweep-ms", "500", "--builder-threads", "1"),
)
"""Segments and graphs after some hundred rows, so that a restart meets every kind of file."""


@dataclass
class Api:
    """Plain HTTP to one index: the answers as they are, and connections as a test wants them."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, *, body: bytes | None = None) -> Any:
        async with self.session.request(method, self.url + path, data=body) as response:
            text = await response.read()
            assert response.status == 200, text
            return orjson.loads(text)["result"]

    async def get(self, path: str) -> Any:
        return await self.ask("GET", path)

    async def post(self, path: str, document: object) -> Any:
        return await self.ask("POST", path, body=orjson.dumps(document))

    async def write(self, path: str, *vectors: dict[str, Any]) -> str:
        return str((await self.ask("POST", path, body=ndjson(*vectors)))["mutationId"])

    async def processed(self, mutation: str) -> None:
        """Poll until `/info` names this mutation or a later one."""
        async with asyncio.timeout(PATIENCE_S):
            while ((await self.get("/info?latest=true")).get("processedUpToMutation") or "") < mutation:
                pass


@asynccontextmanager
async def connected(program: Program, name: str, *, fresh: bool = False) -> AsyncIterator[Api]:
    """The API of an index; with `fresh`, every request comes over a connection of its own."""
    connector = aiohttp.TCPConnector(force_close=fresh)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        yield Api(session, f"{program.indexes_url}/{name}")


async def create(api: Api, dimensions: int = DIMENSIONS) -> None:
    indexes, _, name = api.url.rpartition("/")
    body = orjson.dumps({"name": name, "config": {"dimensions": dimensions, "metric": "cosine"}})
    async with api.session.post(indexes, data=body) as response:
        assert response.status == 200, await response.read()


@contextmanager
def twice(folder: Path, *arguments: str) -> Iterator[Program]:
    """A program of the test's own, with two service processes."""
    with running(folder, *CLOUDFLARE_TWICE, *arguments) as program:
        yield program


async def logged(program: Program, what: str, event: str, *, times: int = 1, **values: Any) -> None:
    """Wait, without holding up the load, until the program has logged an event so many times."""
    await asyncio.to_thread(eventually, what, lambda: len(program.events(event, **values)) >= times)


def reader(number: int, expected: list[float], there: bool) -> Any:
    """One way to see whether the last write is there: how to ask, and what must come back."""
    match number % READERS:
        case 0:
            query = {"vector": expected, "topK": 1, "returnValues": True}
            values = [expected] if there else []
            return "/query", query, lambda result: [match["values"] for match in result["matches"]] == values
        case 1:
            found = [{"id": "moving", "values": expected}] if there else []
            return "/get_by_ids", {"ids": ["moving"]}, lambda result: result == found
        case 2:
            return "/list", None, lambda result: result["totalCount"] == len(result["vectors"]) == int(there)
        case _:
            return "/info?latest=true", None, lambda result: result["vectorCount"] == int(there)


async def test_no_process_ever_answers_from_before_what_info_named(program: Program, index_name: str) -> None:
    async with connected(program, index_name) as writer, connected(program, index_name, fresh=True) as readers:
        await create(writer)

        async def look(number: int, expected: list[float], *, there: bool) -> None:
            path, document, holds = reader(number, expected, there)
            result = await (readers.post(path, document) if document else readers.get(path))
            assert holds(result), f"stale answer to {path}: {result}"

        for turn in range(ROUNDS):
            values, there = axis(turn % DIMENSIONS), turn % 5 != 4
            if there:
                mutation = await writer.write("/upsert", {"id": "moving", "values": values})
            else:
                mutation = (await writer.post("/delete_by_ids", {"ids": ["moving"]}))["mutationId"]
            await (readers if turn % 2 else writer).processed(mutation)
            await asyncio.gather(*(look(number, values, there=there) for number in range(2 * READERS)))

    answered = program.events("request.answered", method="POST", status=200)
    queries = [event["process"] for event in answered if event["path"].endswith(f"/{index_name}/query")]
    assert set(queries) == {"service-1", "service-2"}


async def everything_about(api: Api, vectors: np.ndarray) -> dict[str, Any]:
    """Answers of every kind that must be the same after a restart."""
    queries = [{"vector": vector.tolist(), "topK": 20, "returnMetadata": "all"} for vector in vectors[::100]]
    filtered = [query | {"filter": {"even": True, "rank": {"$lt": 700}}} for query in queries]
    spaced = [query | {"namespace": "late"} for query in queries]
    return {
        "index": await api.get(""),
        "info": await api.get("/info?latest=true"),
        "metadata indexes": await api.get("/metadata_index/list"),
        "mutations": await api.get("/mutations?count=100"),
        "ids": await walk(api),
        "some": await api.post("/get_by_ids", {"ids": [f"v{number:04}" for number in range(0, 1400, 70)]}),
        # At recall 1 the plan is exact, and so the answer is one.
        "matches": [await api.post("/query?recall=1", query) for query in queries + filtered + spaced],
        "nearest": [await nearest(api, vectors[number].tolist()) for number in SURVIVORS],
    }


async def nearest(api: Api, vector: list[float]) -> str:
    """The best match at the usual recall, where graphs answer."""
    [match] = (await api.post("/query", {"vector": vector, "topK": 1}))["matches"]
    return str(match["id"])


async def walk(api: Api) -> list[str]:
    """All ids, over as many pages as it takes."""
    listed: list[str] = []
    cursor = ""
    while True:
        page = await api.get(f"/list?count=500{cursor}")
        listed += [vector["id"] for vector in page["vectors"]]
        if not page["isTruncated"]:
            assert page["totalCount"] == len(listed)
            return listed
        cursor = f"&cursor={page['nextCursor']}"


async def test_a_restart_keeps_every_answer(tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).standard_normal((1500, DIMENSIONS)).astype(np.float32)
    lines = [
        {
            "id": f"v{number:04}",
            "values": vector.tolist(),
            "namespace": "late" if number >= 1000 else "early",
            "metadata": {"even": number % 2 == 0, "rank": number},
        }
        for number, vector in enumerate(vectors)
    ]
    with twice(tmp_path, *SMALL_SEALS) as program:
        async with connected(program, "words") as api:
            await create(api)
            await api.post("/metadata_index/create", {"propertyName": "even", "indexType": "boolean"})
            await api.post("/metadata_index/create", {"propertyName": "rank", "indexType": "number"})
            for start in range(0, 1200, 300):
                await api.write("/insert", *lines[start : start + 300])
            mutation = (await api.post("/delete_by_ids", {"ids": [f"v{n:04}" for n in range(0, 900, 9)]}))["mutationId"]
            await api.processed(mutation)
            await logged(program, "a segment is published", "build.published")
            await api.processed(await api.write("/upsert", *lines[1190:]))
            before = await everything_about(api, vectors)
        assert program.stop() == 0

        program.start()
        async with connected(program, "words", fresh=True) as api:
            after = await everything_about(api, vectors)
            again = await api.write("/upsert", {"id": "new", "values": axis(0)})
            await api.processed(again)
            count = (await api.get("/info?latest=true"))["vectorCount"]
        assert program.stop() == 0
        assert program.complaints() == []

    assert after == before
    assert before["nearest"] == [f"v{number:04}" for number in SURVIVORS]
    assert before["info"]["vectorCount"] == len(before["ids"]) == 1400
    assert again > before["info"]["processedUpToMutation"]
    assert count == 1401


@dataclass
class Load:
    """Writers that go on whatever happens, and remember what was acknowledged and what may be there as well."""

    api: Api
    numbers: Iterator[int] = field(default_factory=itertools.count)
    acknowledged: dict[str, str] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    stopping: bool = False
    _goal: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Write one vector after the other until told to stop."""
        while not self.stopping:
            number = next(self.numbers)
            name = f"v{number:05}"
            self.attempted.add(name)
            try:
                mutation = await self.api.write("/upsert", {"id": name, "values": spoke(number)})
            except aiohttp.ClientConnectionError:
                # Refused, or broken before the answer: it may be in the log or not, and is not asked for again.
                continue
            self.acknowledged[name] = mutation
            if len(self.acknowledged) >= self._goal:
                self._reached.set()

    async def more(self, count: int) -> None:
        """Come back when so many more were acknowledged."""
        self._goal = len(self.acknowledged) + count
        self._reached.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._reached.wait()


def spoke(number: int) -> list[float]:
    """Values that tell the number again."""
    return [1.0, float(number), *[0.0] * (DIMENSIONS - 2)]


@asynccontextmanager
async def under_load(api: Api, writers: int = 4) -> AsyncIterator[Load]:
    """Writers run in the block, and have all stopped after it."""
    load = Load(api)
    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(load.run())
        try:
            yield load
        finally:
            load.stopping = True


async def check_nothing_is_lost(api: Api, load: Load) -> None:
    """Everything acknowledged is there, with its values, and nothing that nobody wrote."""
    await api.processed(max(load.acknowledged.values()))
    listed = await walk(api)
    assert load.acknowledged.keys() <= set(listed) <= load.attempted
    assert len(listed) == len(set(listed)) == (await api.get("/info?latest=true"))["vectorCount"]
    for start in range(0, len(listed), 20):
        for stored in await api.post("/get_by_ids", {"ids": listed[start : start + 20]}):
            assert stored["values"] == spoke(int(stored["id"][1:]))


async def test_children_that_are_killed_under_load_come_back_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    victims = ["worker", "service-1", "worker", "service-2"]
    with twice(tmp_path, *SMALL_SEALS) as program:
        async with connected(program, "docs", fresh=True) as api:
            await create(api)
            async with under_load(api) as load:
                for turn, victim in enumerate(victims):
                    await load.more(100)
                    program.kill_child(victim)
                    starts = victims[: turn + 1].count(victim) + 1
                    await logged(program, f"{victim} is back", "child.ready", times=starts, name=victim)
                await load.more(100)
            await check_nothing_is_lost(api, load)
        assert program.stop() == 0

        assert [event["name"] for event in program.events("child.died", exit_code=-9)] == victims
        assert {event["event"] for event in program.complaints()} == {"child.died"}


async def test_a_killed_supervisor_takes_its_children_along_and_frees_the_port(tmp_path: Path) -> None:
    with twice(tmp_path) as program:
        async with connected(program, "docs", fresh=True) as api:
            await create(api)
            async with under_load(api) as load:
                await load.more(100)
                load.stopping = True
                children = [program.child(name) for name in ("service-1", "service-2", "worker")]
                assert all(is_alive(child) for child in children)
                program.end(signal.SIGKILL)
        await asyncio.to_thread(
            eventually, "every child has ended", lambda: not any(is_alive(child) for child in children)
        )
        with socket.socket() as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            successor.bind(("127.0.0.1", program.port))

        program.start()
        async with connected(program, "docs", fresh=True) as api:
            await check_nothing_is_lost(api, load)
        assert program.stop() == 0
        assert {event["event"] for event in program.complaints()} <= {"child.died"}


async def test_a_stop_under_load_is_clean_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    with twice(tmp_path) as program:
        async with connected(program, "docs", fresh=True) as api:
            await create(api)
            async with under_load(api) as load:
                await load.more(50)
                code = await asyncio.to_thread(program.stop)
                load.stopping = True
        program.start()
        async with connected(program, "docs", fresh=True) as api:
            await check_nothing_is_lost(api, load)
        assert program.stop() == 0
        assert program.complaints() == []

    assert code == 0
