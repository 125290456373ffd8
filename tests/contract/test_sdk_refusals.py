"""What the official Python SDK makes of a refusal, and what we make of the SDK's retries.

Where a test is about retries, the wire is stubbed and nothing else: `LosesAnswers` delivers the request and loses the
answer, which is what a retry is for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cloudflare import APIStatusError, AuthenticationError, BadRequestError, Cloudflare, NotFoundError, RateLimitError

from tests.contract.program import ACCOUNT, TOKEN, Program, axis, ndjson, running
from tests.contract.sdk import Index, ids, refusal

# The SDK's own insert and upsert hand bytes to a layer of the SDK that no longer wants them this way.
pytestmark = pytest.mark.filterwarnings("ignore:Passing raw bytes as `body` is deprecated:DeprecationWarning")
GUARD = "the token"


class LosesAnswers(httpx.BaseTransport):
    """Delivers every request, and loses the first answers on their way back."""

    def __init__(self, answers: int) -> None:
        self.delivered: list[httpx.Request] = []
        self._to_lose = answers
        self._wire = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._wire.handle_request(request)
        self.delivered.append(request)
        if self._to_lose:
            self._to_lose -= 1
            response.read()
            response.close()
            raise httpx.ReadError("the connection broke before the answer came", request=request)
        return response

    def close(self) -> None:
        self._wire.close()


REFUSALS = [
    pytest.param(
        lambda index: index.create(), 3002, 'vectorize.index.duplicate_name - Index name "{name}"', id="duplicate index"
    ),
    pytest.param(
        lambda index: Index(index.client, "Upper").create(), 3001, "vectorize.index.invalid_name", id="index name"
    ),
    pytest.param(
        lambda index: Index(index.client, "other").create({"dimensions": 1537, "metric": "cosine"}),
        3003,
        "vectorize.index.invalid_config - Dimensions must be in range: [32, 1536]",
        id="dimensions",
    ),
    pytest.param(
        lambda index: index.upsert(body=ndjson({"id": "a", "values": [1.0, 2.0]})),
        40012,
        'invalid vector for id="a", expected 32 dimensions, and got 2 dimensions',
        id="dimensions of a vector",
    ),
    pytest.param(
        lambda index: index.insert(body=ndjson({"id": "x" * 65, "values": axis(0)})),
        40008,
        "id too long; max is 64 bytes, got 65 bytes",
        id="length of an id",
    ),
    pytest.param(lambda index: index.insert(body=b"\n"), 40023, "", id="empty batch"),
    pytest.param(
        lambda index: index.query(vector=[1.0]),
        40006,
        "invalid query vector, expected 32 dimensions, and got 1 dimensions",
        id="dimensions of a query",
    ),
    pytest.param(
        lambda index: index.query(vector=axis(0), top_k=101), 40025, "max top K is 100, but got 101", id="top k"
    ),
    pytest.param(
        lambda index: index.query(vector=axis(0), top_k=51, return_values=True),
        40025,
        "with returnValues=true or returnMetadata=all, max top K is 50, but got 51",
        id="top k with values",
    ),
    pytest.param(
        lambda index: index.query(vector=axis(0), extra_body={"vectorId": "a"}), 40026, "", id="vector and vector id"
    ),
    pytest.param(
        lambda index: index.get_by_ids(ids=["a"] * 21),
        40007,
        "too many ids in payload; max id count is 20, got 21",
        id="ids to get",
    ),
    pytest.param(
        lambda index: index.delete_by_ids(ids=["a"] * 101),
        40007,
        "too many ids in payload; max id count is 100, got 101",
        id="ids to delete",
    ),
    pytest.param(lambda index: index.delete_by_ids(), 40026, "", id="no ids"),
    pytest.param(lambda index: index.list_vectors(cursor="made up"), 49002, "", id="cursor"),
    pytest.param(
        lambda index: index.metadata_index_create(property_name="k", index_type="date"), 40026, "", id="index type"
    ),
    pytest.param(lambda index: index.metadata_index_delete(property_name="k"), 40005, "", id="property"),
]


@pytest.mark.parametrize(("call", "code", "message"), REFUSALS)
def test_a_refusal_arrives_as_a_bad_request_with_code_and_message(
    index: Index, call: Callable[[Index], object], code: int, message: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        call(index)

    status, found, text = refusal(caught)
    assert (status, found) == (400, code)
    assert text
    assert text.startswith(message.format(name=index.name))
    assert index.mutations() == []


CALLS: list[Any] = [
    pytest.param(lambda index: index.get(), id="get"),
    pytest.param(lambda index: index.delete(), id="delete"),
    pytest.param(lambda index: index.info(), id="info"),
    pytest.param(lambda index: index.insert(body=ndjson({"id": "a", "values": axis(0)})), id="insert"),
    pytest.param(lambda index: index.upsert(body=ndjson({"id": "a", "values": axis(0)})), id="upsert"),
    pytest.param(lambda index: index.query(vector=axis(0)), id="query"),
    pytest.param(lambda index: index.get_by_ids(ids=["a"]), id="get_by_ids"),
    pytest.param(lambda index: index.delete_by_ids(ids=["a"]), id="delete_by_ids"),
    pytest.param(lambda index: index.list_vectors(), id="list_vectors"),
    pytest.param(
        lambda index: index.metadata_index_create(property_name="k", index_type="string"), id="metadata_index.create"
    ),
    pytest.param(lambda index: index.metadata_index_list(), id="metadata_index.list"),
    pytest.param(lambda index: index.metadata_index_delete(property_name="k"), id="metadata_index.delete"),
]


@pytest.mark.parametrize("call", CALLS)
def test_every_method_tells_an_index_that_never_was_from_one_that_was_deleted(
    client: Cloudflare, index_name: str, call: Callable[[Index], object]
) -> None:
    index = Index(client, index_name)

    with pytest.raises(NotFoundError) as never:
        call(index)
    index.create()
    index.delete()
    with pytest.raises(APIStatusError) as gone:
        call(index)

    assert refusal(never) == (404, 3000, f'vectorize.index.not_found - Index name "{index_name}"')
    assert refusal(gone) == (410, 3005, f'vectorize.index.deleted - Index name "{index_name}" was deleted')


def test_a_path_that_does_not_exist_is_not_found_in_the_same_form(client: Cloudflare) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.get(f"/accounts/{ACCOUNT}/vectorize/v2/nothing", cast_to=object)

    assert [error.code for error in caught.value.errors] == [7003, 7000]
    assert all(error.message for error in caught.value.errors)


@pytest.fixture
def unlucky(program: Program, index: Index) -> Iterator[tuple[Index, LosesAnswers]]:
    """The index through a client whose first two answers are lost; the SDK sends three times in all."""
    wire = LosesAnswers(2)
    with Cloudflare(api_token=TOKEN, base_url=program.base_url, http_client=httpx.Client(transport=wire)) as client:
        yield Index(client, index.name), wire


def test_an_upsert_that_the_sdk_repeats_is_there_once(unlucky: tuple[Index, LosesAnswers]) -> None:
    index, wire = unlucky

    index.settle(index.upsert(body=ndjson({"id": "a", "values": axis(0)})))

    assert [request.headers["x-stainless-retry-count"] for request in wire.delivered[:3]] == ["0", "1", "2"]
    assert index.info().vector_count == 1
    assert ids(index.query(vector=axis(0))) == ["a"]
    assert [one["counts"]["inserted"] for one in index.mutations()] == [1, 0, 0]


def test_an_insert_that_the_sdk_repeats_changes_nothing_the_second_time(
    unlucky: tuple[Index, LosesAnswers],
) -> None:
    index, _ = unlucky

    index.settle(index.insert(body=ndjson({"id": "a", "values": axis(0)}, {"id": "b", "values": axis(1)})))

    assert index.info().vector_count == 2
    assert [(one["counts"]["inserted"], one["counts"]["ignored"]) for one in index.mutations()] == [
        (2, 0),
        (0, 2),
        (0, 2),
    ]


def test_a_repeated_write_with_an_idempotency_key_is_one_mutation(unlucky: tuple[Index, LosesAnswers]) -> None:
    index, wire = unlucky
    key = {"Idempotency-Key": "monday's batch"}

    written = index.upsert(body=ndjson({"id": "a", "values": axis(0)}), extra_headers=key)
    index.settle(written)

    assert [request.headers["Idempotency-Key"] for request in wire.delivered[:3]] == ["monday's batch"] * 3
    assert [one["mutationId"] for one in index.mutations()] == [written.mutation_id]


def test_a_refusal_is_not_repeated(program: Program, index_name: str) -> None:
    wire = LosesAnswers(0)
    with Cloudflare(api_token=TOKEN, base_url=program.base_url, http_client=httpx.Client(transport=wire)) as client:
        index = Index(client, index_name)
        index.create()
        with pytest.raises(BadRequestError):
            index.create()
        with pytest.raises(NotFoundError):
            Index(client, "never-made").get()

    assert [request.method for request in wire.delivered] == ["POST", "POST", "GET"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server with a token and a short queue."""
    folder = tmp_path_factory.mktemp("guarded")
    environ = {"HEADRACE_TOKEN": GUARD, "HEADRACE_QUEUE_MUTATIONS_MAX": "3"}
    with running(folder, "--profile", "cloudflare", environ=environ) as one:
        yield one
        assert one.stop() == 0
        assert one.complaints() == []


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param({"api_token": GUARD}, id="token"),
        pytest.param({"api_key": GUARD, "api_email": "me@example.com"}, id="key and e-mail address"),
    ],
)
def test_both_ways_to_show_a_token_are_taken(guarded: Program, credentials: dict[str, Any]) -> None:
    with Cloudflare(**credentials, base_url=guarded.base_url) as client:
        assert client.vectorize.indexes.list(account_id=ACCOUNT).result == []


def test_a_wrong_token_is_an_authentication_error(guarded: Program) -> None:
    with (
        Cloudflare(api_token="another", base_url=guarded.base_url) as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.vectorize.indexes.list(account_id=ACCOUNT)

    assert refusal(caught) == (401, 10000, "Authentication error")


def test_a_full_queue_is_a_rate_limit_that_the_sdk_waits_out(guarded: Program, index_name: str) -> None:
    worker = guarded.child("worker")
    statuses: list[int] = []

    def wake_the_worker(response: httpx.Response) -> None:
        statuses.append(response.status_code)
        if len(statuses) > 1:
            os.kill(worker, signal.SIGCONT)

    wire = httpx.Client(event_hooks={"response": [wake_the_worker]})
    with Cloudflare(api_token=GUARD, base_url=guarded.base_url) as client:
        index = Index(client, index_name)
        index.create()
        os.kill(worker, signal.SIGSTOP)
        try:
            for number in range(3):
                index.upsert(body=ndjson({"id": f"v{number}", "values": axis(0)}))
            patient = client.with_options(http_client=wire)
            with pytest.raises(RateLimitError) as caught:
                Index(patient.with_options(max_retries=0), index_name).upsert(
                    body=ndjson({"id": "x", "values": axis(0)})
                )
            Index(patient, index_name).upsert(body=ndjson({"id": "v3", "values": axis(0)}))
        finally:
            os.kill(worker, signal.SIGCONT)
            wire.close()

        assert refusal(caught)[:2] == (429, 40041)
        assert int(caught.value.response.headers["Retry-After"]) > 0
        assert statuses[:2] == [429, 429]
        index.settle(index.upsert(body=ndjson({"id": "v4", "values": axis(0)})))
        assert [vector.id for vector in index.list_vectors().vectors] == [f"v{number}" for number in range(5)]
