"""The catalogue: rows that are not what was written are refused, and nothing is thrown away on their word."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from service.commands.doctor import run_doctor
from storage.backends.sqlite import catalogue
from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.restoring import restore
from storage.errors import IndexNotFound, StateDamaged
from tests.conftest import ACCOUNT, batch, running_on, until

DAMAGE = {
    "deleted": "UPDATE indexes SET deleted_us = 1 WHERE name = 'docs'",
    "another name": "UPDATE indexes SET name = 'locs' WHERE name = 'docs'",
    "another account": "UPDATE indexes SET account = 'abc' WHERE name = 'docs'",
    "another metric": "UPDATE slots SET metric = 'euclidean' FROM indexes i WHERE i.id = index_id AND i.name = 'docs'",
    "another sum": "UPDATE index_sums SET checksum = 7 WHERE id = (SELECT id FROM indexes WHERE name = 'docs')",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(catalogue, "COMPARE_AGAIN_S", 0.0)


async def written(settings, damage: str):
    """Two indexes with a vector each, and something done to the row of the first; its id."""
    async with running_on(settings) as running:
        for name in ("docs", "other"):
            spec = await running.index(name)
            await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))
        id = running.store.index(ACCOUNT, "docs").id
    with closing(connect(DataFolder(settings.data).control, isolation_level=None)) as connection:
        connection.execute(damage)
    return id


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_row_of_an_index_is_refused_and_other_indexes_are_not(small, damage):
    id = await written(small, damage)

    async with running_on(small) as running:
        with pytest.raises(StateDamaged, match=id):
            running.store.index(ACCOUNT, "docs")
        with pytest.raises(StateDamaged, match=id):
            await running.store.indexes(ACCOUNT)
        other = running.store.index(ACCOUNT, "other")
        await running.applied(other, await running.upsert(other, batch(["b"], np.ones((1, 4)))))

    assert DataFolder(small.data).index(id).log.exists()


async def ask_until_refused(store) -> None:
    for _ in range(3000):
        with suppress(IndexNotFound):
            store.index(ACCOUNT, "docs")
        await asyncio.sleep(0.02)


async def test_rows_beyond_what_is_compared_at_once_are_compared_in_a_thread(small, monkeypatch):
    id = await written(small, DAMAGE["another name"])
    monkeypatch.setattr(catalogue, "INLINE_ROWS_MAX", 1)
    monkeypatch.setattr(catalogue, "PIECE_ROWS", 1)

    async with running_on(small) as running:
        with pytest.raises(StateDamaged, match=id):
            await ask_until_refused(running.store)


async def test_an_index_that_only_looks_deleted_is_not_thrown_away(small):
    id = await written(small, DAMAGE["deleted"])

    with capture_logs() as events:
        async with running_on(replace(small, sweep_ms=50)):
            await until(lambda: any(event["event"] == "index.halted" and event["index"] == id for event in events))

    assert [event["event"] for event in events if event.get("index") == id] == ["index.halted"]
    assert DataFolder(small.data).index(id).log.exists()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_doctor_finds_it_and_a_backup_leaves_it_out(small, tmp_path, capsys, damage):
    id = await written(small, damage)

    assert run_doctor(small, mend=False) == 1
    assert id in capsys.readouterr().out
    kept = await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")
    assert [one.id for one in kept.left_out] == [id]
    restore(tmp_path / "backup", tmp_path / "restored")
    async with running_on(replace(small, data=tmp_path / "restored")) as restored:
        assert [one.name for one in await restored.store.indexes(ACCOUNT)] == ["other"]
        await restored.store.delete_index(restored.store.index(ACCOUNT, "other"))


async def test_an_index_of_a_program_without_sums_is_an_index(small):
    await written(small, "DELETE FROM index_sums")

    async with running_on(small) as running:
        assert [one.name for one in await running.store.indexes(ACCOUNT)] == ["docs", "other"]
        with pytest.raises(IndexNotFound):
            running.store.index(ACCOUNT, "never")
