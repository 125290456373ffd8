"""A read that takes too long is answered, and what was done for it neither goes on nor piles up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import orjson
import pytest

from service.dialects.vectorize import routes_query, routes_vectors
from service.openapi.document import STATUSES
from storage import deadlines
from storage.backends.sqlite import listing
from storage.deadlines import NEVER, READ_THREADS
from storage.settings import Settings
from tests.conftest import ACCOUNT, WAIT_S
from tests.service.conftest import JSON, Answer, Service, axis, limited, serving, vector

FILTER = {"k": {"$gte": 0}}
READS: dict[str, tuple[str, str, Any]] = {
    "query": ("POST", "docs/query", {"vector": axis(0)}),
    "query of a binding": ("POST", "/accounts/acc/_binding/docs/query", {"vector": axis(0)}),
    "query with a filter": ("POST", "docs/query", {"vector": axis(0), "filter": FILTER}),
    "list": ("GET", f"docs/list?filter={orjson.dumps(FILTER).decode()}", None),
    "count": ("POST", "docs/count", {"filter": FILTER}),
    "count of what would be deleted": ("POST", "docs/delete_by_filter?dry_run=true", {"filter": FILTER}),
}


class Held:
    """Work in threads that waits for the test before it begins in earnest, and what became of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: list[str] = []
        self.let_go = threading.Event()

    def holding(self, honest: Callable[..., Any]) -> Callable[..., Any]:
        def work(*given: Any) -> Any:
            self.begun += 1
            assert self.let_go.wait(WAIT_S)
            try:
                result = honest(*given)
            except Exception as error:
                self.ended.append(type(error).__name__)
                raise
            self.ended.append("done")
            return result

        return work

    async def until_ended(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.ended) < count:  # noqa: ASYNC110 (a thread ends)
                await asyncio.sleep(0.005)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Every search and filter is taken for long, and waits."""
    held = Held()
    monkeypatch.setattr(routes_query, "is_long", lambda _: True)
    monkeypatch.setattr(routes_query, "run", held.holding(routes_query.run))
    for module in (listing, routes_vectors):
        monkeypatch.setattr(module, "matching", held.holding(module.matching))
    yield held
    held.let_go.set()


@pytest.fixture
async def impatient(settings: Settings) -> AsyncIterator[Service]:
    """A service that gives up soon, with one index and one vector in it."""
    async with serving(replace(limited(settings, "relaxed"), query_timeout_ms=50)) as service:
        await service.create()
        await service.upsert([vector("a", metadata={"k": 1})])
        yield service


async def ask(service: Service, read: str) -> Answer:
    method, path, document = READS[read]
    return await service.ask(method, path, data=orjson.dumps(document) if document else None, headers=JSON)


def told(answer: Answer) -> tuple[int, int, str]:
    """Status, number and when to come back."""
    first = answer.json["errors"][0] if "errors" in answer.json else answer.json
    return answer.status, first["code"], answer.headers["Retry-After"]


@pytest.mark.parametrize("read", READS)
async def test_a_read_that_takes_too_long_is_answered_and_its_work_stops(impatient: Service, held: Held, read: str):
    # On a busy machine a thread may not begin in time: that is the next test's.
    while not held.begun:
        assert told(await ask(impatient, read)) == (504, 49024, "5")

    held.let_go.set()
    await held.until_ended(held.begun)
    assert {*held.ended} == {"DeadlinePassed"}


async def test_a_read_that_waits_for_a_thread_until_its_time_is_up_is_never_begun(
    impatient: Service, held: Held, monkeypatch: pytest.MonkeyPatch
):
    with ThreadPoolExecutor(1) as one_thread:
        monkeypatch.setattr(deadlines, "_threads", one_thread)
        one_thread.submit(held.let_go.wait)

        given_up = await asyncio.gather(ask(impatient, "query"), ask(impatient, "query"), ask(impatient, "count"))
        held.let_go.set()
        monkeypatch.setattr(routes_query, "deadline_in", lambda _: NEVER)
        answer = await ask(impatient, "query")

        assert [told(one) for one in given_up] == [(504, 49024, "5")] * 3
        assert [match["id"] for match in answer.result["matches"]] == ["a"]
        assert (held.begun, held.ended) == (1, ["done"])


async def test_writes_and_health_do_not_wait_for_reads_that_take_long(impatient: Service, held: Held):
    while held.begun < READ_THREADS:
        answers = await asyncio.gather(*(ask(impatient, "count") for _ in range(READ_THREADS)))
        assert [told(one) for one in answers] == [(504, 49024, "5")] * READ_THREADS

    # Enough to be parsed and packed in a thread.
    written = await impatient.upsert([vector(f"v{number}", metadata={"k": "x" * 90}) for number in range(1_000)])
    health = [await impatient.get(path) for path in ("/livez", "/healthz", "/readyz")]

    assert not held.ended
    assert (written.status, [one.status for one in health]) == (200, [200, 200, 200])


async def test_an_index_that_takes_long_to_open_is_opened_once_for_all_who_gave_up(
    impatient: Service, monkeypatch: pytest.MonkeyPatch
):
    store, held = impatient.running.store, Held()
    reader = store._indexes.get(store.index(ACCOUNT, "docs")).reader
    monkeypatch.setattr(reader, "_open_small", lambda _: None)
    monkeypatch.setattr(reader, "_open", held.holding(reader._open))
    get = ("docs/get_by_ids", {"ids": ["a"]})
    try:
        answers = await asyncio.gather(
            ask(impatient, "query"), impatient.post(*get), impatient.get("docs/list"), ask(impatient, "count")
        )
        answers.append(await impatient.post("docs/query", {"vectorId": "a"}))

        assert [told(one) for one in answers] == [(504, 49024, "5")] * 5
    finally:
        held.let_go.set()
    await held.until_ended(1)
    async with asyncio.timeout(WAIT_S):
        while (found := await impatient.post(*get)).status == 504:
            pass
    assert [one["id"] for one in found.result] == ["a"]
    assert (held.begun, held.ended) == (1, ["done"])


async def test_every_read_and_nothing_else_is_described_with_the_answer(service: Service):
    paths = (await service.get("/openapi.json")).json["paths"]

    late = {path.rpartition("/")[2] for path, one in paths.items() for how in one.values() if "504" in how["responses"]}

    assert late == {"query", "get_by_ids", "list", "count", "delete_by_filter"}
    assert 504 in STATUSES
