"""Tests of a search that uses Vectorize, with the fixtures of Headrace: nothing to start, nothing to clean up."""

import json

import pytest
from cloudflare import Cloudflare


def test_a_write_can_be_found_when_it_returns(headrace_index):
    headrace_index.upsert([{"id": "a", "values": [0.5] * 32, "metadata": {"kind": "x"}}])

    [match] = headrace_index.query([0.5] * 32, topK=1, returnMetadata="all")

    assert (match["id"], match["metadata"]) == ("a", {"kind": "x"})


def test_every_test_has_an_index_of_its_own(headrace_index):
    assert headrace_index.info()["vectorCount"] == 0


@pytest.mark.headrace(dimensions=768, metric="euclidean", metadata_indexes={"kind": "string"})
def test_the_mark_says_which_kind_of_index(headrace_index):
    headrace_index.insert({"id": kind, "values": [1.0] * 768, "metadata": {"kind": kind}} for kind in "xy")

    assert [match["id"] for match in headrace_index.query([0.0] * 768, filter={"kind": "y"})] == ["y"]


def test_the_clients_of_the_live_service_work_on_it(headrace_server, headrace_index):
    client = Cloudflare(base_url=headrace_server.base_url, api_token=headrace_server.token)
    indexes = client.vectorize.indexes
    line = json.dumps({"id": "a", "values": [1.0] * 32})
    indexes.upsert(headrace_index.name, account_id=headrace_server.account, body=line)
    headrace_index.settle()

    assert [found["id"] for found in headrace_index.get_by_ids(["a"])] == ["a"]


def test_reset_empties_an_index(headrace_index):
    headrace_index.upsert([{"id": "a", "values": [1.0] * 32}])
    headrace_index.reset()

    assert headrace_index.info()["vectorCount"] == 0
