"""The traps for whoever implements this API, T-1 to T-26: one test or more for each, named after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import orjson
import pytest

from service.commands.welcome import ACCOUNT
from storage.settings import Settings
from tests.service.conftest import JSON, V2, Answer, Service, axis, limited, serving, vector

ASKS_MAX = 20_000


@pytest.fixture
async def docs(service: Service) -> Service:
    """A service with one index, `docs`: 32 dimensions, cosine."""
    assert (await service.create()).status == 200
    return service


async def poll_until_named(service: Service, mutation: str, agent: str) -> None:
    """Wait for a mutation as langchain-cloudflare does: until `/info` names exactly this one."""
    for _ in range(ASKS_MAX):
        info = (await service.get("docs/info", headers={"User-Agent": agent})).result
        if info.get("processedUpToMutation") == mutation:
            return
    raise AssertionError(f"{mutation} was never named to {agent}")


async def test_t1_every_writer_that_waits_for_its_own_mutation_exactly_hears_of_it(settings: Settings):
    """T-1, with two service processes' worth of stores on one data folder and one caller with eight writers."""
    async with serving(limited(settings, "cloudflare")) as one:
        await one.create()
        async with serving(limited(settings, "cloudflare")) as other:
            services = [one, other]
            agent = {"User-Agent": "langchain"}

            async def write_and_wait(number: int) -> None:
                written = await services[number % 2].upsert([vector(f"v{number}")], wait=False, headers=agent)
                await poll_until_named(services[(number // 2) % 2], written.result["mutationId"], "langchain")

            await asyncio.gather(*(write_and_wait(number) for number in range(8)))


async def test_t1_mutations_that_are_applied_together_are_named_one_after_the_other(docs: Service):
    """T-1: the worker jumps past the first two, and the caller still hears of all three."""
    agent = {"User-Agent": "writer"}
    await docs.running.stop_worker()
    written = [
        (await docs.upsert([vector(f"v{number}")], wait=False, headers=agent)).result["mutationId"]
        for number in range(3)
    ]
    await docs.running.start_worker()
    await docs.get(f"docs/info?wait_for={written[-1]}&timeout=60")

    named = [(await docs.get("docs/info", headers=agent)).result["processedUpToMutation"] for _ in range(3)]
    later = (await docs.get("docs/info", headers=agent)).result["processedUpToMutation"]

    assert named == list(reversed(written))
    assert later in written


async def test_t1_everybody_else_and_whoever_asks_for_the_latest_gets_the_head(docs: Service):
    """T-1"""
    first = await docs.upsert([vector("a")], headers={"User-Agent": "writer"})
    second = await docs.upsert([vector("b")], headers={"User-Agent": "another writer"})

    own = (await docs.get("docs/info", headers={"User-Agent": "writer"})).result
    latest = (await docs.get("docs/info?latest=true", headers={"User-Agent": "writer"})).result
    reader = (await docs.get("docs/info", headers={"User-Agent": "reader"})).result

    assert own["processedUpToMutation"] == first.result["mutationId"]
    assert latest["processedUpToMutation"] == second.result["mutationId"]
    assert reader["processedUpToMutation"] == second.result["mutationId"]
    assert own["vectorCount"] == latest["vectorCount"] == 2
    assert own["processedUpToDatetime"] <= latest["processedUpToDatetime"]


async def test_t2_an_index_that_never_was_is_404_and_a_deleted_one_410(docs: Service):
    """T-2"""
    missing = await docs.get("nothing")
    await docs.ask("DELETE", "docs")
    deleted = await docs.get("docs")

    assert (missing.status, missing.code) == (404, 3000)
    assert missing.message == 'vectorize.index.not_found - Index name "nothing"'
    assert (deleted.status, deleted.code) == (410, 3005)
    assert deleted.message == 'vectorize.index.deleted - Index name "docs" was deleted'
    assert [index["name"] for index in (await docs.get(V2)).result] == []
    assert (await docs.create()).status == 200


async def every_success(docs: Service) -> AsyncIterator[Answer]:
    yield await docs.create("other")
    yield await docs.get(V2)
    yield await docs.get("docs")
    yield await docs.write("docs/insert", [vector("a")])
    yield await docs.upsert([vector("b")])
    yield await docs.post("docs/get_by_ids", {"ids": ["a"]})
    yield await docs.post("docs/query", {"vector": axis(0)})
    yield await docs.get("docs/info")
    yield await docs.get("docs/list")
    yield await docs.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": "string"})
    yield await docs.get("docs/metadata_index/list")
    yield await docs.post("docs/metadata_index/list", {})
    yield await docs.post("docs/metadata_index/delete?wait=true", {"propertyName": "k"})
    yield await docs.post("docs/delete_by_ids", {"ids": ["a"]})
    yield await docs.post("docs/delete_by_filter", {"filter": {"k": 1}})
    yield await docs.post("docs/count", {})
    yield await docs.get("docs/mutations")
    yield await docs.ask("DELETE", "docs")


async def test_t3_every_success_is_exactly_200_in_the_envelope(docs: Service):
    """T-3"""
    async for answer in every_success(docs):
        assert answer.status == 200, answer.text
        assert list(answer.json) == ["result", "success", "errors", "messages"]
        assert (answer.json["success"], answer.json["errors"]) == (True, [])


async def test_t4_a_duplicate_index_is_400_with_the_words_that_scripts_look_for(docs: Service):
    """T-4"""
    answer = await docs.create()

    assert (answer.status, answer.code) == (400, 3002)
    assert answer.message == 'vectorize.index.duplicate_name - Index name "docs"'
    assert "result_info" not in answer.json


@pytest.mark.parametrize(
    "label",
    ["application/x-ndjson", "application/x-ndjson; charset=utf-8", "application/json", "multipart/form-data", "x/y"],
)
async def test_t5_the_content_type_of_a_batch_is_not_trusted(docs: Service, label: str):
    """T-5; every dress of a body is in test_vectors."""
    body = orjson.dumps(vector("a"))

    answer = await docs.ask("POST", "docs/insert?wait=true", data=body, headers={"Content-Type": label})

    assert answer.status == 200
    assert (await docs.get("docs/info")).result["vectorCount"] == 1


async def test_t5_a_batch_may_be_chunked_and_json_may_be_labelled_as_wrangler_does(docs: Service):
    """T-5"""

    async def chunks() -> AsyncIterator[bytes]:
        line = orjson.dumps(vector("a")) + b"\n"
        for start in range(0, len(line), 7):
            yield line[start : start + 7]

    chunked = await docs.ask("POST", "docs/insert?wait=true", data=chunks())
    label = {"Content-Type": "application/json; charset=utf-8;"}
    found = await docs.ask("POST", "docs/get_by_ids", data=b'{"ids":["a"]}', headers=label)

    assert chunked.status == 200
    assert [one["id"] for one in found.result] == ["a"]


@pytest.mark.parametrize(
    "extra",
    [
        {"filter": {}},
        {"filter": None},
        {"namespace": None},
        {"topK": 3.0},
        {"topK": None},
        {"returnMetadata": True},
        {"returnMetadata": False},
        {"returnMetadata": None},
        {"returnValues": None},
        {"vectorId": None},
        {"unknown": {"key": 1}},
    ],
    ids=str,
)
async def test_t6_what_sloppy_clients_send_is_accepted(docs: Service, extra: dict[str, object]):
    """T-6"""
    await docs.upsert([vector("a", namespace=None, metadata={"k": 1})])

    found = (await docs.post("docs/query", {"vector": axis(0)} | extra)).result

    assert found["count"] == 1
    assert ("metadata" in found["matches"][0]) == (extra.get("returnMetadata") is True)


async def test_t6_the_property_of_a_metadata_index_may_be_called_property(docs: Service):
    """T-6"""
    await docs.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": "string"})

    answer = await docs.post("docs/metadata_index/delete?wait=true", {"property": "k"})

    assert answer.status == 200
    assert (await docs.get("docs/metadata_index/list")).result == {"metadataIndexes": []}


async def test_t7_info_has_integers_at_once_and_names_a_mutation_only_when_there_was_one(docs: Service):
    """T-7"""
    fresh = (await docs.get("docs/info")).result
    created = await docs.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": "number"})
    later = (await docs.get("docs/info")).result

    assert fresh == {"dimensions": 32, "vectorCount": 0}
    assert later["processedUpToMutation"] == created.result["mutationId"]
    assert later["vectorCount"] == 0
    assert len(later["processedUpToDatetime"]) == len("2026-04-30T13:25:38.147Z")


async def test_t8_what_a_vector_does_not_have_has_no_key(docs: Service):
    """T-8"""
    await docs.upsert([vector("a", metadata={}, namespace=None)])

    [stored] = (await docs.post("docs/get_by_ids", {"ids": ["a"]})).result
    found = (await docs.post("docs/query", {"vector": axis(0), "returnMetadata": "all"})).result

    assert list(stored) == ["id", "values"]
    assert list(found["matches"][0]) == ["id", "score"]


async def test_t9_the_hidden_limits_are_enforced_in_their_words_and_lifted_where_relaxed(
    docs: Service, tmp_path_factory: pytest.TempPathFactory
):
    """T-9"""
    many = {"ids": [str(number) for number in range(101)]}

    got, deleted = await docs.post("docs/get_by_ids", many), await docs.post("docs/delete_by_ids", many)
    elsewhere = Settings(data=tmp_path_factory.mktemp("relaxed"))
    async with serving(limited(elsewhere, "relaxed")) as relaxed:
        await relaxed.create()
        generous = [await relaxed.post(f"docs/{verb}_by_ids", many) for verb in ("get", "delete")]

    assert (got.code, got.message) == (40007, "too many ids in payload; max id count is 20, got 101")
    assert (deleted.code, deleted.message) == (40007, "too many ids in payload; max id count is 100, got 101")
    assert [answer.status for answer in generous] == [200, 200]


async def test_t10_all_indexes_come_in_one_answer_without_a_cursor(service: Service):
    """T-10"""
    for number in range(120):
        await service.create(f"index-{number:03}")

    answer = await service.get(V2)

    assert [index["name"] for index in answer.result] == [f"index-{number:03}" for number in range(120)]
    assert "result_info" not in answer.json


@pytest.mark.parametrize("spelling", ["string", "String", "STRING"])
async def test_t11_the_type_of_a_metadata_index_is_accepted_in_any_case_and_answered_capitalised(
    docs: Service, spelling: str
):
    """T-11"""
    await docs.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": spelling})

    listed = (await docs.get("docs/metadata_index/list")).result

    assert listed == {"metadataIndexes": [{"propertyName": "k", "indexType": "String"}]}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [1.0, 0.0]), ("euclidean", [2.0, 3.1622777]), ("dot-product", [-3.0, 0.0])],
)
async def test_t12_scores_are_those_of_the_documentation_and_the_best_comes_first(
    service: Service, metric: str, expected: list[float]
):
    """T-12: neither squared nor one minus anything; a dot product is negative."""
    await service.create(metric=metric)
    await service.upsert([vector("across", 1), {"id": "along", "values": [3.0, *axis(0)[1:]]}])

    answer = await service.post("docs/query", {"vector": axis(0)})
    if metric == "euclidean":
        expected = [1.4142135, 2.0]

    assert [match["score"] for match in answer.result["matches"]] == expected
    best = "across" if metric == "euclidean" else "along"
    assert answer.result["matches"][0]["id"] == best


async def test_t13_values_come_back_as_the_float32_that_was_given_and_never_normalised(docs: Service):
    """T-13"""
    values = [58.8, -1e-30, 3.4e38, *[0.1] * 29]
    await docs.upsert([{"id": "a", "values": values}])

    found = await docs.post("docs/query", {"vector": values, "returnValues": True})

    narrow = [float(value) for value in np.array(values, dtype=np.float32)]
    assert found.result["matches"][0]["values"] == narrow
    assert b"[58.79999923706055," in found.text


async def test_t14_the_filter_comes_before_top_k(docs: Service):
    """T-14: the matching vectors are the farthest of all, and still topK of them are found."""
    await docs.post("docs/metadata_index/create", {"propertyName": "far", "indexType": "boolean"})
    near = [vector(f"near{number}", metadata={"far": False}) for number in range(50)]
    far = [vector(f"far{number}", 1 + number, metadata={"far": True}) for number in range(5)]
    await docs.upsert([*near, *far])

    found = (await docs.post("docs/query", {"vector": axis(0), "topK": 5, "filter": {"far": True}})).result

    assert sorted(match["id"] for match in found["matches"]) == [f"far{number}" for number in range(5)]


async def test_t15_an_id_is_unique_across_namespaces_so_an_upsert_moves_it(docs: Service):
    """T-15"""
    await docs.upsert([vector("a", namespace="before")])
    await docs.upsert([vector("a", namespace="after")])

    before = (await docs.post("docs/query", {"vector": axis(0), "namespace": "before"})).result
    after = (await docs.post("docs/query", {"vector": axis(0), "namespace": "after"})).result

    assert before == {"count": 0, "matches": []}
    assert after["matches"] == [{"id": "a", "score": 1.0, "namespace": "after"}]


async def test_t16_a_metadata_index_covers_vectors_that_are_older_and_nothing_does_before_it(docs: Service):
    """T-16: back-filling is our documented superset; without an index a strict filter matches nothing."""
    await docs.upsert([vector("old", metadata={"k": "v"})])

    before = (await docs.post("docs/query", {"vector": axis(0), "filter": {"k": "v"}})).result
    await docs.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": "string"})
    after = (await docs.post("docs/query", {"vector": axis(0), "filter": {"k": "v"}})).result

    assert before["count"] == 0
    assert [match["id"] for match in after["matches"]] == ["old"]


async def test_t17_later_pages_show_what_the_first_one_would_have_shown(docs: Service):
    """T-17"""
    await docs.upsert([vector(f"v{number}") for number in range(5)])
    first = (await docs.get("docs/list?count=2")).result
    await docs.upsert([vector("v2a"), vector("v9")])
    await docs.post("docs/delete_by_ids?wait=true", {"ids": ["v3"]})

    second = (await docs.get(f"docs/list?count=2&cursor={first['nextCursor']}")).result
    third = (await docs.get(f"docs/list?count=2&cursor={second['nextCursor']}")).result

    pages = [first, second, third]
    assert [one["id"] for page in pages for one in page["vectors"]] == ["v0", "v1", "v2", "v3", "v4"]
    assert [page["isTruncated"] for page in pages] == [True, True, False]
    assert {page["totalCount"] for page in pages} == {5}
    assert first["cursorExpirationTimestamp"].endswith("000+00:00")
    assert (third["nextCursor"], third["cursorExpirationTimestamp"]) == (None, None)


@pytest.mark.parametrize(("verb", "axis_kept"), [("insert", 1), ("upsert", 2)])
async def test_t18_of_an_id_given_twice_insert_keeps_the_first_and_upsert_the_last(
    docs: Service, verb: str, axis_kept: int
):
    """T-18"""
    await docs.write(f"docs/{verb}", [vector("a", 1), vector("a", 2)])

    [stored] = (await docs.post("docs/get_by_ids", {"ids": ["a"]})).result

    assert stored["values"] == axis(axis_kept)


async def test_t18_a_batch_that_an_sdk_repeats_does_no_harm(docs: Service):
    """T-18"""
    batch = [vector("a", 1, metadata={"k": 1}), vector("b", 2)]
    for verb in ("insert", "insert", "upsert", "upsert"):
        assert (await docs.write(f"docs/{verb}", batch)).status == 200

    assert (await docs.get("docs/info")).result["vectorCount"] == 2
    [stored] = (await docs.post("docs/get_by_ids", {"ids": ["a"]})).result
    assert stored["metadata"] == {"k": 1}


async def test_t19_limits_of_64_are_bytes_not_characters(docs: Service):
    """T-19"""
    fits, too_long = await docs.upsert([vector("é" * 32)]), await docs.upsert([vector("é" * 33)])

    assert fits.status == 200
    assert (too_long.code, too_long.message) == (40008, "id too long; max is 64 bytes, got 66 bytes")


async def test_t20_a_delete_with_a_content_type_and_no_length_works_on_a_connection_that_stays(docs: Service):
    """T-20: as the Python SDK sends it."""
    host, port = docs.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for method, path in (("DELETE", f"{V2}/docs"), ("GET", V2)):
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        body = orjson.loads(await reader.readexactly(int(length.partition(b":")[2])))
        assert head.startswith(b"HTTP/1.1 200")
        assert body["success"] is True
        assert not body["result"]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("PUT", "/docs"), ("DELETE", "/docs"), ("POST", "/docs/get-by-ids")],
)
async def test_t21_the_first_version_of_the_api_says_where_the_second_is(service: Service, method: str, path: str):
    """T-21"""
    answer = await service.ask(method, f"/client/v4/accounts/acc/vectorize/indexes{path}")

    assert (answer.status, answer.code) == (400, 1010)
    assert "vectorize.incorrect_api_version" in answer.message
    assert f"/vectorize/v2/indexes{path.replace('-', '_')}" in answer.message


async def test_t22_a_filter_means_what_arrives_and_nothing_is_guessed_into_it(docs: Service):
    """T-22: wrangler drops a condition with $gte before it sends; what is left is a filter like any other."""
    for name in ("a", "b"):
        await docs.post("docs/metadata_index/create", {"propertyName": name, "indexType": "number"})
    await docs.upsert([vector("x", metadata={"a": 1, "b": 0}), vector("y", metadata={"a": 1, "b": 5})])

    as_meant = (await docs.post("docs/count", {"filter": {"a": 1, "b": {"$gte": 1, "$lt": 9}}})).result
    as_sent = (await docs.post("docs/count", {"filter": {"a": 1}})).result

    assert (as_meant["count"], as_sent["count"]) == (1, 2)


async def test_t23_a_full_queue_is_429_with_the_live_number_and_a_time_to_come_back(settings: Settings):
    """T-23"""
    async with serving(replace(limited(settings, "cloudflare"), queue_mutations_max=1)) as service:
        await service.create()
        await service.running.stop_worker()
        await service.upsert([vector("a")], wait=False)

        refused = await service.upsert([vector("b")], wait=False)

        assert (refused.status, refused.code) == (429, 40041)
        assert int(refused.headers["Retry-After"]) >= 1


async def test_t24_wrangler_can_find_out_who_and_where_it_is(service: Service):
    """T-24"""
    for prefix in ("/client/v4", ""):
        user = (await service.get(f"{prefix}/user")).result
        token = (await service.get(f"{prefix}/user/tokens/verify")).result
        accounts = (await service.get(f"{prefix}/accounts")).result
        memberships = (await service.get(f"{prefix}/memberships?page=1")).result

        assert "@" in user["email"]
        assert token["status"] == "active"
        assert [account["id"] for account in accounts] == [ACCOUNT]
        assert [(one["account"]["id"], bool(one["id"])) for one in memberships] == [(ACCOUNT, True)]


async def test_t25_a_description_that_was_not_given_is_empty_text(service: Service):
    """T-25"""
    created = (await service.create()).result
    as_null = {"name": "other", "description": None, "config": {"dimensions": 32, "metric": "cosine"}}
    other = (await service.post(V2, as_null)).result

    assert list(created) == ["created_on", "modified_on", "name", "description", "config"]
    assert created["description"] == other["description"] == ""
    assert created["config"] == {"dimensions": 32, "metric": "cosine"}
    assert len(created["created_on"]) == len("2026-04-30T13:24:56.907907Z")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, 7003),
        ("GET", "/client/v4/accounts/a%2Fb/vectorize/v2/indexes", {}, 404, 7003),
        ("PATCH", f"{V2}/docs", {}, 405, 49031),
        ("GET", f"{V2}/docs/query", {}, 405, 49031),
        ("POST", f"{V2}/docs/query", JSON | {"Content-Encoding": "gzip"}, 415, 49034),
        ("POST", f"{V2}/docs/query", JSON, 400, 40026),
        ("POST", f"{V2}/docs/query", {"Content-Type": "text/plain"}, 400, 40026),
    ],
)
async def test_t26_what_the_framework_refuses_wears_the_envelope(
    docs: Service, method: str, path: str, headers: dict[str, str], status: int, code: int
):
    """T-26; bytes that are no HTTP are in test_connections, bodies that are too large in test_limits."""
    answer = await docs.ask(method, path, headers=headers, data=b"" if method == "POST" else None)

    assert (answer.status, answer.code) == (status, code), answer.text


async def test_t26_an_unforeseen_error_is_a_500_in_the_envelope(docs: Service, monkeypatch: pytest.MonkeyPatch):
    """T-26"""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a detail that is nobody's business")

    monkeypatch.setattr(docs.running.store, "index", broken)

    answer = await docs.get("docs", headers={"X-Request-Id": "mine-1"})

    assert (answer.status, answer.code) == (500, 49099)
    assert "mine-1" in answer.message
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert b"detail" not in answer.text
