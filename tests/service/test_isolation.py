"""Accounts: what one has makes no difference to any answer that another gets, and is in none of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from yarl import URL

from storage.access import open_tokens
from storage.settings import Settings
from storage.tokens import Token, parse_grant, token_hash, token_id
from tests.service.conftest import JSON, NDJSON, Answer, Service, axis, limited, serving

MARK = "kestrel"
"""In everything that the first account has, and in nothing that the second one has or asks for."""
SECRET = "s" * 43
HELD = {
    "first": (f"hr_firstfirst00_{SECRET}", "admin:first"),
    "second": (f"hr_secondsecond_{SECRET}", "admin:second"),
    "part": (f"hr_partpartpart_{SECRET}", "admin:first/open-*"),
}
CHANGING = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # ids of mutations
    rb"|\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+]00:00)"  # moments
    rb'|(?<="nextCursor":")[^"]+|(?<="cursor":")[^"]+'
)


@dataclass
class Client:
    """Somebody with a token, and everything that was answered."""

    service: Service
    account: str
    token: str
    answers: list[Answer] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        kind = NDJSON if isinstance(body, bytes) else JSON
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        url = path if path.startswith("/") else f"/accounts/{self.account}/vectorize/v2/indexes{path and '/'}{path}"
        held = {"Authorization": f"Bearer {self.token}", "User-Agent": "same"}
        answer = await self.service.ask(method, url, data=data, headers=kind | held | headers)
        self.answers.append(answer)
        return answer.json.get("result") if isinstance(answer.json, dict) else answer.json

    async def fill(self, name: str, mark: str, **headers: str) -> str:
        """Make an index with every kind of content; the id of the mutation that wrote its vectors."""
        config = {"dimensions": 32, "metric": "cosine"}
        await self.ask("POST", "", {"name": name, "description": f"{mark} of vectors", "config": config})
        await self.ask("POST", f"{name}/metadata_index/create?wait=true", {"propertyName": mark, "indexType": "string"})
        vectors = [
            {"id": f"{mark}-{n}", "values": axis(n), "namespace": f"{mark}s", "metadata": {mark: f"{mark} {n}"}}
            for n in range(5)
        ] + [{"id": "same", "values": axis(7), "metadata": {"is": mark}}]
        body = b"\n".join(orjson.dumps(vector) for vector in vectors)
        result = await self.ask("POST", f"{name}/upsert?wait=true&timeout=60", body, **headers)
        return str((result or {}).get("mutationId", ""))


@asynccontextmanager
async def shared(settings: Settings) -> AsyncIterator[Service]:
    editor = await open_tokens(settings)
    for text, grant in HELD.values():
        await editor.add(Token(id=token_id(text), name="x", hash=token_hash(text), grants=(parse_grant(grant),)))
    await editor.close()
    async with serving(replace(limited(settings, "relaxed"), ready_lag_max_ms=1)) as service:
        yield service


async def everything(second: Client, stolen: dict[str, str]) -> None:
    """Ask all there is to ask, with own names, with the first account's names, and with what was stolen from it."""
    key = {"Idempotency-Key": "the-same-key"}
    await second.fill("docs", "plover", **key)
    for name in ("docs", f"{MARK}-docs", "none-such"):
        for path in ("", "/info", "/info?latest=true", "/list", "/list?count=2&include=metadata,values", "/mutations"):
            await second.ask("GET", name + path)
        for cursor in (stolen["cursor"], "AAAA"):
            await second.ask("GET", f"{name}/list?count=2&cursor={cursor}")
        await second.ask("GET", f"{name}/mutations/{stolen['mutation']}")
        await second.ask("GET", f"{name}/info?wait_for={stolen['mutation']}&timeout=0.01")
        await second.ask("GET", f"{name}/metadata_index/list")
        await second.ask("POST", f"{name}/get_by_ids", {"ids": ["same", f"{MARK}-1"]})
        await second.ask("POST", f"{name}/count", {"filter": {"is": MARK}})
        for body in (
            {"vector": axis(7), "topK": 50, "returnMetadata": "all", "returnValues": True},
            {"vector": axis(7), "topK": 50, "filter": {MARK: f"{MARK} 1"}},
            {"vector": axis(7), "topK": 50, "namespace": f"{MARK}s"},
            {"vectorId": f"{MARK}-1", "topK": 5},
        ):
            await second.ask("POST", f"{name}/query?explain=true", body)
            await second.ask("POST", f"/accounts/second/_binding/{name}/query", body)
            await second.ask("POST", f"/_binding/{name}/query", body, **{"Headrace-Account": "second"})
    for path in ("/accounts", "/memberships", "/user", "/user/tokens/verify", "/livez", "/healthz", "/no/such"):
        await second.ask("GET", path)
    await second.ask("GET", "")
    await second.ask("POST", "docs/delete_by_filter?wait=true", {"filter": {"is": MARK}})
    await second.ask("POST", "docs/delete_by_ids?wait=true", {"ids": ["same", f"{MARK}-1"]})
    await second.ask("DELETE", f"{MARK}-docs")
    await second.ask("GET", "docs/info?latest=true")


async def trespass(second: Client) -> None:
    """Ask in the first account's name, in every way to say so."""
    for name in ("docs", f"{MARK}-docs", "none-such"):
        base = f"/accounts/first/vectorize/v2/indexes/{name}"
        for path in ("", "/info", "/list", "/mutations", "/metadata_index/list"):
            await second.ask("GET", base + path)
        for path in ("query", "get_by_ids", "count", "insert", "upsert", "delete_by_ids", "delete_by_filter"):
            await second.ask("POST", f"{base}/{path}", {"ids": ["same"], "vector": axis(1)})
        await second.ask("DELETE", base)
        await second.ask("POST", f"/accounts/first/_binding/{name}/query", {"vector": axis(1)})
        await second.ask("POST", f"/_binding/{name}/query", {"vector": axis(1)}, **{"Headrace-Account": "first"})
        named = {"Headrace-Account": "first", "Headrace-Index": name}
        await second.ask("POST", "/query", {"vector": axis(1)}, **named)
        proxied = named | {"MF-URL": "http://x/query", "MF-Header-content-type": "application/json"}
        await second.ask("POST", f"/_binding/{name}", {"vector": axis(1)}, **proxied)
    for path in ("/accounts/first", "/accounts/first/vectorize/v2/indexes", "/metrics"):
        await second.ask("GET", path)
    await second.ask("POST", "/accounts/first/vectorize/v2/indexes", {"name": "mine", "config": {"preset": "x"}})


def comparable(answer: Answer) -> tuple[int, bytes]:
    # A cursor that somebody handed over is known for one of this service; nothing that it shows is.
    text = answer.text.replace(b"belongs to another index", b"is not one that this service made")
    return answer.status, CHANGING.sub(b"#", text)


async def story(settings: Settings, *, with_first: bool) -> tuple[Client, Client]:
    """The second account's whole life, beside a first account that has much or nothing."""
    async with shared(settings) as service:
        first = Client(service, "first", HELD["first"][0])
        second = Client(service, "second", HELD["second"][0])
        stolen = {"mutation": "00000000-0000-7000-8000-000000000000", "cursor": "AAAA"}
        if with_first:
            await first.fill(f"{MARK}-docs", MARK)
            stolen["mutation"] = await first.fill("docs", MARK, **{"Idempotency-Key": "the-same-key"})
            page = await first.ask("GET", "docs/list?count=2")
            stolen["cursor"] = page["nextCursor"] if "nextCursor" in page else page["cursor"]
            before = [await first.ask("GET", f"docs/{path}") for path in ("list", "info?latest=true")]
        await everything(second, stolen)
        ordinary = len(second.answers)
        await trespass(second)
        refused = second.answers[ordinary:]
        assert {answer.status for answer in refused} == {403}
        assert len({re.sub(rb'"result_info":null,', b"", one.text) for one in refused}) < 10, "nothing of what exists"
        if with_first:
            assert before == [await first.ask("GET", f"docs/{path}") for path in ("list", "info?latest=true")]
        return first, second


async def test_an_account_gets_the_same_answers_whatever_another_has(settings, tmp_path):
    _, alone = await story(settings, with_first=False)
    first, beside = await story(replace(settings, data=tmp_path / "both"), with_first=True)

    different = [
        (comparable(one), comparable(other))
        for one, other in zip(alone.answers, beside.answers, strict=True)
        if comparable(one) != comparable(other)
    ]
    assert different == []
    assert len(beside.answers) > 140
    # The second account names the mark itself in some of its paths, ids and filters, and may hear it back from there.
    leaks = [
        answer.text
        for answer in beside.answers
        if re.search(rb"kestrel (of|\d)|kestrels", answer.text) and answer.status == 200
    ]
    assert leaks == []
    assert any(MARK.encode() in answer.text for answer in first.answers), "the first account sees its own"


async def test_what_is_wrong_with_one_account_is_told_to_none_but_who_sees_all(settings):
    async with shared(settings) as service:
        first = Client(service, "first", HELD["first"][0])
        await first.fill("docs", MARK)
        await service.running.stop_worker()
        await first.ask("POST", "docs/delete_by_ids?wait=true&timeout=0.05", {"ids": ["same"]})
        for token in (HELD["second"][0], HELD["first"][0], "", "wrong"):
            answer = await service.get("/readyz", headers={"api-key": token})
            assert (answer.status, answer.json) == (503, {"status": "unready"})


async def test_a_token_for_some_indexes_of_an_account_sees_no_others(settings):
    async with shared(settings) as service:
        whole = Client(service, "first", HELD["first"][0])
        part = Client(service, "first", HELD["part"][0])
        await whole.fill(f"{MARK}-docs", MARK)
        await part.fill("open-docs", "plover")

        assert [one["name"] for one in await part.ask("GET", "")] == ["open-docs"]
        assert [one["name"] for one in await whole.ask("GET", "")] == [f"{MARK}-docs", "open-docs"]
        refused = []
        for name in (f"{MARK}-docs", "not-there"):
            await part.ask("GET", f"{name}/info")
            await part.ask("POST", "", {"name": name, "config": {"dimensions": 32, "metric": "cosine"}})
            refused.append([(one.status, one.text) for one in part.answers[-2:]])
        assert [status for status, _ in refused[0]] == [403, 403]
        assert refused[0] == refused[1], "that an index exists is not told"


async def test_no_line_of_the_log_has_what_an_account_stored(settings, capsys, tmp_path: Path):
    async with shared(settings) as service:
        first = Client(service, "first", HELD["first"][0])
        await first.fill("docs", MARK)
        await first.ask("POST", "docs/query?x=hidden", {"vector": axis(7), "topK": 5, "filter": {MARK: f"{MARK} 1"}})
        await first.ask("POST", "docs/query", {"vector": [1], "namespace": f"{MARK}s"})

    logged = capsys.readouterr()
    for word in (MARK, "hidden", SECRET):
        assert word not in logged.out + logged.err


@pytest.mark.parametrize(
    ("trick", "status", "code"),
    [
        ("first%2F..%2Fsecond", 403, 10000),
        ("second%2F..%2Ffirst", 403, 10000),
        ("second/../first", 404, 7003),
        ("%2e%2e", 403, 10000),
        ("first%00", 403, 10000),
        ("FIRST", 403, 10000),
        ("%EF%BD%86irst", 403, 10000),
        ("ｆirst", 400, 49030),
        ("*", 403, 10000),
    ],
)
async def test_no_spelling_of_an_account_is_another(settings, trick, status, code):
    async with shared(settings) as service:
        first = Client(service, "first", HELD["first"][0])
        await first.fill("docs", MARK)
        url = f"{service.url}/accounts/{trick}/vectorize/v2/indexes/docs"
        headers = {"api-key": HELD["second"][0]}
        async with service.session.get(URL(url, encoded=True), headers=headers) as answer:
            text = await answer.text()
            assert (answer.status, orjson.loads(text)["errors"][0]["code"]) == (status, code)
            assert MARK not in text
