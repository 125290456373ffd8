"""A backup and a newer log come to the state as of any mutation in between."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace

import pytest

from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.restoring import restore
from storage.batch import pack_json
from storage.errors import BackupRefused
from storage.filters import FilterRules
from storage.interfaces import ListRequest
from storage.limits import RELAXED
from storage.records import Action, Change, MetadataIndex, MetadataType
from tests.conftest import ACCOUNT, batch, running_on

BEFORE, AFTER = 12, 14


async def rows_of(running) -> dict[str, bytes]:
    spec = running.store.index(ACCOUNT, "docs")
    head = await running.store.head(spec)
    assert await running.store.wait_applied(spec, head, 60)
    page = await running.store.list_page(spec, ListRequest(count=10_000, rules=FilterRules(), include_records=True))
    return {id: one.values for id, one in zip(page.ids, page.records, strict=True) if one is not None}


async def history(settings, folder) -> tuple[list[str], list[dict[str, bytes]]]:
    """Mutations before and after a backup, sealed all the while, and the rows after each."""
    ids, states = [], []
    async with running_on(settings) as running:
        spec = await running.index()
        for number in range(BEFORE + AFTER):
            if number == BEFORE:
                await asyncio.to_thread(back_up, DataFolder(settings.data), folder / "backup", program="test")
            if number == BEFORE + 3:
                named = MetadataIndex(id=0, property="colour", type=MetadataType.STRING)
                body = pack_json({"property": "colour", "type": "string"})
                change = Change(action=Action.CREATE_METADATA_INDEX, body=body, rows=0, metadata_index=named)
                last = await running.store.append(spec, change, RELAXED)
            elif number % 3 == 2:
                last = await running.delete(spec, [f"v{number + 1}", f"v{number - 2}"])
            else:
                some = [f"v{place}" for place in range(number, number + 8)]
                last = await running.upsert(spec, batch(some, [[number, 1, 2, place] for place in range(8)]))
            ids.append(last.id)
            states.append(await rows_of(running))
            await asyncio.sleep(0.03)
        await asyncio.to_thread(back_up, DataFolder(settings.data), folder / "later.tar", program="test")
    return ids, states


@pytest.fixture
def retaining(small):
    return replace(small, seal_mutations=4, log_retain_ms=1 << 40)


@pytest.mark.parametrize("source", ["data folder", "newer backup"])
async def test_every_mutation_since_a_backup_can_be_gone_back_to(source, retaining, tmp_path):
    ids, states = await history(retaining, tmp_path)
    log_from = retaining.data if source == "data folder" else tmp_path / "later.tar"

    for number in range(BEFORE, BEFORE + AFTER, 3):
        target = tmp_path / f"restored-{number}"
        restore(tmp_path / "backup", target, until=ids[number], log_from=log_from)
        async with running_on(replace(retaining, data=target)) as running:
            assert await rows_of(running) == states[number]
            spec = running.store.index(ACCOUNT, "docs")
            assert len(running.store.metadata_indexes(spec)) == (number >= BEFORE + 3)
            # It goes on from there.
            assert (await running.upsert(spec, batch(["new"], [[1, 2, 3, 4]]))).sequence == number + 2


async def test_a_point_before_the_backup_needs_the_whole_log_or_an_older_one(retaining, tmp_path):
    ids, states = await history(retaining, tmp_path)
    restore(tmp_path / "backup", tmp_path / "early", until=ids[5])
    async with running_on(replace(retaining, data=tmp_path / "early")) as running:
        assert await rows_of(running) == states[5]


async def test_a_log_that_was_pruned_too_far_is_refused(small, tmp_path):
    settings = replace(small, seal_mutations=2, seal_idle_ms=50, grace_ms=10)
    ids, _ = await history(settings, tmp_path)
    async with running_on(settings):
        await until_pruned(next((settings.data / "indexes").glob("*/log.db")), beyond=BEFORE + 2)

    with pytest.raises(BackupRefused, match="log_retain_ms"):
        restore(tmp_path / "backup", tmp_path / "restored", until=ids[-2], log_from=settings.data)
    assert not (tmp_path / "restored").exists()


async def until_pruned(log, *, beyond: int) -> None:
    # A proof that a merge overtook is tried again after a minute.
    for _ in range(9000):
        with closing(Reader(log)) as reader:
            if reader.rows("SELECT 1 FROM head WHERE pruned_through > ?", (beyond,)):
                return
        await asyncio.sleep(0.02)
    raise AssertionError("waited three minutes for the log to be pruned, in vain")


async def test_a_mutation_nobody_knows_is_refused(retaining, tmp_path):
    await history(retaining, tmp_path)

    with pytest.raises(BackupRefused, match="no log has mutation"):
        restore(tmp_path / "backup", tmp_path / "restored", until="01890000-0000-7000-8000-000000000000")


async def test_the_log_of_other_data_is_refused(retaining, small, tmp_path):
    ids, _ = await history(retaining, tmp_path)
    log = next((retaining.data / "indexes").glob("*/log.db"))
    (tmp_path / "alien").mkdir()
    ids_of_others, _ = await history(replace(retaining, data=tmp_path / "other"), tmp_path / "alien")
    other = next((tmp_path / "other" / "indexes").glob("*"))
    other.rename(other.with_name(log.parent.name))

    with pytest.raises(BackupRefused, match="does not follow"):
        restore(tmp_path / "backup", tmp_path / "restored", until=ids_of_others[-1], log_from=tmp_path / "other")
    assert ids
