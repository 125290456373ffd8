"""The official Python SDK, `cloudflare`, against a running server: every Vectorize method it has."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudflare import APIStatusError, AsyncCloudflare, BadRequestError, Cloudflare, omit
from cloudflare.resources.vectorize.indexes import IndexesResource, MetadataIndexResource

from tests.contract.program import ACCOUNT, PATIENCE_S, TOKEN, Program, axis, ndjson
from tests.contract.sdk import SMALL, Index, ids, refusal

# The SDK's own insert and upsert hand bytes to a layer of the SDK that no longer wants them this way.
pytestmark = pytest.mark.filterwarnings("ignore:Passing raw bytes as `body` is deprecated:DeprecationWarning")


@pytest.fixture
async def client_async(program: Program) -> AsyncIterator[AsyncCloudflare]:
    """Its asynchronous twin."""
    async with AsyncCloudflare(api_token=TOKEN, base_url=program.base_url) as one:
        yield one


@pytest.fixture
def words(index: Index) -> Index:
    """Three vectors with metadata, two of them in namespaces, and an index on one property."""
    index.metadata_index_create(property_name="kind", index_type="string")
    index.settle(
        index.upsert(
            body=ndjson(
                {"id": "sea", "values": axis(0), "metadata": {"kind": "water", "depth": 11}},
                {"id": "coast", "values": [0.8, 0.6, *[0] * 30], "namespace": "edge", "metadata": {"kind": "land"}},
                {"id": "hill", "values": axis(1), "namespace": "inland", "metadata": {"kind": "land"}},
            )
        )
    )
    return index


def test_no_vectorize_method_of_the_sdk_is_left_out() -> None:
    """What the tests below call; a method that a newer SDK brings fails here first."""
    assert methods_of(IndexesResource) == {
        *("create", "list", "get", "delete", "info", "insert", "upsert", "query"),
        *("get_by_ids", "delete_by_ids", "list_vectors"),
    }
    assert methods_of(MetadataIndexResource) == {"create", "list", "delete"}


def methods_of(resource: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(resource, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize("prefix", ["/client/v4", "/client/v4/", "", "/"])
def test_the_base_url_may_have_the_prefix_of_the_live_service_or_none(
    program: Program, index_name: str, prefix: str
) -> None:
    with Cloudflare(api_token=TOKEN, base_url=program.url + prefix) as client:
        index = Index(client, index_name)
        created = index.create()

        assert index.get() == created


def test_the_life_of_an_index(client: Cloudflare, index_name: str) -> None:
    index = Index(client, index_name)

    created = index.create({"dimensions": 48, "metric": "euclidean"}, description="words")
    fresh = index.info()
    listed = {one.name: one for one in client.vectorize.indexes.list(account_id=ACCOUNT)}
    removed = index.delete()
    remaining = [one.name for one in client.vectorize.indexes.list(account_id=ACCOUNT)]

    assert (created.name, created.description) == (index_name, "words")
    assert (created.config.dimensions, created.config.metric, created.config.preset) == (48, "euclidean", None)
    assert abs(datetime.now(UTC) - created.created_on) < timedelta(minutes=5)
    assert created.modified_on == created.created_on
    assert (fresh.dimensions, fresh.vector_count) == (48, 0)
    assert (fresh.processed_up_to_mutation, fresh.processed_up_to_datetime) == (None, None)
    assert listed[index_name] == created
    assert removed is None
    assert index_name not in remaining


def test_the_name_of_a_deleted_index_can_be_used_again_and_brings_nothing_back(words: Index) -> None:
    words.delete()
    words.create({"dimensions": 64, "metric": "cosine"})

    assert (words.info().dimensions, words.info().vector_count) == (64, 0)
    assert words.get_by_ids(ids=["sea"]) == []
    assert words.metadata_index_list().metadata_indexes == []


@pytest.mark.parametrize(
    ("preset", "dimensions"),
    [
        ("@cf/baai/bge-small-en-v1.5", 384),
        ("@cf/baai/bge-base-en-v1.5", 768),
        ("@cf/baai/bge-large-en-v1.5", 1024),
        ("openai/text-embedding-ada-002", 1536),
        ("cohere/embed-multilingual-v2.0", 768),
    ],
)
def test_a_preset_stands_for_dimensions_and_metric(
    client: Cloudflare, index_name: str, preset: str, dimensions: int
) -> None:
    created = Index(client, index_name).create({"preset": preset})

    assert (created.config.dimensions, created.config.metric) == (dimensions, "cosine")
    assert created.config.preset == preset
    assert created.description == ""


# The SDK labels both as JSON: bytes go out as they are, text as one JSON string that holds the lines.
BODIES = [pytest.param(lambda body: body, id="bytes"), pytest.param(lambda body: body.decode(), id="text")]


@pytest.mark.parametrize("dress", BODIES)
def test_an_insert_keeps_what_is_there_and_an_upsert_replaces_it(
    index: Index, dress: Callable[[bytes], bytes | str]
) -> None:
    index.settle(index.insert(body=dress(ndjson({"id": "a", "values": axis(0), "metadata": {"round": 1}}))))
    both = ndjson({"id": "a", "values": axis(1), "metadata": {"round": 2}}, {"id": "é", "values": axis(2)})

    index.settle(index.insert(body=dress(both)))
    kept = index.get_by_ids(ids=["a", "é"])
    index.settle(index.upsert(body=dress(ndjson({"id": "a", "values": axis(3), "namespace": "n"}))))
    replaced = index.get_by_ids(ids=["a"])

    assert kept == [
        {"id": "a", "values": axis(0), "metadata": {"round": 1}},
        {"id": "é", "values": axis(2)},
    ]
    assert replaced == [{"id": "a", "values": axis(3), "namespace": "n"}]
    assert index.info().vector_count == 2


@pytest.mark.parametrize("method", ["insert", "upsert"])
def test_lines_that_are_not_vectors_are_refused_or_dropped_as_the_caller_says(index: Index, method: str) -> None:
    write = getattr(index, method)
    body = ndjson({"id": "a", "values": axis(0)}) + b"\nnot json\n"

    with pytest.raises(BadRequestError) as caught:
        write(body=body)
    index.settle(write(body=body, unparsable_behavior="discard"))

    assert refusal(caught)[:2] == (400, 40023)
    assert index.info().vector_count == 1


def test_a_query_without_options_has_the_documented_defaults(words: Index) -> None:
    answer = words.query(vector=axis(0))

    assert ids(answer) == ["sea", "coast", "hill"]
    assert [match.score for match in answer.matches] == pytest.approx([1.0, 0.8, 0.0], abs=1e-6)
    assert [match.values for match in answer.matches] == [None] * 3
    assert [match.metadata for match in answer.matches] == [None] * 3
    assert [match.namespace for match in answer.matches] == [None, "edge", "inland"]


def test_a_query_returns_what_it_is_asked_to(words: Index) -> None:
    [match] = words.query(vector=axis(0), top_k=1, return_values=True, return_metadata="all").matches
    indexed = words.query(vector=axis(0), top_k=2.0, return_metadata="indexed").matches
    none = words.query(vector=axis(0), return_metadata="none", return_values=False).matches

    assert (match.values, match.metadata) == (axis(0), {"kind": "water", "depth": 11})
    assert [one.metadata for one in indexed] == [{"kind": "water"}, {"kind": "land"}]
    assert [one.metadata for one in none] == [None] * 3


def test_values_come_back_as_the_float32_they_are_kept_as(index: Index) -> None:
    index.settle(index.upsert(body=ndjson({"id": "a", "values": [58.8] * 32})))

    [stored] = index.get_by_ids(ids=["a"])
    [match] = index.query(vector=[1.0] * 32, return_values=True).matches

    assert stored["values"] == match.values == [58.79999923706055] * 32


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"kind": "land"}, ["coast", "hill"]),
        ({"kind": {"$ne": "land"}}, ["sea"]),
        ({"kind": {"$in": ["water", "fire"]}}, ["sea"]),
        ({"kind": {"$nin": ["water"]}}, ["coast", "hill"]),
        ({"kind": {"$gte": "m", "$lt": "z"}}, ["sea"]),
        ({"depth": 11}, []),
        ({}, ["sea", "coast", "hill"]),
    ],
    ids=str,
)
def test_a_filter_chooses_before_the_nearest_are_counted(words: Index, condition: object, found: list[str]) -> None:
    assert ids(words.query(vector=axis(0), filter=condition)) == found
    assert ids(words.query(vector=axis(0), filter=condition, top_k=1)) == found[:1]


def test_what_the_sdk_has_no_argument_for_goes_into_the_body(words: Index) -> None:
    edge = words.query(vector=axis(0), extra_body={"namespace": "edge"})
    near = words.query(vector=omit, extra_body={"vectorId": "hill"}, top_k=2)

    assert ids(edge) == ["coast"]
    assert ids(near) == ["hill", "coast"]


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("cosine", {"same": 1.0, "twice": 1.0, "across": 0.0}),
        ("euclidean", {"same": 0.0, "twice": 1.0, "across": 2**0.5}),
        ("dot-product", {"twice": -2.0, "same": -1.0, "across": 0.0}),
    ],
)
def test_every_metric_gives_its_own_scores_best_first(
    client: Cloudflare, index_name: str, metric: str, scores: dict[str, float]
) -> None:
    index = Index(client, index_name)
    index.create({"dimensions": 32, "metric": metric})
    twice = [2 * value for value in axis(0)]
    lines = {"same": axis(0), "twice": twice, "across": axis(1)}
    index.settle(index.upsert(body=ndjson(*({"id": name, "values": values} for name, values in lines.items()))))

    answer = index.query(vector=axis(0))

    assert ids(answer) == list(scores)
    assert [match.score for match in answer.matches] == pytest.approx(list(scores.values()), abs=1e-6)


def test_vectors_are_got_and_deleted_by_id(words: Index) -> None:
    got = words.get_by_ids(ids=["hill", "nothing", "sea"])
    words.settle(words.delete_by_ids(ids=["sea", "nothing"]))

    assert [one["id"] for one in got] == ["hill", "sea"]
    assert words.get_by_ids(ids=["sea"]) == []
    assert ids(words.query(vector=axis(0))) == ["coast", "hill"]
    assert words.info().vector_count == 2


def test_a_listing_walks_through_every_id_once_and_sees_no_later_write(index: Index) -> None:
    written = [f"v{number:02}" for number in range(25)]
    index.settle(index.upsert(body=ndjson(*({"id": one, "values": axis(0)} for one in written))))

    page = index.list_vectors(count=10)
    index.settle(index.delete_by_ids(ids=["v24"]))
    index.settle(index.upsert(body=ndjson({"id": "v15b", "values": axis(0)})))
    walked = [page]
    while page.is_truncated:
        page = index.list_vectors(count=10, cursor=page.next_cursor)
        walked.append(page)

    assert [vector.id for one in walked for vector in one.vectors] == written
    assert [(one.count, one.total_count) for one in walked] == [(10, 25), (10, 25), (5, 25)]
    assert walked[0].cursor_expiration_timestamp > datetime.now(UTC)
    assert walked[-1].next_cursor is None
    assert index.list_vectors().total_count == 25


def test_metadata_indexes_are_made_listed_and_deleted(index: Index) -> None:
    kinds = ("string", "number", "boolean")
    for kind in kinds:
        made = index.metadata_index_create(property_name=f"a_{kind}", index_type=kind)
    index.settle(made)
    listed = index.metadata_index_list().metadata_indexes
    removed = index.metadata_index_delete(property_name="a_number")
    index.settle(removed)
    remaining = index.metadata_index_list().metadata_indexes

    found = {one.property_name: one.index_type.lower() for one in listed}
    assert found == {f"a_{kind}": kind for kind in kinds}
    assert {one.property_name for one in remaining} == {"a_string", "a_boolean"}


async def test_the_asynchronous_client_does_all_of_it(client_async: AsyncCloudflare, index_name: str) -> None:
    indexes: Any = client_async.vectorize.indexes
    here: dict[str, Any] = {"index_name": index_name, "account_id": ACCOUNT}

    async def settle(mutation: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while ((await indexes.info(**here)).processed_up_to_mutation or "") < mutation.mutation_id:
                pass

    created = await indexes.create(account_id=ACCOUNT, name=index_name, config=SMALL)
    await indexes.metadata_index.create(**here, property_name="even", index_type="boolean")
    # Many at a time, over many connections: both processes append to one log.
    written = await asyncio.gather(
        *(
            indexes.upsert(
                **here,
                body=ndjson({"id": f"v{number:02}", "values": axis(number), "metadata": {"even": number % 2 == 0}}),
            )
            for number in range(32)
        )
    )
    await settle(max(written, key=lambda one: one.mutation_id))
    await settle(await indexes.insert(**here, body=ndjson({"id": "v00", "values": axis(9)}).decode()))
    await settle(await indexes.delete_by_ids(**here, ids=["v03"]))

    names = [one.name async for one in indexes.list(account_id=ACCOUNT)]
    nearest = await indexes.query(**here, vector=axis(7), top_k=1, return_metadata="all")
    even = await indexes.query(**here, vector=axis(7), top_k=100, filter={"even": True})
    got: Any = await indexes.get_by_ids(**here, ids=["v00"])
    listed = await indexes.list_vectors(**here)
    properties = await indexes.metadata_index.list(**here)
    await settle(await indexes.metadata_index.delete(**here, property_name="even"))
    await indexes.delete(**here)
    with pytest.raises(APIStatusError) as gone:
        await indexes.get(**here)

    assert created.name in names
    assert len({one.mutation_id for one in written}) == 32
    assert [(one.id, one.metadata) for one in nearest.matches] == [("v07", {"even": False})]
    assert {one.id for one in even.matches} == {f"v{number:02}" for number in range(0, 32, 2)}
    assert got == [{"id": "v00", "values": axis(0), "metadata": {"even": True}}]
    assert [one.id for one in listed.vectors] == [f"v{number:02}" for number in range(32) if number != 3]
    assert [one.property_name for one in properties.metadata_indexes] == ["even"]
    assert refusal(gone)[:2] == (410, 3005)
