"""Two workers on one data folder: each index is applied by one of them, once, whatever happens to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing

import numpy as np
import pytest
from structlog.testing import capture_logs

import worker.lease
import worker.loop
from storage.apply import Applied, Effects
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.state import ColumnRow, LeaseLost, State, StateReader
from storage.backends.sqlite.workshop import WorkIndex, Workshop
from storage.batch import pack_json
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import Action, Change, Counts, IndexSpec, MutationId, MutationState, Sequence
from tests.conftest import Running, batch, running_on, until
from tests.worker.other_worker import OtherWorker, other_worker
from worker.apply import apply_next

INDEXES = 4
ROUNDS = 30


@pytest.fixture
async def alone(small):
    """A store and no worker of its own yet."""
    running = Running(settings=small, store=await open_store(small), stop=asyncio.Event())
    yield running
    await running.stop_worker()
    await running.store.close()


@pytest.fixture
def impatient(monkeypatch):
    """The worker in this process takes another for dead sooner than that one could take it for dead."""
    monkeypatch.setattr(worker.lease, "SILENCE_S", 1.0)
    monkeypatch.setattr(worker.loop, "BEAT_S", 0.1)


def state_of(running: Running, spec: IndexSpec) -> State:
    path = DataFolder(running.settings.data).index(spec.id).state
    with closing(StateReader(Reader(path))) as reader:
        return reader.state()


async def write_rounds(running: Running, specs: list[IndexSpec], rounds: range) -> None:
    """In each round and index one vector that is new, one that is replaced, and one that goes."""
    for number in rounds:
        for spec in specs:
            await running.upsert(spec, batch([f"new{number}", "same"], np.full((2, 4), number + 1)))
            await running.upsert(spec, batch([f"gone{number}"], np.ones((1, 4))))
            await running.delete(spec, [f"gone{number}", "never"])


async def check_rounds(running: Running, spec: IndexSpec, rounds: int) -> None:
    """Every mutation had its effect once: applied twice it would count other rows, left out it would count none."""
    assert await running.store.wait_applied(spec, Sequence(3 * rounds), 60)
    statuses = await running.store.mutations(spec, before=Sequence(0), count=10_000)
    counts = [status.counts for status in reversed(statuses) if status.state is MutationState.APPLIED]
    first = [Counts(inserted=2), Counts(inserted=1), Counts(deleted=1, missing=1)]
    later = [Counts(inserted=1, replaced=1), Counts(inserted=1), Counts(deleted=1, missing=1)]
    assert counts == first + later * (rounds - 1)
    assert running.store.progress(spec).vectors == rounds + 1
    [same] = await running.store.records(spec, ["same"])
    assert np.frombuffer(same.values, np.float32).tolist() == [rounds] * 4


async def test_two_workers_apply_every_mutation_once(small):
    async with running_on(small) as running, other_worker(small):
        specs = [await running.index(f"docs{number}") for number in range(INDEXES)]

        await write_rounds(running, specs, range(ROUNDS))

        for spec in specs:
            await check_rounds(running, spec, ROUNDS)


async def test_deleted_indexes_are_taken_away_by_whoever_comes_first(small):
    with capture_logs() as events:
        async with running_on(small) as running, other_worker(small) as other:
            specs = [await running.index(f"docs{number}") for number in range(INDEXES)]
            await write_rounds(running, specs, range(1))
            for spec in specs:
                await check_rounds(running, spec, 1)

            for spec in specs:
                await running.store.delete_index(spec)

            data = DataFolder(small.data)
            await until(lambda: not any(data.indexes.iterdir()) and not any(data.trash.iterdir()))
    assert [event for event in (*events, *other.events) if is_wrong(event)] == []


def is_wrong(event: dict) -> bool:
    return event.get("level", event.get("log_level")) in {"error", "critical"}


async def test_an_index_is_left_to_the_worker_that_has_it(alone):
    spec = await alone.index()
    async with other_worker(alone.settings) as other:
        await write_rounds(alone, [spec], range(2))
        await check_rounds(alone, spec, 2)
        before = state_of(alone, spec)
        await alone.start_worker()

        await write_rounds(alone, [spec], range(2, 5))
        await check_rounds(alone, spec, 5)

        after = state_of(alone, spec)
        assert (after.owner, after.epoch) == (before.owner, before.epoch)
        assert not other.named("lease.lost")


async def test_what_a_killed_worker_had_is_taken_over_at_once(alone):
    specs = [await alone.index(f"docs{number}") for number in range(INDEXES)]
    async with other_worker(alone.settings) as other:
        await write_rounds(alone, specs, range(1))
        for spec in specs:
            await check_rounds(alone, spec, 1)
        await alone.start_worker()
        before = [state_of(alone, spec) for spec in specs]
        writing = asyncio.create_task(write_rounds(alone, specs, range(1, ROUNDS)))
        await until(lambda: alone.store.progress(specs[-1]).applied > 3 * ROUNDS // 2)

        await other.kill()

        await writing
        for spec, state in zip(specs, before, strict=True):
            await check_rounds(alone, spec, ROUNDS)
            now = state_of(alone, spec)
            assert now.epoch == state.epoch + 1
            assert now.owner != state.owner


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_was_stopped_changes_nothing_when_it_comes_back(alone):
    spec = await alone.index()
    async with other_worker(alone.settings) as other:
        await write_rounds(alone, [spec], range(2))
        await check_rounds(alone, spec, 2)
        before = state_of(alone, spec)
        await other.stop()
        await write_rounds(alone, [spec], range(2, 4))

        await alone.start_worker()
        await check_rounds(alone, spec, 4)
        taken = state_of(alone, spec)
        assert taken.epoch == before.epoch + 1
        other.go_on()
        await until(lambda: has_noticed(other))

        await write_rounds(alone, [spec], range(4, 6))
        await check_rounds(alone, spec, 6)
        after = state_of(alone, spec)
        assert (after.owner, after.epoch) == (taken.owner, taken.epoch)
        assert len(other.named("lease.taken")) == 1


def has_noticed(other: OtherWorker) -> bool:
    """Whether it tried to write and was refused."""
    return bool(other.named("lease.lost"))


COLUMN = ColumnRow("1-a", 1, "columns/1.col", "")
WRITES: dict[str, Callable[[WorkIndex, State], Awaitable[object]]] = {
    "apply": lambda index, state: index.apply(
        state, Effects(next_label=99), Applied(Sequence(9), MutationId("x"), bytes(32), 9)
    ),
    "publish a segment": lambda index, state: index.publish(inputs=(), segment=None, sealed_through=Sequence(1)),
    "publish a column": lambda index, state: index.publish_column(COLUMN),
    "count a try": lambda index, state: index.count_try(Sequence(9)),
    "forget versions": lambda index, state: index.forget(removed_before_ms=1 << 60, outcomes_before_ms=1 << 60),
    "forget what is sealed": lambda index, state: forget_sealed(index),
    "forget garbage": lambda index, state: index.remove_garbage(["1-a"]),
    "release": lambda index, state: index.release(),
}


async def forget_sealed(index: WorkIndex) -> None:
    snapshot = await index.snapshot()
    await index.forget_sealed(snapshot, layout=snapshot.layout, through=index.state().sealed_through)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_no_transaction_gets_past_a_raised_epoch(alone, write):
    spec = await alone.index()
    await alone.start_worker()
    await write_rounds(alone, [spec], range(2))
    await check_rounds(alone, spec, 2)
    await alone.stop_worker()
    workshop = await Workshop.open(alone.settings)
    one, two = await workshop.open_index(spec.id), await workshop.open_index(spec.id)
    try:
        await one.take("one")
        await two.take("two")
        taken = two.state()

        with pytest.raises(LeaseLost):
            await write(one, taken)

        assert two.state() == taken
        assert await two.live_labels(["same"])
        await check_rounds(alone, spec, 2)
    finally:
        one.epoch = 0
        await one.close()
        await two.close()
        await workshop.close()


async def test_a_worker_that_lost_the_index_while_it_selected_what_to_delete_says_so(alone, monkeypatch):
    spec = await alone.index()
    await alone.upsert(spec, batch(["a", "b"], [[1, 0, 0, 0]] * 2))
    body = pack_json(
        {"filter": None, "namespace": "", "rules": {"string_bytes_max": 0, "arrays": True, "unindexed": True}}
    )
    await alone.store.append(spec, Change(action=Action.DELETE_BY_FILTER, body=body, rows=0), RELAXED)
    workshop = await Workshop.open(alone.settings)
    one, two = await workshop.open_index(spec.id), await workshop.open_index(spec.id)
    snapshot = one.snapshot

    async def overtaken():
        await two.take("two")
        assert await apply_next(two, alone.settings) == 1
        return await snapshot()

    monkeypatch.setattr(one, "snapshot", overtaken)
    try:
        await one.take("one")
        assert await apply_next(one, alone.settings) == 1

        with pytest.raises(LeaseLost):
            await apply_next(one, alone.settings)

        assert two.state().applied == 2
    finally:
        one.epoch = 0
        await one.close()
        await two.close()
        await workshop.close()


async def test_of_two_workers_that_take_an_index_at_once_one_has_it(alone):
    spec = await alone.index()
    workshop = await Workshop.open(alone.settings)
    indexes = [await workshop.open_index(spec.id) for _ in range(4)]
    try:
        # All decide on what they see now; the first may have taken it before the last one tries.
        found = [index.state() for index in indexes]
        results = await asyncio.gather(
            *(index.take(f"worker{number}", found[number]) for number, index in enumerate(indexes)),
            return_exceptions=True,
        )

        assert sum(isinstance(result, LeaseLost) for result in results) == 3
        [winner] = [number for number, index in enumerate(indexes) if index.epoch]
        assert state_of(alone, spec).owner == f"worker{winner}"
    finally:
        for index in indexes:
            await index.close()
        await workshop.close()


async def test_an_index_whose_folder_another_worker_took_away_has_no_orphans_to_remove(alone):
    spec = await alone.index()
    workshop = await Workshop.open(alone.settings)
    index = await workshop.open_index(spec.id)
    try:
        await index.take("worker", index.state())
        index.folder.path.rename(index.folder.path.with_name("taken-away"))

        await index.remove_orphans()
    finally:
        index.epoch = 0
        await index.close()
        await workshop.close()
