"""The protocol of a Worker's binding: bare answers, `{code, error}`, and the ways to say which index."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from service.dialects.vectorize.reading import document_bytes_max
from service.version import VERSION
from storage.limits import CLOUDFLARE
from storage.settings import Settings
from tests.service.conftest import JSON, NDJSON, V2, Answer, Service, axis, limited, serving, vector

BINDING = "/accounts/acc/_binding"
WAIT = {"wait": "true", "timeout": "60"}


def lines(*vectors: dict[str, Any]) -> bytes:
    return b"\n".join(orjson.dumps(one) for one in vectors)


def proxied(operation: str, label: str = "application/json", binding: str = "VECTORIZE") -> dict[str, str]:
    """What miniflare's remote proxy makes of a request."""
    return {
        "MF-URL": f"http://vector-search/{operation}",
        "MF-Binding": binding,
        "MF-Header-content-type": label,
        "Content-Type": "text/plain;charset=UTF-8",
    }


@pytest.fixture
async def dev(settings: Settings) -> AsyncIterator[Service]:
    """A service as `headrace dev` starts it."""
    async with serving(replace(limited(settings, "cloudflare"), binding_creates_indexes=True)) as one:
        yield one


@pytest.fixture
async def docs(service: Service) -> Service:
    """A service that has the index `docs` with two vectors."""
    await service.create()
    await service.upsert([vector("a", 0, metadata={"kind": "x"}, namespace="n"), vector("b", 1)])
    return service


async def test_every_operation_answers_without_an_envelope(docs: Service) -> None:
    path = f"{BINDING}/docs"
    info = await docs.get(f"{path}/info")
    query = await docs.post(f"{path}/query", {"vector": axis(0), "topK": 1, "returnMetadata": "all"})
    by_id = await docs.post(f"{path}/query", {"vectorId": "b", "topK": 1, "returnMetadata": False})
    found = await docs.post(f"{path}/getByIds", {"ids": ["b", "nobody"]})
    inserted = await docs.ask("POST", f"{path}/insert", data=lines(vector("c", 2)), headers=NDJSON, params=WAIT)
    upserted = await docs.ask("POST", f"{path}/upsert", data=lines(vector("c", 3)), headers=NDJSON, params=WAIT)
    deleted = await docs.post(f"{path}/deleteByIds", {"ids": ["a"]}, params=WAIT)

    assert [one.status for one in (info, query, by_id, found, inserted, upserted, deleted)] == [200] * 7
    assert info.json.keys() == {"dimensions", "vectorCount", "processedUpToDatetime", "processedUpToMutation"}
    assert query.json == {
        "count": 1,
        "matches": [{"id": "a", "score": 1.0, "namespace": "n", "metadata": {"kind": "x"}}],
    }
    assert by_id.json == {"count": 1, "matches": [{"id": "b", "score": 1.0}]}
    assert found.json == [{"id": "b", "values": axis(1)}]
    assert [one.json.keys() for one in (inserted, upserted, deleted)] == [{"mutationId"}] * 3
    assert (await docs.get(f"{path}/info")).json["vectorCount"] == 2


@pytest.mark.parametrize(
    ("operation", "body", "status", "code", "text"),
    [
        ("query", {"vector": [1, 2]}, 400, 40006, "invalid query vector, expected 32 dimensions, and got 2 dimensions"),
        ("getByIds", {"ids": ["x"] * 21}, 400, 40007, "too many ids in payload; max id count is 20, got 21"),
        (
            "insert",
            {"id": "a", "values": [1]},
            400,
            40012,
            'invalid vector for id="a", expected 32 dimensions, and got 1 dimensions',
        ),
        ("nothing", {}, 404, 7003, "Could not route to /accounts/acc/_binding/docs/nothing, perhaps"),
        ("info", {}, 405, 49031, "POST is not allowed on /accounts/acc/_binding/docs/info; use GET"),
    ],
)
async def test_a_refusal_is_a_code_and_an_error(
    docs: Service, operation: str, body: Any, status: int, code: int, text: str
) -> None:
    answer = await docs.post(f"{BINDING}/docs/{operation}", body)

    assert (answer.status, answer.json.keys(), answer.json["code"]) == (status, {"code", "error"}, code)
    assert answer.json["error"].startswith(text)


ADDRESSES = {
    "an address of its own": lambda operation, label: (f"{BINDING}/docs/{operation}", {"Content-Type": label}),
    "miniflare's proxy": lambda operation, label: (f"{BINDING}/docs", proxied(operation, label)),
    "workerd": lambda operation, label: (
        f"/{operation}",
        {"Content-Type": label, "Headrace-Index": "docs", "Headrace-Account": "acc"},
    ),
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    ("operation", "ids_max", "code"), [("query", 0, 40026), ("getByIds", 20, 40007), ("deleteByIds", 100, 40007)]
)
async def test_a_document_may_be_as_large_as_that_of_its_rest_route(
    docs: Service, address: str, operation: str, ids_max: int, code: int
) -> None:
    path, headers = ADDRESSES[address](operation, "application/json")
    most = document_bytes_max(CLOUDFLARE, ids_max=ids_max)
    for size, told in ((most, (400, code)), (most + 1, (413, 49033))):
        body = b'{"ids":["a"' + b',"a"' * 1_000 + b"]}" if ids_max else b'{"vector":1}'
        answer = await docs.ask("POST", path, data=io.BytesIO(body.ljust(size)), headers=headers)

        assert (answer.status, answer.json["code"]) == told, answer.text
        assert answer.json.keys() == {"code", "error"}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("operation", ["insert", "upsert"])
@pytest.mark.parametrize("name", ["docs", "fresh"], ids=["an index", "one that would be made"])
async def test_a_write_may_be_as_large_as_that_of_its_rest_route(
    settings: Settings, address: str, operation: str, name: str
) -> None:
    limits = limited(settings, "cloudflare", upload_bytes_max=20_000)
    path, headers = ADDRESSES[address](operation, "application/x-ndjson")
    path, headers = path.replace("docs", name), {key: one.replace("docs", name) for key, one in headers.items()}
    async with serving(replace(limits, binding_creates_indexes=True)) as dev:
        await dev.create()
        too_large = await dev.ask("POST", path, data=lines(vector("a")).ljust(20_001), headers=headers)
        fits = await dev.ask("POST", path, data=lines(vector("a")).ljust(20_000), headers=headers)

    assert (too_large.status, too_large.json["code"]) == (413, 49033)
    assert (fits.status, fits.json.keys()) == (200, {"mutationId"})


async def test_a_worker_may_write_fewer_vectors_at_once_than_others(settings: Settings) -> None:
    async with serving(limited(settings, "cloudflare", binding_vectors_max=2)) as service:
        await service.create()
        body = lines(*(vector(f"v{number}") for number in range(3)))
        path = f"{BINDING}/docs"
        told = NDJSON | {"cf-vector-search-dim-height": "3"}
        wrapped = proxied("insert", "application/x-ndjson") | {"MF-Header-cf-vector-search-dim-height": "3"}
        for answer in (
            await service.ask("POST", f"{path}/insert", data=body, headers=told),
            await service.ask("POST", path, data=body, headers=wrapped),
        ):
            message = "too many vectors in payload; max vector count is 2, got 3"
            assert (answer.status, answer.json) == (400, {"code": 40007, "error": message})
        two = NDJSON | {"cf-vector-search-dim-height": "2"}
        assert (await service.ask("POST", f"{path}/upsert", data=body, headers=two)).status == 200


async def test_a_missing_index_is_refused_with_the_command_that_makes_it(service: Service) -> None:
    path = f"{BINDING}/nowhere"
    for answer in (
        await service.get(f"{path}/info"),
        await service.ask("POST", f"{path}/insert", data=lines(vector("a")), headers=NDJSON),
    ):
        assert (answer.status, answer.json["code"]) == (404, 3000)
        assert 'vectorize.index.not_found - Index name "nowhere"' in answer.json["error"]
        assert "wrangler vectorize create nowhere" in answer.json["error"]


async def test_miniflares_proxy_sends_everything_to_one_address(docs: Service) -> None:
    path = f"{BINDING}/docs"
    info = await docs.ask("GET", path, headers=proxied("info"))
    query = await docs.ask("POST", path, data=orjson.dumps({"vector": axis(1), "topK": 1.0}), headers=proxied("query"))
    written = await docs.ask(
        "POST", path, data=lines(vector("c", 2)), headers=proxied("insert", "application/x-ndjson"), params=WAIT
    )
    refused = await docs.ask("POST", path, data=b'{"ids": []}', headers=proxied("deleteByIds"))
    upgrade = await docs.ask("GET", path)

    assert info.json["vectorCount"] == 2
    assert query.json["matches"] == [{"id": "b", "score": 1.0}]
    assert written.json.keys() == {"mutationId"}
    assert (refused.status, refused.json["code"]) == (400, 40026)
    assert (upgrade.status, upgrade.json["code"]) == (404, 7003)


async def test_one_address_can_stand_for_a_map_of_bindings(docs: Service) -> None:
    await docs.create("notes", 64)

    async def info(binding: str) -> Answer:
        params = {"VECTORIZE": "docs", "NOTES": "notes"}
        return await docs.ask("GET", BINDING, headers=proxied("info", binding=binding), params=params)

    assert (await info("VECTORIZE")).json["dimensions"] == 32
    assert (await info("NOTES")).json["dimensions"] == 64
    unknown = await info("OTHER")
    assert unknown.status == 400
    assert "use /_binding?OTHER=NAME" in unknown.json["error"]


async def test_workerd_names_the_index_in_a_header(docs: Service) -> None:
    named = {"Headrace-Index": "docs", "Headrace-Account": "acc"}

    found = await docs.ask("POST", "/getByIds", data=b'{"ids": ["a"]}', headers=named | JSON)
    elsewhere = await docs.ask("GET", "/info", headers={"Headrace-Index": "docs"})
    unnamed = await docs.ask("GET", "/info")

    assert [one["id"] for one in found.json] == ["a"]
    assert (elsewhere.status, elsewhere.json["code"]) == (404, 3000)
    assert (unnamed.status, unnamed.json["code"]) == (400, 49011)


async def test_without_an_account_in_the_path_it_is_the_local_one(service: Service) -> None:
    document = {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}}
    await service.post(V2.replace("/acc/", "/local/"), document)

    assert (await service.get("/_binding/docs/info")).json == {"dimensions": 32, "vectorCount": 0}
    status = await service.get("/_binding")
    assert status.json == {"headrace": VERSION, "account": "local", "createsIndexes": False}


async def test_a_server_can_make_every_write_wait(settings: Settings) -> None:
    async with serving(replace(limited(settings, "cloudflare"), writes_wait=True)) as patient:
        await patient.create()
        for number, path in enumerate(("docs/upsert", f"{BINDING}/docs/upsert")):
            await patient.write(path, [vector(f"v{number}")], wait=False)
            assert (await patient.get("docs/info")).result["vectorCount"] == number + 1


async def test_in_dev_the_first_write_makes_the_index(dev: Service) -> None:
    path = f"{BINDING}/fresh"
    early = await dev.get(f"{path}/info")
    first = await dev.ask(
        "POST", f"{path}/upsert", data=lines(vector("a"), vector("b", 1)), headers=NDJSON, params=WAIT
    )
    second = await dev.ask("POST", f"{path}/insert", data=lines(vector("c", 2)), headers=NDJSON, params=WAIT)
    query = await dev.post(f"{path}/query", {"vector": axis(1), "topK": 1})

    assert early.status == 404
    assert [first.status, second.status] == [200, 200]
    assert query.json["matches"] == [{"id": "b", "score": 1.0}]
    assert (await dev.get("fresh")).result["config"] == {"dimensions": 32, "metric": "cosine"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lines(vector("a"), {"id": "b", "values": [1.0]}), 40012),
        (lines({"id": "a", "values": [1.0]}), 3003),
        (b"not json", 40023),
        (b"", 40023),
    ],
    ids=["of two lengths", "too few dimensions", "no json", "empty"],
)
async def test_a_first_write_that_is_refused_leaves_no_index_behind(dev: Service, body: bytes, code: int) -> None:
    answer = await dev.ask("POST", f"{BINDING}/fresh/insert", data=body, headers=NDJSON)

    assert (answer.status, answer.json["code"]) == (400, code)
    assert (await dev.get(V2)).result == []


async def test_in_dev_the_rest_api_still_makes_no_index(dev: Service) -> None:
    assert (await dev.upsert([vector("a")], "fresh")).code == 3000
    assert (await dev.ask("POST", f"{BINDING}/no.name/insert", data=lines(vector("a")))).json["code"] == 3001


async def test_the_token_is_asked_for(settings: Settings) -> None:
    async with serving(replace(settings, token="secret")) as locked:
        for path in ("/_binding", "/_binding/docs/info", "/info", f"{BINDING}/docs/info"):
            refused = await locked.get(path)
            assert (refused.status, refused.json) == (401, {"code": 10000, "error": "Authentication error"})
        assert (await locked.get("/_binding", headers={"Authorization": "Bearer secret"})).status == 200
