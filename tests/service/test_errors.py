"""The table of errors is complete, and every kind of failure wears the envelope."""

from __future__ import annotations

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request

from service.dialects.vectorize.envelope import refusal
from service.dialects.vectorize.errors import ANSWERS, Code, Refusal, answer_for
from service.keys import INDEX_NAME, REQUEST_ID
from storage import errors

BRANCHES = {errors.StorageError, errors.Refused, errors.Unavailable, errors.Damaged}
DATA_PATH = "/client/v4/accounts/a/vectorize/v2/indexes/docs/query"
CONTROL_PATH = "/client/v4/accounts/a/vectorize/v2/indexes"


def leaves(kind: type[errors.StorageError]) -> set[type[errors.StorageError]]:
    below = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return set().union(*(leaves(one) for one in below)) if below else {kind}


def in_order(kinds: set[type[errors.StorageError]]) -> list[type[errors.StorageError]]:
    """The same in every process that collects tests: the order of a set of classes is that of their addresses."""
    return sorted(kinds, key=lambda kind: kind.__name__)


def answered(error: Exception, path: str = DATA_PATH):
    request = make_mocked_request("POST", path)
    request[INDEX_NAME] = "docs"
    request[REQUEST_ID] = "r-1"
    response = refusal(request, error)
    return response, orjson.loads(response.body)


def test_every_leaf_of_the_error_tree_has_an_answer_and_nothing_else_has():
    assert leaves(errors.StorageError) - BRANCHES == set(ANSWERS)


def test_no_two_of_our_own_numbers_mean_the_same_as_a_live_one():
    own = [code for code in Code if code >= 49_000]

    assert len(own) == len({int(code) for code in own})
    assert all(code < 50_000 for code in own)


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_every_storage_error_is_answered_in_the_envelope_with_its_row_of_the_table(kind):
    row = ANSWERS[kind]

    response, document = answered(kind("what was found and what would work"))

    assert response.status == row.status
    assert list(document) == ["result", "result_info", "success", "errors", "messages"]
    [entry] = document["errors"]
    assert entry["code"] == row.code
    assert entry["message"] == (row.text.format(name="docs") or "what was found and what would work")


LATER = {
    errors.StoreBusy: (503, "1"),
    errors.StoreFull: (507, "30"),
    errors.StoreFailed: (503, "5"),
    errors.QueueFull: (429, "2"),
    errors.DeadlinePassed: (504, "5"),
}


@pytest.mark.parametrize("kind", in_order(leaves(errors.Unavailable)), ids=lambda kind: kind.__name__)
def test_what_may_work_later_says_when(kind):
    response, _ = answered(kind("busy"))

    assert (response.status, response.headers["Retry-After"]) == LATER[kind]


@pytest.mark.parametrize("kind", in_order(leaves(errors.Damaged)), ids=lambda kind: kind.__name__)
def test_damage_tells_the_sdks_not_to_repeat(kind):
    response, _ = answered(kind("segment x is not what was written"))

    assert response.status == 500
    assert response.headers["x-should-retry"] == "false"


def test_no_refusal_has_a_status_that_the_sdks_would_repeat():
    repeated = {408, 409, 429}

    assert not {ANSWERS[kind].status for kind in leaves(errors.Refused)} & repeated


def test_an_error_that_refines_a_leaf_is_answered_as_the_leaf():
    class NarrowerBusy(errors.StoreBusy):
        pass

    assert answer_for(NarrowerBusy("x")) is ANSWERS[errors.StoreBusy]


def test_errors_about_indexes_have_no_result_info_and_those_about_data_do():
    error = Refusal(Code.BODY_INVALID, "no")

    _, control = answered(error, CONTROL_PATH)
    _, data = answered(error, DATA_PATH)

    assert list(control) == ["result", "success", "errors", "messages"]
    assert data["result_info"] is None


def test_an_unforeseen_error_shows_the_request_id_and_nothing_of_itself():
    response, document = answered(ZeroDivisionError("secret detail"))

    assert response.status == 500
    assert document["errors"][0]["code"] == Code.INTERNAL
    assert "r-1" in document["errors"][0]["message"]
    assert b"secret" not in response.body


def test_a_message_with_half_a_surrogate_pair_is_still_json():
    _, document = answered(Refusal(Code.BODY_INVALID, "id \udcff"))

    assert document["errors"][0]["message"] == "id \\udcff"
