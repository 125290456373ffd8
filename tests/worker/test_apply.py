"""Applying: what is damaged stops, what is poisonous is set aside, what is deleted by filter is what matched."""

from __future__ import annotations

from contextlib import closing

import pytest

from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.workshop import Workshop
from storage.batch import pack_ids, pack_json
from storage.errors import LogDamaged
from storage.filters import Compare, Comparison, to_json
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import Action, Change, Counts, IndexConfig, MetadataIndex, MetadataType, Metric, MutationState
from tests.conftest import ACCOUNT, batch, running_on
from worker.apply import apply_next

CONFIG = IndexConfig(dimensions=4, metric=Metric.COSINE)
ROW = [[1, 2, 3, 4]]


async def written(settings, *changes):
    """A data folder with these changes in the log of one index, and no worker."""
    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)
    for change in changes:
        await store.append(spec, change, RELAXED)
    await store.close()
    return spec


def deletion(*ids):
    return Change(action=Action.DELETE, body=pack_ids(ids), rows=len(ids))


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM bodies WHERE sequence = 2",
        "UPDATE bodies SET body = zeroblob(length(body)) WHERE sequence = 2",
        "UPDATE mutations SET rows = 7 WHERE sequence = 2",
        "DELETE FROM bodies WHERE sequence = 2; DELETE FROM mutations WHERE sequence = 2",
    ],
    ids=["a body is gone", "a body is another", "a header is another", "a row is gone"],
)
async def test_a_log_that_was_changed_is_not_applied(settings, damage):
    spec = await written(settings, deletion("a"), deletion("b"), deletion("c"))
    connection = connect(DataFolder(settings.data).index(spec.id).log, isolation_level=None)
    connection.executescript(damage)
    connection.close()

    workshop = await Workshop.open(settings)
    index = await workshop.open_index(spec.id)
    await index.take("worker")
    with pytest.raises(LogDamaged, match="mutation 2"):
        await apply_next(index, settings)

    assert index.state().applied == 0
    await index.close()
    await workshop.close()


async def test_a_poisonous_mutation_is_set_aside_and_the_ones_behind_it_go_on(settings):
    poison = Change(action=Action.DELETE, body=b"not a packed body", rows=1)
    spec = await written(settings, deletion("a"), poison, deletion("c"))

    async with running_on(settings) as running:
        assert await running.store.wait_applied(spec, 3, 60)
        newest = await running.store.mutations(spec, before=0, count=10)

    assert [one.state for one in newest] == [MutationState.APPLIED, MutationState.FAILED, MutationState.APPLIED]
    assert "3 times" in newest[1].error


async def test_delete_by_filter_removes_what_matched_at_its_place_in_the_log(running):
    spec = await running.index()
    metadata = [b'{"kind":"old"}', b'{"kind":"new"}', b'{"kind":"old"}']
    await running.upsert(spec, batch(["a", "b", "c"], ROW * 3, metadata=metadata, namespaces=["n", "n", "m"]))
    tree = Compare(("kind",), Comparison.EQ, "old")
    rules = {"string_bytes_max": 0, "arrays": True, "unindexed": True}
    body = pack_json({"filter": to_json(tree), "namespace": "n", "rules": rules})
    change = Change(action=Action.DELETE_BY_FILTER, body=body, rows=0)
    removed = await running.store.append(spec, change, RELAXED)
    await running.applied(spec, await running.upsert(spec, batch(["d"], ROW, metadata=metadata[:1], namespaces=["n"])))

    left = await running.store.records(spec, ["a", "b", "c", "d"])

    assert [record is not None for record in left] == [False, True, True, True]
    assert (await running.store.mutation(spec, removed.id)).counts == Counts(deleted=1)


async def test_metadata_indexes_are_listed_once_they_are_processed(running):
    spec = await running.index()
    changes = [
        (Action.CREATE_METADATA_INDEX, "a"),
        (Action.CREATE_METADATA_INDEX, "b"),
        (Action.DELETE_METADATA_INDEX, "a"),
    ]
    for action, name in changes:
        index = MetadataIndex(id=0, property=name, type=MetadataType.STRING)
        last = await running.store.append(
            spec, Change(action=action, body=pack_json({}), rows=0, metadata_index=index), RELAXED
        )
    await running.applied(spec, last)

    assert [index.property for index in running.store.metadata_indexes(spec)] == ["b"]


async def test_a_metadata_index_of_any_type_can_be_deleted_by_its_property(running):
    spec = await running.index()
    number = MetadataIndex(id=0, property="a", type=MetadataType.NUMBER)
    made = Change(
        action=Action.CREATE_METADATA_INDEX,
        body=pack_json({"property": "a", "type": "number"}),
        rows=0,
        metadata_index=number,
    )
    # As the service writes it: whoever deletes one does not say its type.
    body = pack_json({"property": "a", "type": "string"})
    gone = Change(action=Action.DELETE_METADATA_INDEX, body=body, rows=0, metadata_index=number)
    for change in (made, gone):
        last = await running.store.append(spec, change, RELAXED)
    await running.applied(spec, last)

    assert running.store.metadata_indexes(spec) == ()


async def test_a_metadata_index_that_is_not_the_one_of_its_mutation_is_damage(settings):
    async with running_on(settings) as running:
        spec = await running.index()
        await running.stop_worker()
        for name in ("a", "b"):
            index = MetadataIndex(id=0, property=name, type=MetadataType.STRING)
            body = pack_json({"property": name, "type": "string"})
            change = Change(action=Action.CREATE_METADATA_INDEX, body=body, rows=0, metadata_index=index)
            last = await running.store.append(spec, change, RELAXED)
        with closing(connect(DataFolder(settings.data).index(spec.id).log, isolation_level=None)) as connection:
            connection.execute("UPDATE mutations SET metadata_index = 1 WHERE sequence = 2")
        await running.start_worker()
        assert not await running.store.wait_applied(spec, last.sequence, 1)
        with pytest.raises(LogDamaged, match="takes no writes"):
            await running.upsert(spec, batch(["a"], ROW))
