"""What the live API does not have: waiting, mutations, idempotency, filters to delete and count by, explanations."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.dialects.vectorize.errors import Code
from storage.settings import Settings
from tests.service.conftest import Service, axis, limited, serving, vector

UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
async def docs(relaxed: Service) -> Service:
    """A relaxed service with one index, `docs`: 32 dimensions, cosine."""
    assert (await relaxed.create()).status == 200
    return relaxed


async def test_a_write_that_waits_is_visible_when_it_is_answered(docs: Service):
    written = await docs.write("docs/insert", [vector("a")])

    assert written.json["messages"] == []
    assert (await docs.get("docs/info")).result["vectorCount"] == 1


async def test_a_wait_that_runs_out_is_200_with_the_mutation_and_a_message(docs: Service):
    await docs.running.stop_worker()

    params = {"wait": "true", "timeout": "0.01"}
    answer = await docs.write("docs/insert", [vector("a")], wait=False, params=params)

    [message] = answer.json["messages"]
    assert message["code"] == Code.WAIT_TIMED_OUT
    assert answer.result["mutationId"] in message["message"]


@pytest.mark.parametrize("params", [{"wait": "maybe"}, {"wait": "1", "timeout": "-1"}, {"wait": "1", "timeout": "nan"}])
async def test_a_wrong_option_is_refused_before_anything_is_written(docs: Service, params: dict[str, str]):
    answer = await docs.write("docs/insert", [vector("a")], wait=False, params=params)

    assert answer.code == Code.PARAMETER_INVALID
    assert (await docs.get("docs/mutations")).result["mutations"] == []


async def test_info_holds_its_answer_back_until_a_mutation_is_applied(docs: Service):
    await docs.running.stop_worker()
    written = await docs.write("docs/insert", [vector("a")], wait=False)
    wanted = written.result["mutationId"]

    waiting = asyncio.create_task(docs.get(f"docs/info?wait_for={wanted}&timeout=60"))
    impatient = await docs.get(f"docs/info?wait_for={wanted}&timeout=0.01")
    await docs.running.start_worker()
    patient = await waiting

    assert impatient.result["vectorCount"] == 0
    assert impatient.json["messages"][0]["code"] == Code.WAIT_TIMED_OUT
    assert patient.result["vectorCount"] == 1
    assert patient.json["messages"] == []


async def test_whoever_waited_for_a_mutation_never_hears_of_an_older_one(docs: Service):
    """T-1 lets `/info` name any of a caller's own mutations; one that was waited for ends that."""
    written = [(await docs.upsert([vector("a")])).result["mutationId"] for _ in range(3)]

    named = [(await docs.get(f"docs/info?wait_for={written[-1]}")).result["processedUpToMutation"] for _ in range(3)]

    assert named == [written[-1]] * 3


async def test_a_mutation_tells_its_state_times_and_counts(docs: Service):
    await docs.upsert([vector("a"), vector("b")])
    written = await docs.write("docs/insert", [vector("b"), vector("c")])
    replaced = await docs.upsert([vector("a")])
    deleted = await docs.post("docs/delete_by_ids?wait=true", {"ids": ["a", "nothing"]})

    async def mutation(answer):
        return (await docs.get(f"docs/mutations/{answer.result['mutationId']}")).result

    inserted = await mutation(written)
    assert (inserted["action"], inserted["state"], inserted["rows"]) == ("insert", "applied", 2)
    assert inserted["counts"] == {"inserted": 1, "replaced": 0, "ignored": 1, "deleted": 0, "missing": 0}
    assert inserted["createdOn"] <= inserted["processedOn"]
    assert (await mutation(replaced))["counts"]["replaced"] == 1
    counts = (await mutation(deleted))["counts"]
    assert (counts["deleted"], counts["missing"]) == (1, 1)


async def test_a_mutation_that_waits_for_the_worker_is_queued(docs: Service):
    await docs.running.stop_worker()
    written = await docs.write("docs/insert", [vector("a")], wait=False)

    status = (await docs.get(f"docs/mutations/{written.result['mutationId']}")).result

    assert (status["state"], status["processedOn"]) == ("queued", None)


@pytest.mark.parametrize("path", [f"docs/mutations/{UNKNOWN}", "docs/mutations/x", f"docs/info?wait_for={UNKNOWN}"])
async def test_a_mutation_that_never_was_is_404(docs: Service, path: str):
    answer = await docs.get(path)

    assert (answer.status, answer.code) == (404, Code.MUTATION_NOT_FOUND)


async def test_mutations_are_listed_newest_first_and_page_by_page(docs: Service):
    written = [(await docs.upsert([vector(f"v{number}")])).result["mutationId"] for number in range(5)]

    first = (await docs.get("docs/mutations?count=2")).result
    second = (await docs.get(f"docs/mutations?count=2&before={first['nextBefore']}")).result
    third = (await docs.get(f"docs/mutations?count=2&before={second['nextBefore']}")).result
    beyond = (await docs.get(f"docs/mutations?before={written[0]}")).result

    pages = [first, second, third]
    assert [one["mutationId"] for page in pages for one in page["mutations"]] == written[::-1]
    assert third["nextBefore"] is None
    assert beyond == {"count": 0, "mutations": [], "nextBefore": None}


async def test_a_repeated_idempotency_key_answers_the_first_mutation_and_writes_nothing(docs: Service):
    key = {"Idempotency-Key": "load-1"}
    first = await docs.upsert([vector("a")], headers=key)
    again = await docs.upsert([vector("a")], headers=key)
    other = await docs.upsert([vector("a")], headers={"Idempotency-Key": "load-2"})

    assert again.result == first.result
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert other.result != first.result
    assert (await docs.get("docs/mutations")).result["count"] == 2


async def test_an_idempotency_key_with_another_body_is_refused_by_a_status_no_sdk_repeats(docs: Service):
    key = {"Idempotency-Key": "load-1"}
    await docs.upsert([vector("a")], headers=key)

    answer = await docs.upsert([vector("b")], headers=key)

    assert (answer.status, answer.code) == (422, Code.IDEMPOTENCY_CONFLICT)


async def test_an_idempotency_key_that_is_too_long_is_refused(docs: Service):
    answer = await docs.upsert([vector("a")], headers={"Idempotency-Key": "k" * 256})

    assert answer.code == Code.PARAMETER_INVALID


async def test_dropped_lines_are_told(docs: Service):
    body = b'oops\n{"id":"a","values":' + str(axis(0)).encode() + b"}\n"

    answer = await docs.ask("POST", "docs/insert?wait=true&unparsable-behavior=discard", data=body)
    strict = await docs.ask("POST", "docs/insert?unparsable-behavior=error", data=body)
    unknown = await docs.ask("POST", "docs/insert?unparsable-behavior=ignore", data=body)

    [message] = answer.json["messages"]
    assert message == {"code": Code.LINES_DROPPED, "message": "1 lines were no JSON objects and were dropped"}
    assert (strict.code, unknown.code) == (Code.BATCH_UNPARSABLE, Code.PARAMETER_INVALID)


async def test_a_batch_large_enough_for_a_thread_is_read_like_a_small_one(docs: Service):
    many = [vector(f"v{number:04}", number % 32, metadata={"n": number}) for number in range(1500)]

    await docs.upsert(many)

    assert (await docs.get("docs/info")).result["vectorCount"] == 1500
    [stored] = (await docs.post("docs/get_by_ids", {"ids": ["v1499"]})).result
    assert stored["metadata"] == {"n": 1499}


async def loaded(docs: Service) -> None:
    await docs.upsert(
        [
            vector(f"v{number}", number, namespace="even" if number % 2 == 0 else "odd", metadata={"n": number})
            for number in range(6)
        ]
    )


async def test_delete_by_filter_removes_what_matches_and_a_dry_run_only_counts(docs: Service):
    await loaded(docs)
    wanted = {"filter": {"n": {"$gte": 2}}, "namespace": "even"}

    dry = await docs.post("docs/delete_by_filter", wanted | {"dry_run": True})
    dry_too = await docs.post("docs/delete_by_filter?dry_run=true", wanted)
    before = (await docs.get("docs/info")).result["vectorCount"]
    done = await docs.post("docs/delete_by_filter?wait=true", wanted)
    left = (await docs.get("docs/list")).result

    assert dry.result == dry_too.result == {"count": 2}
    assert before == 6
    assert "mutationId" in done.result
    assert [one["id"] for one in left["vectors"]] == ["v0", "v1", "v3", "v5"]


async def test_delete_by_filter_with_a_namespace_alone_empties_it_and_with_nothing_is_refused(docs: Service):
    await loaded(docs)

    refused = await docs.post("docs/delete_by_filter", {"filter": {}})
    done = await docs.post("docs/delete_by_filter?wait=true", {"namespace": "odd"})

    assert refused.code == Code.BODY_INVALID
    assert done.status == 200
    assert (await docs.post("docs/count", {"namespace": "odd"})).result == {"count": 0}
    assert (await docs.post("docs/count", {})).result == {"count": 3}


async def test_count_takes_filter_and_namespace(docs: Service):
    await loaded(docs)

    counts = [
        (await docs.post("docs/count", asked)).result["count"]
        for asked in (
            {},
            {"namespace": "even"},
            {"filter": {"n": {"$lt": 3}}},
            {"filter": {"n": 1}, "namespace": "even"},
        )
    ]

    assert counts == [6, 3, 3, 0]


async def test_a_listing_takes_prefix_namespace_filter_and_include(docs: Service):
    await loaded(docs)
    await docs.upsert([vector("other")])

    prefixed = (await docs.get("docs/list?prefix=v&count=3")).result
    odd = (await docs.get('docs/list?namespace=odd&filter={"n":{"$gt":1}}&include=values,metadata')).result
    without_values = (await docs.get("docs/list?prefix=v1&include=metadata")).result

    assert (prefixed["totalCount"], prefixed["count"]) == (6, 3)
    assert [one["id"] for one in odd["vectors"]] == ["v3", "v5"]
    assert odd["vectors"][0] == {"id": "v3", "values": axis(3), "namespace": "odd", "metadata": {"n": 3}}
    assert without_values["vectors"] == [{"id": "v1", "namespace": "odd", "metadata": {"n": 1}}]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("cursor=nonsense", Code.CURSOR_INVALID),
        ("include=everything", Code.PARAMETER_INVALID),
        ("filter=[", Code.PARAMETER_INVALID),
        ("filter=[1]", Code.FILTER_INVALID),
        ("count=0", Code.PARAMETER_INVALID),
        ("count=many", Code.PARAMETER_INVALID),
        ("count=-1", Code.PARAMETER_INVALID),
    ],
)
async def test_a_listing_refuses_what_it_cannot_do(docs: Service, query: str, code: Code):
    answer = await docs.get(f"docs/list?{query}")

    assert (answer.status, answer.code) == (400, code)


async def test_a_cursor_of_another_index_is_refused_and_an_old_one_says_to_start_again(settings: Settings):
    async with serving(replace(limited(settings, "relaxed"), cursor_ttl_ms=0)) as service:
        await service.create()
        await service.create("other")
        await service.upsert([vector("a"), vector("b")])
        cursor = (await service.get("docs/list?count=1")).result["nextCursor"]

        foreign = await service.get(f"other/list?cursor={cursor}")
        old = await service.get(f"docs/list?count=1&cursor={cursor}")

        assert foreign.code == Code.CURSOR_INVALID
        assert old.code == Code.CURSOR_EXPIRED
        assert "without" in old.message


@pytest.mark.parametrize("in_body", [True, False])
async def test_a_query_can_be_paged_explained_and_timed_from_body_and_query_string(docs: Service, in_body: bool):
    await loaded(docs)
    options = {"offset": 2, "recall": 1, "explain": True, "include_timing": True}
    body = {"vectorId": "v0", "topK": 2, "namespace": "even"}

    if in_body:
        found = (await docs.post("docs/query", body | options)).result
    else:
        params = {key: str(value).lower() for key, value in options.items()}
        found = (await docs.post("docs/query", body, params=params)).result
    whole = (await docs.post("docs/query", body | {"topK": 5})).result

    assert [match["id"] for match in found["matches"]] == ["v4"]
    assert found["matches"] == whole["matches"][2:]
    assert list(found) == ["count", "matches", "timing", "explain"]
    assert found["explain"]["recall"] == 1
    assert found["explain"]["matching"] == 3
    assert found["explain"]["segments"][0]["plan"] == "exact"
    assert {"parseMs", "snapshotMs", "planMs", "searchMs", "answerMs"} == found["timing"].keys()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"vector": axis(0), "vectorId": "a"}, Code.BODY_INVALID, "exactly one of `vector` and `vectorId`"),
        ({}, Code.BODY_INVALID, "exactly one"),
        ({"vector": None}, Code.BODY_INVALID, "exactly one"),
        (
            {"vector": [1.0]},
            Code.QUERY_VECTOR_INVALID,
            "invalid query vector, expected 32 dimensions, and got 1 dimensions",
        ),
        ({"vector": []}, Code.QUERY_VECTOR_INVALID, "expected 32 dimensions, and got 0 dimensions"),
        ({"vector": [None, *axis(0)[1:]]}, Code.QUERY_VECTOR_INVALID, "null at position 0"),
        ({"vector": [1e39, *axis(0)[1:]]}, Code.QUERY_VECTOR_INVALID, "beyond float32"),
        ({"vector": [[1.0], *axis(0)[1:]]}, Code.QUERY_VECTOR_INVALID, "an array at position 0"),
        ({"vector": "a"}, Code.BODY_INVALID, "vector: invalid type: a string"),
        ({"vector": axis(0), "topK": 0}, Code.TOP_K_INVALID, "at least 1"),
        ({"vector": axis(0), "topK": -3}, Code.TOP_K_INVALID, "-3"),
        ({"vector": axis(0), "topK": 2.5}, Code.TOP_K_INVALID, "2.5"),
        ({"vector": axis(0), "topK": "3"}, Code.BODY_INVALID, "topK: invalid type: string '3', expected"),
        ({"vector": axis(0), "topK": True}, Code.BODY_INVALID, "topK: invalid type: true"),
        (
            {"vector": axis(0), "returnValues": 1},
            Code.BODY_INVALID,
            "returnValues: invalid type: 1, expected a boolean",
        ),
        (
            {"vector": axis(0), "returnMetadata": "some"},
            Code.BODY_INVALID,
            "returnMetadata: unknown variant string 'some', expected one of none, indexed, all",
        ),
        ({"vector": axis(0), "namespace": 5}, Code.BODY_INVALID, "namespace"),
        ({"vector": axis(0), "filter": {"k": {"$near": 1}}}, Code.FILTER_INVALID, "$near"),
        ({"vector": axis(0), "recall": 0}, Code.PARAMETER_INVALID, "recall"),
        ({"vector": axis(0), "offset": -1}, Code.PARAMETER_INVALID, "offset"),
        ({"vectorId": "x" * 600}, Code.ID_TOO_LONG, "600 bytes"),
        (b"[1]", Code.BODY_INVALID, "invalid type: an array, expected an object"),
        (b'{"vector":[1,', Code.BODY_INVALID, "Failed to parse the request body as JSON: "),
        (b"", Code.BODY_INVALID, "EOF while parsing a value"),
    ],
    ids=str,
)
async def test_a_query_that_cannot_be_answered_says_why(docs: Service, body: object, code: Code, words: str):
    answer = await docs.post("docs/query", body)

    assert (answer.status, answer.code) == (400, code), answer.text
    assert words in answer.message
    assert answer.json["result_info"] is None


async def test_an_unknown_vector_id_and_an_unknown_namespace_find_nothing(docs: Service):
    await loaded(docs)

    by_id = await docs.post("docs/query", {"vectorId": "nobody"})
    by_namespace = await docs.post("docs/query", {"vectorId": "v0", "namespace": "nowhere"})

    assert by_id.result == by_namespace.result == {"count": 0, "matches": []}


async def test_too_large_a_topk_is_refused_in_the_live_words(service: Service):
    await service.create()

    heavy = await service.post("docs/query", {"vector": axis(0), "topK": 100, "returnMetadata": "all"})
    light = await service.post("docs/query", {"vector": axis(0), "topK": 101})

    assert (heavy.code, light.code) == (40025, 40025)
    assert heavy.message == (
        "with returnValues=true or returnMetadata=all, max top K is 50, but got 100; for a top K up to 100, "
        "retry with returnValues=false and returnMetadata=indexed"
    )
    assert light.message == "max top K is 100, but got 101"


async def test_vectors_are_got_in_the_order_asked_for_and_each_once(docs: Service):
    await loaded(docs)

    got = (await docs.post("docs/get_by_ids", {"ids": ["v3", "nobody", "v1", "v3"]})).result

    assert [one["id"] for one in got] == ["v3", "v1"]


@pytest.mark.parametrize("path", ["docs/get_by_ids", "docs/delete_by_ids"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"ids": []}, "at least one id"),
        ({}, "missing field `ids`"),
        ({"ids": None}, "ids: invalid type: null, expected an array"),
        ({"ids": [1]}, "ids.0: invalid type: 1, expected a string"),
        ({"ids": [""]}, "an id is empty"),
    ],
    ids=str,
)
async def test_ids_that_are_no_ids_are_refused(docs: Service, path: str, body: object, words: str):
    answer = await docs.post(path, body)

    assert answer.code == Code.BODY_INVALID
    assert words in answer.message


async def test_metadata_comes_back_as_the_bytes_it_is_kept_as(docs: Service):
    metadata = {"z": 1, "a": [1.5, None, "é\u2028"], "big": 2**64 - 1, "nested": {"k": True}}
    await docs.upsert([vector("a", metadata=metadata)])

    whole = await docs.post("docs/query", {"vectorId": "a", "returnMetadata": "all"})

    assert whole.result["matches"][0]["metadata"] == metadata
    assert '"metadata":{"z":1,"a":[1.5,null,"é\u2028"],"big":18446744073709551615,'.encode() in whole.text


async def test_indexed_metadata_has_only_indexed_properties_of_their_type_nested_as_they_were(docs: Service):
    for name, kind in (("a.b", "number"), ("s", "string"), ("flag", "boolean"), ("gone", "string")):
        body = {"propertyName": name, "indexType": kind}
        assert (await docs.post("docs/metadata_index/create?wait=true", body)).status == 200
    await docs.upsert(
        [vector("a", metadata={"a": {"b": 1, "c": 2}, "s": 5, "flag": False, "other": "x"}), vector("b", 1)]
    )

    found = (await docs.post("docs/query", {"vectorId": "a", "returnMetadata": "indexed"})).result

    assert found["matches"][0]["metadata"] == {"a": {"b": 1}, "flag": False}
    assert "metadata" not in found["matches"][1]


async def test_the_same_metadata_index_again_changes_nothing_and_another_type_is_refused(docs: Service):
    body = {"propertyName": "k", "indexType": "string"}
    await docs.post("docs/metadata_index/create?wait=true", body)

    again = await docs.post("docs/metadata_index/create?wait=true", body)
    other = await docs.post("docs/metadata_index/create", body | {"indexType": "number"})
    missing = await docs.post("docs/metadata_index/delete", {"propertyName": "nothing"})
    bad_type = await docs.post("docs/metadata_index/create", body | {"indexType": "date"})
    bad_name = await docs.post("docs/metadata_index/create", body | {"propertyName": "a..b"})

    assert again.status == 200
    assert (other.code, missing.code) == (40004, 40005)
    assert (bad_type.code, bad_name.code) == (40026, Code.PROPERTY_NAME_INVALID)
    assert len((await docs.get("docs/metadata_index/list")).result["metadataIndexes"]) == 1
