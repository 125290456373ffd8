"""Every limit, at its edge and one past it, in both profiles.

Quotas too large to reach in a test are lowered; how far does not matter to the comparison that is tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
import pytest

from service.dialects.vectorize.errors import Code
from storage.limits import PROFILES, Limits
from storage.settings import Settings
from tests.service.conftest import V2, Answer, Service, axis, limited, serving, vector

LOWERED = {
    "indexes_per_account_max": 3,
    "namespaces_per_index_max": 3,
    "vectors_per_index_max": 5,
    "upload_vectors_max": 4,
    "upload_bytes_max": 20_000,
    "get_ids_max": 4,
    "delete_ids_max": 4,
    "metadata_bytes_max": 1_000,
    "description_bytes_max": 100,
    "metadata_indexes_max": 3,
    "filter_bytes_max": 600,
    "filter_key_chars_max": 100,
    "filter_depth_max": 5,
}

Ask = Callable[[Service, int], Awaitable[Answer]]


async def index_name(service: Service, size: int) -> Answer:
    return await service.create("a" * size)


async def most_dimensions(service: Service, size: int) -> Answer:
    return await service.create("sized", dimensions=size)


async def description(service: Service, size: int) -> Answer:
    config = {"dimensions": 32, "metric": "cosine"}
    return await service.post(V2, {"name": "described", "description": "x" * size, "config": config})


async def indexes(service: Service, size: int) -> Answer:
    # One is there already.
    answers = [await service.create(f"index-{number}") for number in range(size - 1)]
    assert all(answer.status == 200 for answer in answers[:-1])
    return answers[-1]


async def vector_id(service: Service, size: int) -> Answer:
    return await service.upsert([vector("é" * (size // 2) + "x" * (size % 2))])


async def namespace(service: Service, size: int) -> Answer:
    return await service.upsert([vector("a", namespace="é" * (size // 2) + "x" * (size % 2))])


async def namespaces(service: Service, size: int) -> Answer:
    return await service.upsert([vector(f"v{number}", namespace=f"n{number}") for number in range(size)])


async def vectors(service: Service, size: int) -> Answer:
    for number in range(size - 1):
        assert (await service.upsert([vector(f"v{number}")])).status == 200
    return await service.upsert([vector(f"v{size - 1}")])


async def metadata(service: Service, size: int) -> Answer:
    return await service.upsert([vector("a", metadata={"k": "x" * (size - len('{"k":""}'))})])


async def uploaded_vectors(service: Service, size: int) -> Answer:
    return await service.upsert([vector(f"v{number}") for number in range(size)])


async def uploaded_bytes(service: Service, size: int) -> Answer:
    body = orjson.dumps(vector("a"))
    return await service.ask("POST", "docs/upsert", data=body + b"\n" * (size - len(body)))


async def ids_to_get(service: Service, size: int) -> Answer:
    return await service.post("docs/get_by_ids", {"ids": [str(number) for number in range(size)]})


async def ids_to_delete(service: Service, size: int) -> Answer:
    return await service.post("docs/delete_by_ids", {"ids": [str(number) for number in range(size)]})


async def top_k(service: Service, size: int) -> Answer:
    return await service.post("docs/query", {"vector": axis(0), "topK": size})


async def top_k_with_values(service: Service, size: int) -> Answer:
    return await service.post("docs/query", {"vector": axis(0), "topK": size, "returnValues": True})


async def offset(service: Service, size: int) -> Answer:
    return await service.post("docs/query", {"vector": axis(0), "offset": size})


async def listed(service: Service, size: int) -> Answer:
    return await service.get(f"docs/list?count={size}")


async def metadata_indexes(service: Service, size: int) -> Answer:
    answers = [
        await service.post("docs/metadata_index/create", {"propertyName": f"p{number}", "indexType": "number"})
        for number in range(size)
    ]
    assert all(answer.status == 200 for answer in answers[:-1])
    return answers[-1]


async def property_name(service: Service, size: int) -> Answer:
    return await service.post("docs/metadata_index/create", {"propertyName": "p" * size, "indexType": "number"})


async def filter_bytes(service: Service, size: int) -> Answer:
    # The documented bound is exclusive: the compact JSON must be shorter than it.
    document = {"k": "x" * (size - 1 - len('{"k":""}'))}
    return await service.post("docs/query", {"vector": axis(0), "filter": document})


async def filter_key(service: Service, size: int) -> Answer:
    return await service.post("docs/query", {"vector": axis(0), "filter": {"k" * size: 1}})


CASES: dict[str, tuple[Ask, Code, int]] = {
    "index_name_bytes_max": (index_name, Code.INDEX_NAME_INVALID, 400),
    "dimensions_max": (most_dimensions, Code.INDEX_CONFIG_INVALID, 400),
    "description_bytes_max": (description, Code.DESCRIPTION_TOO_LONG, 400),
    "indexes_per_account_max": (indexes, Code.INDEX_LIMIT, 400),
    "id_bytes_max": (vector_id, Code.ID_TOO_LONG, 400),
    "namespace_bytes_max": (namespace, Code.NAMESPACE_TOO_LONG, 400),
    "namespaces_per_index_max": (namespaces, Code.NAMESPACE_LIMIT, 400),
    "vectors_per_index_max": (vectors, Code.VECTOR_LIMIT, 400),
    "metadata_bytes_max": (metadata, Code.BATCH_UNPARSABLE, 400),
    "upload_vectors_max": (uploaded_vectors, Code.TOO_MANY, 400),
    "upload_bytes_max": (uploaded_bytes, Code.BODY_TOO_LARGE, 413),
    "get_ids_max": (ids_to_get, Code.TOO_MANY, 400),
    "delete_ids_max": (ids_to_delete, Code.TOO_MANY, 400),
    "top_k_max": (top_k, Code.TOP_K_INVALID, 400),
    "top_k_with_payload_max": (top_k_with_values, Code.TOP_K_INVALID, 400),
    "offset_max": (offset, Code.PARAMETER_INVALID, 400),
    "list_count_max": (listed, Code.PARAMETER_INVALID, 400),
    "metadata_indexes_max": (metadata_indexes, Code.METADATA_INDEX_LIMIT, 400),
    "filter_bytes_max": (filter_bytes, Code.FILTER_INVALID, 400),
    "filter_key_chars_max": (filter_key, Code.FILTER_INVALID, 400),
}
ELSEWHERE = {
    "strict": "tests of filters and of the Content-Type",
    "dimensions_min": "below, because it is a least",
    "binding_vectors_max": "tests of the binding",
    "filter_depth_max": "tests of filters",
    "metadata_index_bytes_max": "below, because it truncates",
    "top_k_default": "below, because it is no bound",
    "list_count_default": "below, because it is no bound",
}


def test_every_limit_has_a_case_here_or_says_where():
    fields = {field.name for field in dataclasses.fields(Limits)}

    assert fields == CASES.keys() | ELSEWHERE.keys()
    assert not CASES.keys() & ELSEWHERE.keys()


@pytest.fixture(params=["cloudflare", "relaxed"])
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def narrow(settings: Settings, profile: str) -> AsyncIterator[Service]:
    """A service whose large quotas are lowered, with one index of 32 dimensions."""
    async with serving(limited(settings, profile, **LOWERED)) as service:
        assert (await service.create()).status == 200
        yield service


def edge(profile: str, name: str) -> int:
    return int(getattr(dataclasses.replace(PROFILES[profile], **LOWERED), name))


@pytest.mark.parametrize("name", CASES)
async def test_a_request_at_the_limit_is_accepted(narrow: Service, profile: str, name: str):
    ask, _, _ = CASES[name]

    answer = await ask(narrow, edge(profile, name))

    assert answer.status == 200, answer.text


@pytest.mark.parametrize("name", CASES)
async def test_a_request_one_past_the_limit_is_refused_by_its_own_number(narrow: Service, profile: str, name: str):
    ask, code, status = CASES[name]

    answer = await ask(narrow, edge(profile, name) + 1)

    assert (answer.status, answer.code) == (status, code), answer.text


async def test_dimensions_below_the_least_are_refused_and_the_least_is_not(narrow: Service, profile: str):
    least = edge(profile, "dimensions_min")

    below, at = await most_dimensions(narrow, least - 1), await most_dimensions(narrow, least)

    assert below.code == Code.INDEX_CONFIG_INVALID
    assert f"range: [{least}, {edge(profile, 'dimensions_max')}]" in below.message
    assert at.status == 200


async def test_topk_and_count_have_the_documented_defaults(narrow: Service):
    await narrow.upsert([vector(f"v{number}") for number in range(4)])

    found = (await narrow.post("docs/query", {"vector": axis(0)})).result
    page = (await narrow.get("docs/list")).result

    assert found["count"] == 4
    assert page["count"] == 4
    assert PROFILES["cloudflare"].top_k_default == PROFILES["relaxed"].top_k_default == 5
    assert PROFILES["cloudflare"].list_count_default == PROFILES["relaxed"].list_count_default == 100


async def test_metadata_answered_as_indexed_is_cut_on_a_character_only_where_the_profile_cuts(
    narrow: Service, profile: str
):
    text = "é" * 40
    await narrow.post("docs/metadata_index/create?wait=true", {"propertyName": "k", "indexType": "string"})
    await narrow.upsert([vector("a", metadata={"k": "x" + text})])

    found = (await narrow.post("docs/query", {"vector": axis(0), "returnMetadata": "indexed"})).result

    expected = "x" + "é" * 31 if profile == "cloudflare" else "x" + text
    assert found["matches"][0]["metadata"] == {"k": expected}
