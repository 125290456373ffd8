"""Creating indexes: names, configs and presets, and where the service is mounted."""

from __future__ import annotations

import errno

import pytest

from service.callers import CallerNames, caller_hash
from service.dialects.vectorize.configs import PRESETS
from service.dialects.vectorize.errors import Code
from storage.records import IndexId, Sequence
from storage.settings import Settings
from tests.service.conftest import V2, Service, limited, serving

CONFIG = {"dimensions": 32, "metric": "cosine"}


@pytest.mark.parametrize("name", ["ab", "a1", "a-b_c", "rag-bge-m3-v1", "a" * 64])
async def test_names_of_the_documented_form_are_accepted(service: Service, name: str):
    assert (await service.create(name)).result["name"] == name
    assert (await service.get(name)).result["name"] == name


@pytest.mark.parametrize(
    "name", ["", "a", "A", "aB", "1a", "-a", "a-", "a_", "a.b", "a b", "é1", "a/b", "ab\n", "a" * 65]
)
async def test_other_names_are_refused_and_can_be_nobodys(service: Service, name: str):
    answer = await service.create(name)

    assert (answer.status, answer.code) == (400, 3001)
    assert answer.message.startswith("vectorize.index.invalid_name - ")


@pytest.mark.parametrize("preset", PRESETS)
async def test_presets_stand_for_dimensions_and_metric_and_are_echoed(service: Service, preset: str):
    created = (await service.post(V2, {"name": "docs", "config": {"preset": preset}})).result

    expected = {"dimensions": PRESETS[preset], "metric": "cosine", "preset": preset}
    assert created["config"] == expected
    assert (await service.get("docs")).result == created


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"name": "docs"}, 3003, "vectorize.index.invalid_config - Config must be provided"),
        ({"name": "docs", "config": None}, 3003, "Config must be provided"),
        ({"name": "docs", "config": {}}, 3003, "dimensions and metric"),
        ({"name": "docs", "config": {"preset": "gpt"}}, 3003, "@cf/baai/bge-base-en-v1.5"),
        (
            {"name": "docs", "config": {"dimensions": 31, "metric": "cosine"}},
            3003,
            "Dimensions must be in range: [32, 1536]",
        ),
        (
            {"name": "docs", "config": {"dimensions": "32", "metric": "cosine"}},
            40026,
            "config.dimensions: invalid type",
        ),
        (
            {"name": "docs", "config": {"dimensions": 32, "metric": "dot_product"}},
            40026,
            "config.metric: unknown variant string 'dot_product', expected one of cosine, euclidean, dot-product",
        ),
        ({"config": CONFIG}, 40026, "missing field `name`"),
        ({"name": 5, "config": CONFIG}, 40026, "name: invalid type: 5, expected a string"),
        ({"name": "docs", "config": 5}, 40026, "config: invalid type: 5, expected an object"),
    ],
    ids=str,
)
async def test_a_creation_that_cannot_be_says_why(service: Service, body: object, code: int, words: str):
    answer = await service.post(V2, body)

    assert (answer.status, answer.code) == (400, code)
    assert words in answer.message


async def test_unknown_keys_and_whole_floats_are_accepted(service: Service):
    config = {"dimensions": 64.0, "metric": "euclidean", "embedding_model": "x"}

    created = (await service.post(V2, {"name": "docs", "config": config, "later": 1})).result

    assert created["config"] == {"dimensions": 64, "metric": "euclidean"}


async def test_both_mounts_show_the_same_indexes(service: Service):
    await service.create()

    short = await service.get("/accounts/acc/vectorize/v2/indexes/docs")

    assert short.result == (await service.get("docs")).result


async def test_a_name_that_no_index_can_have_is_not_found(service: Service):
    for name in ("..%2F..%2Fetc", "a%00b", "%FF%FE", "A" * 5000):
        answer = await service.get(name)

        assert (answer.status, answer.code) == (404, 3000), name


@pytest.mark.parametrize("label", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_json_wants_its_content_type_only_where_the_live_service_does(
    service: Service, settings: Settings, label: str | None
):
    """The second service shares the data of the first: only the limits differ."""
    headers = {"Content-Type": label} if label else {}
    body = b'{"name":"docs","config":{"dimensions":32,"metric":"cosine"}}'

    strict = await service.ask("POST", V2, data=body, headers=headers, skip_auto_headers=["Content-Type"])
    async with serving(limited(settings, "relaxed")) as relaxed:
        lax = await relaxed.ask("POST", V2, data=body, headers=headers, skip_auto_headers=["Content-Type"])

    assert (strict.status, strict.code) == (400, Code.BODY_INVALID)
    assert strict.message == "Expected request with `Content-Type: application/json`"
    assert lax.status == 200


async def test_a_request_id_is_kept_when_it_is_sane_and_made_otherwise(service: Service):
    sane = await service.get(V2, headers={"X-Request-Id": "abc-123"})
    mad = await service.get(V2, headers={"X-Request-Id": "a b;<script>"})

    assert sane.headers["X-Request-Id"] == "abc-123"
    assert len(mad.headers["X-Request-Id"]) == 32


def test_a_caller_hears_of_its_newest_unheard_mutation_and_then_of_any():
    names, index = CallerNames(), IndexId("i")
    own = [Sequence(1), Sequence(2)]

    heard = [names.choose(index, b"caller", own) for _ in range(2)]
    repeated = {names.choose(index, b"caller", own) for _ in range(64)}
    newer = names.choose(index, b"caller", [*own, Sequence(3)])
    stranger = names.choose(index, b"stranger", own)

    assert heard == [2, 1]
    assert repeated == {1, 2}
    assert newer == 3
    assert stranger == 2


def test_what_is_remembered_of_callers_is_bounded():
    names = CallerNames(callers_max=2)
    for caller in (b"1", b"2", b"3"):
        names.choose(IndexId("i"), caller, [Sequence(1), Sequence(2)])

    assert names.choose(IndexId("i"), b"3", [Sequence(1), Sequence(2)]) == 1
    assert names.choose(IndexId("i"), b"1", [Sequence(1), Sequence(2)]) == 2


def test_callers_differ_by_token_agent_and_address_and_none_can_be_read_back():
    hashes = {
        caller_hash(token=token, agent=agent, address=address)
        for token in ("t", "u")
        for agent in ("a", "b")
        for address in ("1", "2")
    }

    assert len(hashes) == 8
    assert {len(one) for one in hashes} == {8}


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "Cannot allocate memory")]
)
async def test_a_request_that_there_is_no_memory_for_is_told_to_come_back(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    async def ails(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(service.running.store), "indexes", ails)
    answer = await service.get(V2)

    assert (answer.status, answer.code) == (503, Code.DISK_FAILED)
    assert answer.headers["Retry-After"] == "5"
    assert answer.message == "there is no memory for this request now; try again"
