"""A disk without room: what is refused, what goes on with the room that is kept, and that it resumes by itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.backends.sqlite import store as stores
from storage.backends.sqlite.log import Log
from storage.backends.sqlite.opened import OpenIndex
from storage.backends.sqlite.publishing import StateWriter
from storage.errors import StoreFull
from storage.reserve import FILE
from tests.conftest import ACCOUNT, Running, batch, running_on, until

WANTED = 1024 * 1024
PAGE = 4096


class Disk:
    """How much is free beside the reserve, as a test says."""

    def __init__(self) -> None:
        self.free_bytes = 1 << 40

    def stat(self, _: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=self.free_bytes // PAGE, f_frsize=PAGE, f_blocks=(1 << 40) // PAGE)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.stat)
    monkeypatch.setattr("storage.reserve.LOOKED_S", 0.0)
    return disk


@pytest.fixture
async def kept(settings, disk: Disk):
    """Running, with a reserve and three vectors."""
    async with running_on(replace(settings, reserve_bytes=WANTED)) as one:
        spec = await one.index()
        await one.applied(spec, await one.upsert(spec, batch(["a", "b", "c"], np.eye(3, 4))))
        await until(lambda: (settings.data / FILE).exists())
        yield one


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """The method finds no room, until some was given."""
    real = getattr(owner, name)
    errors = [StoreFull("the disk is full")]

    async def instead(*arguments, **named):
        if errors:
            raise errors.pop()
        return await real(*arguments, **named)

    monkeypatch.setattr(owner, name, instead)


def spec_of(running: Running):
    return running.store.index(ACCOUNT, "docs")


async def test_a_full_disk_refuses_what_takes_room_before_it_is_tried(kept, disk):
    disk.free_bytes = 0
    with pytest.raises(StoreFull, match="free some space"):
        await kept.upsert(spec_of(kept), batch(["d"], np.ones((1, 4))))
    with pytest.raises(StoreFull):
        await kept.index("more")
    assert await kept.store.head(spec_of(kept)) == 1


async def test_deletes_are_acknowledged_and_applied_on_a_full_disk(kept, disk, monkeypatch):
    disk.free_bytes = 0
    failing_once(monkeypatch, Log, "append")
    failing_once(monkeypatch, StateWriter, "apply")
    await kept.applied(spec_of(kept), await kept.delete(spec_of(kept), ["a"]))
    assert (kept.settings.data / FILE).stat().st_size == WANTED // 4, "once to log it, once to apply it"
    assert [one is None for one in await kept.store.records(spec_of(kept), ["a", "b"])] == [True, False]


async def test_indexes_are_deleted_on_a_full_disk(kept, disk, monkeypatch):
    disk.free_bytes = 0
    failing_once(monkeypatch, stores.Catalogue, "remove")
    await kept.store.delete_index(spec_of(kept))


async def test_a_process_that_opens_an_index_on_a_full_disk_is_given_room_for_it(kept, disk, monkeypatch):
    disk.free_bytes = 0
    real, errors = OpenIndex.__init__, [StoreFull("no room for the shared memory file")]

    def instead(*arguments) -> None:
        if errors:
            raise errors.pop()
        real(*arguments)

    monkeypatch.setattr(OpenIndex, "__init__", instead)
    other = await stores.SqliteStore.open(kept.settings)
    try:
        assert await other.records(spec_of(kept), ["b"]) != (None,)
    finally:
        await other.close()


async def test_writes_resume_by_themselves_when_there_is_room(kept, disk, monkeypatch):
    disk.free_bytes = 0
    failing_once(monkeypatch, Log, "append")
    await kept.delete(spec_of(kept), ["a"])
    # Enough to write, were it not for the half that was given.
    disk.free_bytes = WANTED // 2
    with pytest.raises(StoreFull):
        await kept.upsert(spec_of(kept), batch(["d"], np.ones((1, 4))))
    disk.free_bytes = 1 << 30
    await until(lambda: (kept.settings.data / FILE).stat().st_size == WANTED)
    await kept.applied(spec_of(kept), await kept.upsert(spec_of(kept), batch(["d"], np.ones((1, 4)))))


async def test_nothing_is_built_on_a_full_disk_and_everything_when_there_is_room(small, disk):
    async with running_on(replace(small, reserve_bytes=WANTED)) as one:
        spec = await one.index()
        await until(lambda: (small.data / FILE).exists())
        disk.free_bytes = 0
        # As a process that had looked at the disk a moment before would.
        one.store._reserve.check = lambda: None
        for number in range(60):
            appended = await one.upsert(spec, batch([f"v{number}"], np.ones((1, 4))))
        await one.applied(spec, appended)
        segments = small.data / "indexes" / spec.id / "segments"
        assert not list(segments.iterdir())
        disk.free_bytes = 1 << 40
        await until(lambda: bool(list(segments.iterdir())))


async def test_a_full_disk_is_measured_and_is_no_reason_to_send_nobody(kept, disk, monkeypatch):
    assert not kept.store.disk().is_full
    disk.free_bytes = 0
    failing_once(monkeypatch, stores.Catalogue, "prove_writable")
    assert not (await kept.store.health()).problems
    found = kept.store.disk()
    assert (found.free_bytes, found.kept_bytes, found.is_full) == (0, WANTED, True)


async def test_a_disk_that_cannot_be_written_for_another_reason_is_a_problem(kept, monkeypatch):
    failing_once(monkeypatch, stores.Catalogue, "prove_writable")
    assert (await kept.store.health()).problems == ("the disk is full",)
