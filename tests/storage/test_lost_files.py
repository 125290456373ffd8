"""Files that vanish, or come back older, between two starts: nothing is made up for them, nothing is destroyed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite import catalogue
from storage.backends.sqlite.database import Database, Reader
from storage.backends.sqlite.folder import DataFolder, IndexFolder, create_index_folder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.state import StateReader
from storage.errors import Damaged, LogDamaged, StoreFull
from storage.open import open_store
from storage.records import IndexId, IndexSpec
from tests.conftest import Running, batch, running_on, until

LONG_AGO_S = 24 * 3600


@pytest.fixture
def told() -> Iterator[Callable[[str], list]]:
    """The events of a name that were logged so far."""
    with capture_logs() as events:
        yield lambda name: [event for event in events if event["event"] == name]


async def filled(running: Running) -> IndexSpec:
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))
    return spec


def folder_of(settings, spec: IndexSpec) -> IndexFolder:
    return DataFolder(settings.data).index(spec.id)


def lose(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def age(path: Path) -> None:
    then = path.stat().st_mtime - LONG_AGO_S
    os.utime(path, (then, then))


async def test_an_index_that_no_catalogue_names_is_put_aside_whole(small, told):
    async with running_on(small) as running:
        spec = await filled(running)
    data, folder = DataFolder(small.data), folder_of(small, spec)
    lose(data.control)
    age(folder.path)

    async with running_on(small):
        await until(lambda: bool(told("folder.quarantined")))

    [aside] = data.quarantine.iterdir()
    assert aside.name.startswith(spec.id)
    with closing(LogReader(IndexFolder(aside))) as log:
        assert log.head()[0].sequence == 1
        assert log.bodies([1])


async def test_what_is_left_of_indexes_that_were_never_named_is_removed(small, told):
    data = DataFolder(small.data)
    data.prepare()
    drafts = [data.indexes / ".new-left", data.index(IndexId("never-named")).path]
    drafts[0].mkdir()
    create_index_folder(data, IndexId("never-named"))
    for draft in drafts:
        age(draft)

    async with running_on(small):
        await until(lambda: not any(draft.exists() for draft in drafts))

    assert not told("folder.quarantined")
    assert not data.quarantine.exists()


@pytest.mark.parametrize("name", ["log", "state"])
async def test_a_database_that_is_missing_is_not_made_anew(small, name):
    async with running_on(small) as running:
        spec = await filled(running)
    path = getattr(folder_of(small, spec), name)
    lose(path)

    async with running_on(small) as running:
        with pytest.raises(Damaged):
            await running.upsert(spec, batch(["b"], np.ones((1, 4))))

    assert not path.exists()


async def test_a_log_that_ends_before_what_was_applied_takes_nothing_more(small):
    async with running_on(small) as running:
        spec = await filled(running)
        other = await running.index("other")
    folder, empty = folder_of(small, spec), folder_of(small, other)
    lose(folder.log)
    lose(folder.witness)
    shutil.copy(empty.log, folder.log)

    store = await open_store(small)
    try:
        with pytest.raises(LogDamaged):
            await Running(small, store, stop=None).upsert(spec, batch(["b"], np.ones((1, 4))))
    finally:
        await store.close()


async def test_nothing_is_collected_by_a_state_that_came_back_older_than_its_log(small, told):
    async with running_on(small) as running:
        spec = await filled(running)
        await running.stop_worker()
        folder = folder_of(small, spec)
        shutil.copy(folder.state, small.data / "older.db")
        await running.start_worker()
        for number in range(small.seal_mutations):
            last = await running.upsert(spec, batch([f"v{number}"], np.ones((1, 4))))
        await running.applied(spec, last)
        await until(lambda: pruned_through(folder) > 0)
    segments = set(folder.segments.iterdir())
    lose(folder.state)
    shutil.copy(small.data / "older.db", folder.state)

    async with running_on(small):
        await until(lambda: bool(told("index.halted")))

    assert segments
    assert set(folder.segments.iterdir()) == segments
    with closing(StateReader(Reader(folder.state))) as state:
        assert state.state().owner == ""


def pruned_through(folder: IndexFolder) -> int:
    with closing(LogReader(folder)) as log:
        return log.head()[1]


async def test_a_commit_is_acknowledged_though_there_is_no_room_for_a_checkpoint(running, monkeypatch):
    async def full(_) -> bool:
        raise StoreFull("the disk is full")

    spec = await running.index()
    monkeypatch.setattr(Database, "wal_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(Database, "checkpoint", full)

    await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))

    assert running.store.progress(spec).vectors == 1


async def test_health_checks_do_not_make_the_catalogue_grow(settings, monkeypatch):
    monkeypatch.setattr("storage.backends.sqlite.store.HEALTH_REMEMBERED_S", -1)
    store = await open_store(settings)
    try:
        for _ in range(300):
            assert not (await store.health()).problems
        wal = DataFolder(settings.data).control.with_name("control.db-wal")
        assert wal.stat().st_size < 2 * catalogue.WAL_BYTES_MAX
    finally:
        await store.close()
