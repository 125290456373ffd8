"""The log: gapless over processes, idempotent, bounded, and loud about what it lost."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import replace

import pytest

from storage.backends.sqlite.database import Database
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.log import HEAD_SQL, head_of
from storage.batch import pack_ids, pack_vectors
from storage.chain import NO_CHAIN, Head, write_witness
from storage.errors import (
    IdempotencyConflict,
    LogDamaged,
    MetadataIndexConflict,
    MetadataIndexLimitReached,
    MetadataIndexNotFound,
    QueueFull,
    StateDamaged,
    StoreBusy,
    VectorLimitReached,
)
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import Action, Change, IndexConfig, MetadataIndex, MetadataType, Metric, MutationId, Sequence
from tests.conftest import ACCOUNT, batch


def deletion(*ids, key=""):
    return Change(action=Action.DELETE, body=pack_ids(ids), rows=len(ids), idempotency_key=key)


def on_metadata(action, property, type=MetadataType.STRING):
    index = MetadataIndex(id=0, property=property, type=type)
    return Change(action=action, body=pack_ids([]), rows=0, metadata_index=index)


@pytest.fixture
async def store(settings):
    """A store without a worker: what is appended stays in the queue."""
    store = await open_store(settings)
    yield store
    await store.close()


@pytest.fixture
async def spec(store):
    return await store.create_index(ACCOUNT, "docs", "", IndexConfig(dimensions=4, metric=Metric.COSINE), RELAXED)


async def test_several_processes_append_without_a_gap_and_in_the_order_of_their_ids(settings, store, spec):
    others = [await open_store(settings) for _ in range(3)]

    written = await asyncio.gather(
        *(one.append(spec, deletion(str(number)), RELAXED) for number in range(40) for one in [store, *others])
    )

    in_order = sorted(written, key=lambda one: one.sequence)
    assert [one.sequence for one in in_order] == list(range(1, 161))
    assert [one.id for one in in_order] == sorted({one.id for one in written})
    for one in others:
        await one.close()


async def test_the_same_key_gives_the_first_mutation_and_another_body_is_refused(store, spec):
    first = await store.append(spec, deletion("a", key="k"), RELAXED)
    again = await store.append(spec, deletion("a", key="k"), RELAXED)

    assert (again.id, again.sequence, again.replayed) == (first.id, first.sequence, True)
    assert await store.head(spec) == 1
    with pytest.raises(IdempotencyConflict, match="another request"):
        await store.append(spec, deletion("b", key="k"), RELAXED)
    with pytest.raises(IdempotencyConflict, match="another request"):
        await store.append(spec, replace(deletion("a", key="k"), action=Action.DELETE_BY_FILTER), RELAXED)


async def test_the_same_key_at_the_same_moment_is_one_mutation(store, spec):
    written = await asyncio.gather(*(store.append(spec, deletion("a", key="k"), RELAXED) for _ in range(10)))

    assert {one.sequence for one in written} == {1}
    assert sum(not one.replayed for one in written) == 1


async def test_a_refusal_does_not_fail_those_who_share_its_commit(store, spec):
    await store.append(spec, deletion("a", key="k"), RELAXED)
    results = await asyncio.gather(
        store.append(spec, deletion("b"), RELAXED),
        store.append(spec, deletion("other", key="k"), RELAXED),
        store.append(spec, deletion("c"), RELAXED),
        return_exceptions=True,
    )

    assert [type(one) for one in results if isinstance(one, Exception)] == [IdempotencyConflict]
    assert await store.head(spec) == 3


async def test_an_append_is_answered_before_the_checkpoint_that_it_made_due_and_the_next_one_behind_it(
    store, spec, monkeypatch
):
    started, released = asyncio.Event(), asyncio.Event()

    async def slow(_self):
        started.set()
        await released.wait()
        return True

    monkeypatch.setattr(Database, "checkpoint", slow)
    monkeypatch.setattr(Database, "wal_bytes", lambda _self: 2**40)

    first = await store.append(spec, deletion("a"), RELAXED)
    await started.wait()
    second = asyncio.create_task(store.append(spec, deletion("b"), RELAXED))
    await asyncio.sleep(0)
    waited = not second.done()
    released.set()

    assert first.sequence == 1
    assert waited
    assert (await second).sequence == 2


async def test_a_checkpoint_that_finds_damage_does_not_unsay_what_was_answered(store, spec, monkeypatch):
    async def damaged(_self):
        raise StateDamaged("a page is not what it was")

    monkeypatch.setattr(Database, "checkpoint", damaged)
    monkeypatch.setattr(Database, "wal_bytes", lambda _self: 2**40)

    assert (await store.append(spec, deletion("a"), RELAXED)).sequence == 1


async def test_the_queue_is_bounded_by_mutations_and_by_bytes(settings):
    for bound in ({"queue_mutations_max": 2}, {"queue_bytes_max": 1}):
        store = await open_store(replace(settings, data=settings.data / next(iter(bound)), **bound))
        config = IndexConfig(dimensions=4, metric=Metric.COSINE)
        spec = await store.create_index(ACCOUNT, "docs", "", config, RELAXED)
        allowed = bound.get("queue_mutations_max", 1)
        for number in range(allowed):
            await store.append(spec, deletion(str(number)), RELAXED)

        with pytest.raises(QueueFull, match="try again later"):
            await store.append(spec, deletion("over"), RELAXED)
        assert await store.head(spec) == allowed
        await store.close()


async def test_the_vector_limit_counts_what_is_there_and_what_is_to_come(running):
    spec = await running.index()
    limits = replace(RELAXED, vectors_per_index_max=3)
    await running.applied(spec, await running.upsert(spec, batch(["a", "b"], [[1, 2, 3, 4]] * 2)))

    def upsert(*ids):
        return Change(action=Action.UPSERT, body=pack_vectors(batch(ids, [[1, 2, 3, 4]] * len(ids))), rows=len(ids))

    with pytest.raises(VectorLimitReached, match="2 more would be over its limit of 3"):
        await running.store.append(spec, upsert("c", "d"), limits)
    await running.store.append(spec, upsert("a", "b", "c"), limits)


async def test_accepted_metadata_indexes_decide_duplicates_and_the_limit(store, spec):
    create, drop = Action.CREATE_METADATA_INDEX, Action.DELETE_METADATA_INDEX
    limits = replace(RELAXED, metadata_indexes_max=2)
    for change in (on_metadata(create, "a"), on_metadata(create, "a"), on_metadata(create, "b")):
        await store.append(spec, change, limits)

    with pytest.raises(MetadataIndexConflict, match="of type string, not number"):
        await store.append(spec, on_metadata(create, "a", MetadataType.NUMBER), limits)
    with pytest.raises(MetadataIndexLimitReached, match="may have 2"):
        await store.append(spec, on_metadata(create, "c"), limits)
    with pytest.raises(MetadataIndexNotFound, match='"c"'):
        await store.append(spec, on_metadata(drop, "c"), limits)
    await store.append(spec, on_metadata(drop, "a"), limits)
    await store.append(spec, on_metadata(create, "c"), limits)


async def test_a_holder_that_was_stopped_does_not_hang_everyone(settings):
    store = await open_store(replace(settings, lock_timeout_ms=50))
    spec = await store.create_index(ACCOUNT, "docs", "", IndexConfig(dimensions=4, metric=Metric.COSINE), RELAXED)
    held = os.open(DataFolder(settings.data).index(spec.id).log_lock, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)

    with pytest.raises(StoreBusy, match="50 ms"):
        await store.append(spec, deletion("a"), RELAXED)
    os.close(held)

    assert (await store.append(spec, deletion("a"), RELAXED)).sequence == 1
    await store.close()


async def test_a_log_that_ends_before_its_witness_refuses_writes(settings, store, spec):
    await store.append(spec, deletion("a"), RELAXED)
    await store.close()
    folder = DataFolder(settings.data).index(spec.id)
    descriptor = os.open(folder.witness, os.O_RDWR)
    write_witness(descriptor, Head(Sequence(2), MutationId("m"), 1, NO_CHAIN, 0))
    os.close(descriptor)

    again = await open_store(settings)
    with pytest.raises(LogDamaged, match="ends at mutation 1, but mutation 2 had been acknowledged"):
        await again.append(spec, deletion("b"), RELAXED)
    await again.close()


async def test_a_log_without_its_head_refuses_writes(settings, store, spec):
    await store.append(spec, deletion("a"), RELAXED)
    await store.close()
    connection = connect(DataFolder(settings.data).index(spec.id).log, isolation_level=None)
    connection.execute("DELETE FROM head")
    connection.close()

    again = await open_store(settings)
    with pytest.raises(LogDamaged, match="no head that was ever written"):
        await again.append(spec, deletion("b"), RELAXED)
    await again.close()


@pytest.mark.parametrize("place", range(6))
def test_a_head_with_a_value_of_another_type_is_damage(place: int):
    """A page of zeros has NULL where its table says NOT NULL."""
    row = [1, "m", 1, NO_CHAIN, 0, 0]
    assert head_of([tuple(row)])[0].chain == NO_CHAIN

    row[place] = None
    with pytest.raises(LogDamaged, match="no head that was ever written"):
        head_of([tuple(row)])


async def test_a_log_whose_history_was_rewritten_refuses_writes(settings, store, spec):
    await store.append(spec, deletion("a"), RELAXED)
    await store.close()
    connection = connect(DataFolder(settings.data).index(spec.id).log, isolation_level=None)
    connection.execute("UPDATE mutations SET chain = zeroblob(32)")
    connection.close()

    again = await open_store(settings)
    with pytest.raises(LogDamaged, match="not the one that was acknowledged"):
        await again.append(spec, deletion("b"), RELAXED)
    await again.close()


async def test_an_append_elsewhere_while_the_log_is_opened_is_no_damage(settings, store, spec, monkeypatch):
    other, rows, written = await open_store(settings), Database.rows, []

    async def rows_and_then_an_append(self, sql, values=()):
        found = await rows(self, sql, values)
        if sql == HEAD_SQL and not written:
            written.append(None)
            written[0] = await other.append(spec, deletion("a"), RELAXED)
        return found

    monkeypatch.setattr(Database, "rows", rows_and_then_an_append)
    appended = await store.append(spec, deletion("b"), RELAXED)

    assert (written[0].sequence, appended.sequence) == (1, 2)
    await other.close()
