"""The store with a worker, end to end without HTTP."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from storage.backends.sqlite import listing, store
from storage.batch import pack_ids
from storage.errors import IndexDeleted, IndexExists, IndexNotFound
from storage.filters import Compare, Comparison, FilterRules
from storage.interfaces import ListRequest
from storage.limits import RELAXED
from storage.masks import matching
from storage.records import Action, Change, Counts, IndexConfig, Metric, MutationState, Sequence
from storage.search import Query, search
from tests.conftest import ACCOUNT, WAIT_S, batch, running_on

RULES = FilterRules()


def ids_of(found):
    return [hit.id for hit in found.hits]


async def test_what_is_acknowledged_is_found_once_it_is_applied(running):
    spec = await running.index()

    appended = await running.upsert(spec, batch(["a", "b"], [[1, 0, 0, 0], [0, 1, 0, 0]]))
    await running.applied(spec, appended)

    snapshot = await running.store.snapshot(spec)
    query = Query(vector=np.array([1, 0.1, 0, 0], dtype=np.float32), count=2, rules=RULES)
    assert ids_of(search(snapshot, query)) == ["a", "b"]
    assert running.store.progress(spec).applied_id == appended.id
    status = await running.store.mutation(spec, appended.id)
    assert (status.state, status.counts) == (MutationState.APPLIED, Counts(inserted=2))


async def test_insert_keeps_upsert_replaces_delete_removes(running):
    spec = await running.index()
    await running.upsert(spec, batch(["a"], [[1, 0, 0, 0]]))
    await running.upsert(spec, batch(["a", "b"], [[0, 1, 0, 0], [0, 0, 1, 0]]), action=Action.INSERT)
    await running.upsert(spec, batch(["b"], [[0, 0, 0, 1]]))
    last = await running.delete(spec, ["a", "zz"])
    await running.applied(spec, last)

    a, b = await running.store.records(spec, ["a", "b"])

    assert a is None
    assert np.frombuffer(b.values, np.float32).tolist() == [0, 0, 0, 1]
    assert (await running.store.mutation(spec, last.id)).counts == Counts(deleted=1, missing=1)
    assert running.store.progress(spec).vectors == 1


async def test_writers_at_the_same_moment_each_get_a_place_of_their_own(running):
    spec = await running.index()

    written = await asyncio.gather(*(running.upsert(spec, batch([str(n)], [[1, 2, 3, n]])) for n in range(50)))

    assert sorted(one.sequence for one in written) == list(range(1, 51))
    in_order = [one.id for one in sorted(written, key=lambda one: one.sequence)]
    assert in_order == sorted(in_order)


async def test_a_deleted_index_is_gone_and_its_name_is_free(running):
    spec = await running.index()
    with pytest.raises(IndexExists):
        await running.index()

    await running.store.delete_index(spec)

    with pytest.raises(IndexDeleted):
        running.store.index(ACCOUNT, "docs")
    with pytest.raises(IndexDeleted):
        await running.upsert(spec, batch(["a"], [[1, 0, 0, 0]]))
    with pytest.raises(IndexNotFound):
        running.store.index(ACCOUNT, "never")
    again = await running.store.create_index(
        ACCOUNT, "docs", "", IndexConfig(dimensions=8, metric=Metric.EUCLIDEAN), RELAXED
    )
    assert again.id != spec.id
    assert running.store.index(ACCOUNT, "docs").config.dimensions == 8


async def test_a_listing_shows_what_its_first_page_would_have_shown(running):
    spec = await running.index()
    names = [f"v{n:03}" for n in range(10)]
    await running.applied(spec, await running.upsert(spec, batch(names, np.ones((10, 4)))))

    first = await running.store.list_page(spec, ListRequest(count=4, rules=RULES))
    await running.delete(spec, ["v005"])
    await running.applied(spec, await running.upsert(spec, batch(["v0045", "v006"], np.ones((2, 4)))))
    second = await running.store.list_page(spec, ListRequest(count=4, rules=RULES, cursor=first.next_cursor))
    third = await running.store.list_page(spec, ListRequest(count=4, rules=RULES, cursor=second.next_cursor))

    assert [*first.ids, *second.ids, *third.ids] == names
    assert (first.total, third.total, third.next_cursor) == (10, 10, "")


async def test_one_index_more_is_opened_while_all_that_may_be_open_are_in_use(settings):
    async with running_on(replace(settings, open_indexes_max=1)) as running:
        first, second = await running.index("first"), await running.index("second")
        waiting = asyncio.create_task(running.store.wait_applied(first, Sequence(1), WAIT_S))
        await asyncio.sleep(0)

        await running.applied(second, await running.upsert(second, batch(["a"], [[1, 0, 0, 0]])))

        assert not waiting.done()
        await running.upsert(first, batch(["a"], [[1, 0, 0, 0]]))
        assert await waiting


async def test_a_listing_that_looks_at_every_row_does_not_hold_up_the_loop(running, monkeypatch):
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch("abc", np.eye(3, 4), metadata=[b'{"n":1}', b"", b""])))
    threads = []

    def matching_here(*arguments):
        threads.append(threading.current_thread())
        return matching(*arguments)

    monkeypatch.setattr(listing, "matching", matching_here)
    tree = Compare(("n",), Comparison.EQ, 1)
    page = await running.store.list_page(spec, ListRequest(count=10, rules=RULES, filter=tree))

    assert page.ids == ("a",)
    assert threading.main_thread() not in threads


async def test_of_a_caller_with_many_mutations_the_newest_are_named(running, monkeypatch):
    monkeypatch.setattr(store, "CALLER_MUTATIONS_MAX", 3)
    spec = await running.index()
    changes = [Change(action=Action.DELETE, body=pack_ids(["a"]), rows=1, caller=caller) for caller in [b"me"] * 5]
    appended = [await running.store.append(spec, change, RELAXED) for change in changes]
    await running.applied(spec, appended[-1])

    mine = await running.store.caller_mutations(spec, b"me", 0)
    since = await running.store.caller_mutations(spec, b"me", appended[-1].created_ms + 1)

    assert mine == tuple(one.sequence for one in appended[-3:])
    assert since == ()
