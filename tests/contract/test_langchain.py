"""`langchain-cloudflare` against a running server: create, add, search, get, delete, with and without asyncio.

Its `wait=True` polls `/info` until that names exactly the mutation it wrote, whatever else is written meanwhile. The
polling is left as it is; only the pause between two polls is shortened.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_cloudflare import vectorstores
from langchain_cloudflare.vectorstores import CloudflareVectorize
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from requests import HTTPError

from tests.contract.program import ACCOUNT, PATIENCE_S, TOKEN, Program

DIMENSIONS = 32
POLL_S = 0.01
WRITERS = 8
"""How many wait at once. They look alike to the server: each hears of the others' mutations as well as of its own."""
ROUNDS = 2

FLEET = [
    Document(id="sloop", page_content="a sloop has one mast", metadata={"masts": 1, "rig": "fore"}),
    Document(id="brig", page_content="a brig has two masts", metadata={"masts": 2, "rig": "square"}),
    Document(id="ship", page_content="a full rigged ship has three masts", metadata={"masts": 3, "rig": "square"}),
]


class BagOfWords(Embeddings):
    """Texts that share words are near: every word counts on one axis, chosen by its hash."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in text.split():
            counts[hashlib.sha256(word.encode()).digest()[0] % DIMENSIONS] += 1
        length = math.hypot(*counts)
        return [count / length for count in counts]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation that is never named fails its test before the five minutes of the original are over."""
    monkeypatch.setattr(vectorstores, "DEFAULT_MAX_WAIT_SECONDS", PATIENCE_S)


@pytest.fixture
def store(program: Program, index_name: str) -> CloudflareVectorize:
    """The vector store over an index that does not exist yet."""
    return CloudflareVectorize(
        embedding=BagOfWords(),
        account_id=ACCOUNT,
        api_token=TOKEN,
        base_url=program.base_url,
        index_name=index_name,
        default_wait_seconds=POLL_S,
    )


@pytest.fixture
def fleet(store: CloudflareVectorize) -> CloudflareVectorize:
    """Three documents, one of them in another namespace, and two metadata indexes."""
    store.create_index(dimensions=DIMENSIONS, wait=True)
    store.create_metadata_index("rig", "string", wait=True)
    store.create_metadata_index("masts", "number", wait=True)
    added = store.add_documents(FLEET, namespaces=["yard", "yard", "museum"], wait=True)
    assert added == ["sloop", "brig", "ship"]
    return store


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_an_index_is_made_found_and_removed(store: CloudflareVectorize, index_name: str) -> None:
    created = store.create_index(dimensions=DIMENSIONS, metric="euclidean", description="ships", wait=True)

    assert store.get_index() == created
    assert created["config"] == {"dimensions": DIMENSIONS, "metric": "euclidean"}
    assert created["description"] == "ships"
    assert index_name in [one["name"] for one in store.list_indexes()]
    with pytest.raises(ValueError, match="already exists"):
        store.create_index(dimensions=DIMENSIONS)

    store.delete_index()

    assert index_name not in [one["name"] for one in store.list_indexes()]
    with pytest.raises(HTTPError, match="410"):
        store.get_index()
    # It looks first, and goes on only after a 404 or a 410: the first creation met one, this meets the other.
    store.create_index(dimensions=DIMENSIONS, wait=True)
    assert store.get_index_info() == {"dimensions": DIMENSIONS, "vectorCount": 0}


def test_what_was_added_with_wait_is_found_at_once(fleet: CloudflareVectorize) -> None:
    found = fleet.similarity_search_with_score("a brig has two masts", k=3)

    documents, scores = zip(*found, strict=True)
    assert documents[0].id == "brig"
    assert documents[0].metadata == {"masts": 2, "rig": "square", "_namespace": "yard"}
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert sorted(scores, reverse=True) == list(scores)
    assert {one.id for one in documents} == {"sloop", "brig", "ship"}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        pytest.param({"md_filter": {"rig": "square"}}, {"brig", "ship"}, id="filter on text"),
        pytest.param({"md_filter": {"masts": {"$lt": 3}}}, {"sloop", "brig"}, id="filter on a number"),
        pytest.param({"namespace": "museum"}, {"ship"}, id="namespace"),
        pytest.param({"md_filter": {"rig": "square"}, "namespace": "yard"}, {"brig"}, id="filter and namespace"),
        pytest.param({"md_filter": {"rig": "junk"}}, set(), id="nothing"),
    ],
)
def test_a_search_keeps_to_its_filter_and_namespace(
    fleet: CloudflareVectorize, options: dict[str, Any], found: set[str]
) -> None:
    assert set(ids(fleet.similarity_search("masts", **options))) == found


def test_a_search_returns_metadata_and_values_as_asked(fleet: CloudflareVectorize) -> None:
    plain = fleet.similarity_search("sloop", k=1, return_metadata="none", namespace="yard")
    valued = fleet.similarity_search("a sloop has one mast", return_metadata="indexed", return_values=True)

    assert plain[0].metadata == {"_namespace": "yard"}
    assert valued[0].metadata["rig"] == "fore"
    assert valued[0].metadata["_values"] == pytest.approx(BagOfWords().embed_query("a sloop has one mast"))


def test_a_retriever_searches_like_the_store(fleet: CloudflareVectorize) -> None:
    retriever = fleet.as_retriever(search_kwargs={"md_filter": {"rig": "square"}})

    assert ids(retriever.invoke("a full rigged ship")) == ["ship", "brig"]


def test_documents_without_metadata_come_back_by_id(fleet: CloudflareVectorize) -> None:
    fleet.add_texts(["nothing to say about this one"], ids=["plain"], wait=True)

    [plain, sloop] = fleet.get_by_ids(["plain", "nothing", "sloop"])

    assert (plain.id, set(plain.metadata)) == ("plain", {"_values"})
    assert {key: sloop.metadata[key] for key in ("masts", "rig", "_namespace")} == {
        "masts": 1,
        "rig": "fore",
        "_namespace": "yard",
    }


def test_adding_keeps_a_document_and_upserting_replaces_it(fleet: CloudflareVectorize) -> None:
    changed = Document(id="brig", page_content="a brig was sold", metadata={"rig": "none"})

    fleet.add_documents([changed], wait=True)
    [kept] = fleet.get_by_ids(["brig"])
    fleet.add_documents([changed], upsert=True, wait=True)
    [replaced] = fleet.get_by_ids(["brig"])

    assert kept.metadata["rig"] == "square"
    assert replaced.metadata["rig"] == "none"
    assert "masts" not in replaced.metadata
    assert fleet.get_index_info()["vectorCount"] == 3


def test_what_was_deleted_with_wait_is_gone_at_once(fleet: CloudflareVectorize) -> None:
    assert fleet.delete(["brig", "nothing"], wait=True)

    assert fleet.get_by_ids(["brig"]) == []
    assert set(ids(fleet.similarity_search("a brig has two masts"))) == {"sloop", "ship"}
    assert fleet.get_index_info()["vectorCount"] == 2


def test_a_metadata_index_is_removed_with_the_key_this_client_calls_it_by(fleet: CloudflareVectorize) -> None:
    removed = fleet.delete_metadata_index("masts")
    fleet._poll_mutation_status(str(fleet.index_name), removed["mutationId"])

    assert fleet.list_metadata_indexes() == [{"propertyName": "rig", "indexType": "String"}]
    # With the limits of the live service, a property without an index matches nothing.
    assert fleet.similarity_search("masts", md_filter={"masts": {"$lt": 3}}) == []


async def test_the_same_with_asyncio(store: CloudflareVectorize, index_name: str) -> None:
    await store.acreate_index(dimensions=DIMENSIONS, wait=True)
    await store.acreate_metadata_index("rig", "string", wait=True)
    added = await store.aadd_documents(FLEET, namespaces=["yard", "yard", "museum"], wait=True)
    found = await store.asimilarity_search_with_score("a brig has two masts", return_metadata="all", k=1)
    square = await store.asimilarity_search("masts", md_filter={"rig": "square"}, namespace="museum")
    got = await store.aget_by_ids(["ship", "nothing"])
    await store.adelete(["ship"], wait=True)
    remaining = await store.aget_by_ids(["sloop", "brig", "ship"])
    removed = await store.adelete_metadata_index("rig")
    await store._apoll_mutation_status(index_name, removed["mutationId"])
    properties = await store.alist_metadata_indexes()
    info = await store.aget_index_info()
    await store.adelete_index()

    assert added == ["sloop", "brig", "ship"]
    assert (found[0][0].id, found[0][0].metadata["masts"]) == ("brig", 2)
    assert found[0][1] == pytest.approx(1.0, abs=1e-6)
    assert ids(square) == ids(got) == ["ship"]
    assert ids(remaining) == ["sloop", "brig"]
    assert properties == []
    assert info["vectorCount"] == 2
    assert index_name not in [one["name"] for one in await store.alist_indexes()]


def add_and_delete(store: CloudflareVectorize, writer: int) -> list[str]:
    """One writer's rounds, each of which waits for its own mutations by name; the ids that must be left."""
    left = []
    for turn in range(ROUNDS):
        kept, dropped = f"kept-{writer}-{turn}", f"dropped-{writer}-{turn}"
        store.add_texts([kept, dropped], ids=[kept, dropped], upsert=turn % 2 == 0, wait=True)
        store.delete([dropped], wait=True)
        left.append(kept)
    return left


def test_every_one_of_many_writers_hears_of_exactly_its_own_mutations(store: CloudflareVectorize) -> None:
    store.create_index(dimensions=DIMENSIONS, wait=True)

    with ThreadPoolExecutor(WRITERS) as pool:
        left = list(pool.map(lambda writer: add_and_delete(store, writer), range(WRITERS)))

    assert store.get_index_info()["vectorCount"] == WRITERS * ROUNDS
    for kept in left:
        assert ids(store.get_by_ids(kept)) == kept


async def test_every_one_of_many_tasks_hears_of_exactly_its_own_mutations(store: CloudflareVectorize) -> None:
    await store.acreate_index(dimensions=DIMENSIONS, wait=True)
    texts = [f"text-{number}" for number in range(WRITERS)]

    await asyncio.gather(*(store.aadd_texts([text], ids=[text], wait=True) for text in texts))
    added = await store.aget_by_ids(texts)
    await asyncio.gather(*(store.adelete([text], wait=True) for text in texts[::2]))
    remaining = await store.aget_by_ids(texts)

    assert ids(added) == texts
    assert ids(remaining) == texts[1::2]


def test_writers_of_one_machine_in_different_indexes_do_not_disturb_each_other(
    program: Program, index_name: str
) -> None:
    def life(writer: int) -> dict[str, Any]:
        one = CloudflareVectorize(
            embedding=BagOfWords(),
            account_id=ACCOUNT,
            api_token=TOKEN,
            base_url=program.url,
            index_name=f"{index_name}-{writer}",
            default_wait_seconds=POLL_S,
        )
        one.create_index(dimensions=DIMENSIONS, wait=True)
        add_and_delete(one, writer)
        info = one.get_index_info()
        one.delete_index()
        return info

    with ThreadPoolExecutor(WRITERS) as pool:
        infos = list(pool.map(life, range(WRITERS)))

    assert [info["vectorCount"] for info in infos] == [ROUNDS] * WRITERS
