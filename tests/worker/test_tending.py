"""One index in the care of a worker, turned by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

import worker.policy
import worker.tending
from storage.backends.sqlite.workshop import Workshop
from storage.batch import pack_ids, pack_json, pack_vectors
from storage.filters import Compare, Comparison, FilterRules
from storage.limits import RELAXED
from storage.masks import matching
from storage.open import open_store
from storage.records import Action, Change, IndexConfig, MetadataIndex, MetadataType, Metric
from tests.conftest import ACCOUNT, batch
from worker.jobs import BuildFailed
from worker.lease import Registration
from worker.tending import Tending


@pytest.fixture
async def tending(settings):
    """An index with ten vectors in its log whose tail is due to be sealed, and nobody else at work."""
    settings = replace(settings, seal_mutations=1)
    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", IndexConfig(dimensions=4, metric=Metric.COSINE), RELAXED)
    metadata = [b'{"parity":%d}' % (number % 2) for number in range(10)]
    body = pack_vectors(batch([str(number) for number in range(10)], np.ones((10, 4)), metadata=metadata))
    await store.append(spec, Change(action=Action.UPSERT, body=body, rows=10), RELAXED)
    workshop = await Workshop.open(settings)
    registration = await Registration.join(workshop.data)
    index = await workshop.open_index(spec.id)
    tending = Tending(index, settings, registration, asyncio.Semaphore(1), lambda: None)
    yield tending
    await tending.close()
    await registration.leave()
    await workshop.close()
    await store.close()


async def built(tending):
    """Turn until a build was begun, and wait for its end."""
    await tending.turn()
    await tending._build


async def test_a_tail_that_is_due_is_sealed(tending):
    await built(tending)

    assert [row.rows for row in tending.index.segments()] == [10]
    assert tending.index.state().sealed_through == 1


@pytest.fixture
async def halved(tending, settings, monkeypatch):
    """The same with thirty more vectors and all of them to be sealed in two halves; one of the first is dead."""
    monkeypatch.setattr(worker.policy, "HALF_BYTES_MIN", 1)
    store = await open_store(settings)
    ids = ["3", *[str(number) for number in range(10, 40)]]
    await store.append(
        tending.index.spec,
        Change(action=Action.UPSERT, body=pack_vectors(batch(ids, np.ones((31, 4)))), rows=31),
        RELAXED,
    )
    await store.close()
    return tending


async def test_a_large_tail_is_sealed_in_two_halves(halved):
    await built(halved)

    snapshot = await halved.index.snapshot()
    assert halved.index.state().sealed_through == 2
    assert [row.rows for row in halved.index.segments()] == [9, 31]
    assert [part.part.document.covered for part in snapshot.parts if part.part.name != "tail"] == [((1, 1),), ((2, 2),)]
    assert snapshot.vectors == 40


async def test_nothing_of_two_halves_is_published_where_one_fails(halved, monkeypatch):
    build = worker.tending.run_builder

    async def fail_the_second(job):
        if job.after:
            raise BuildFailed("it was killed")
        return await build(job)

    monkeypatch.setattr(worker.tending, "run_builder", fail_the_second)
    await built(halved)
    assert halved.index.segments() == ()
    assert halved.index.state().sealed_through == 0

    monkeypatch.setattr(worker.tending, "run_builder", build)
    halved._build_not_before = 0.0
    await built(halved)
    assert [row.rows for row in halved.index.segments()] == [9, 31]


async def test_a_metadata_index_is_back_filled_for_old_segments_and_filters_are_right_meanwhile(tending, settings):
    await built(tending)
    parity = MetadataIndex(id=0, property="parity", type=MetadataType.NUMBER)
    change = Change(action=Action.CREATE_METADATA_INDEX, body=pack_json({}), rows=0, metadata_index=parity)
    store = await open_store(settings)
    await store.append(tending.index.spec, change, RELAXED)
    await store.close()
    strict = FilterRules(string_bytes_max=64, arrays=False, unindexed=False)
    odd = Compare(("parity",), Comparison.EQ, 1.0)

    def answer(snapshot):
        [segment, _] = matching(snapshot, "", odd, strict)
        return segment.tolist()

    await tending.turn()
    between = await tending.index.snapshot()
    while not tending.index.backfilled():
        await built(tending)
    after = await tending.index.snapshot()

    [index] = after.metadata_indexes
    assert between.parts[0].part.column(index) is None
    assert after.parts[0].part.column(index) is not None
    assert answer(between) == answer(after) == [False, True] * 5


async def test_mutations_that_only_delete_are_sealed_too_so_that_their_bodies_can_leave_the_log(tending, settings):
    await built(tending)
    store = await open_store(settings)
    await store.append(tending.index.spec, Change(action=Action.DELETE, body=pack_ids(["3"]), rows=1), RELAXED)
    await store.close()

    await built(tending)

    assert tending.index.state().sealed_through == 2
    assert [row.rows for row in tending.index.segments()] == [10]


async def test_a_build_from_before_the_index_was_lost_is_not_published_after_it_was_taken_again(tending, monkeypatch):
    build = worker.tending.run_builder

    async def build_while_the_index_changes_hands(job):
        answer = await build(job)
        await tending.index.take("another worker, and then this one again")
        return answer

    monkeypatch.setattr(worker.tending, "run_builder", build_while_the_index_changes_hands)

    await built(tending)

    assert tending.index.segments() == ()
    assert tending.index.state().sealed_through == 0
