"""Salvage: an index is made whole again from what can be verified, and what is lost is named."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.commands.doctor import run_doctor
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.inspection import inspect_index
from storage.backends.sqlite.migrate import migrate
from storage.batch import pack_json
from storage.errors import StateDamaged
from storage.filters import FilterRules
from storage.interfaces import ListRequest
from storage.limits import RELAXED
from storage.records import Action, Change, IndexSpec, MetadataIndex, MetadataType, MutationState
from storage.segment.format import joined
from tests.conftest import ACCOUNT, Running, batch, running_on, until

Rows = dict[str, bytes]


@pytest.fixture
async def stopped(small):
    """A stopped index with segments, dead rows and a tail; its settings, its id, and its rows."""
    settings = replace(small, seal_mutations=6, merge_idle_ms=1 << 40, seal_idle_ms=1 << 40, segments_max=50)
    async with running_on(settings) as running:
        spec = await running.index()
        named = MetadataIndex(id=0, property="colour", type=MetadataType.STRING)
        body = pack_json({"property": "colour", "type": "string"})
        await running.store.append(
            spec, Change(action=Action.CREATE_METADATA_INDEX, body=body, rows=0, metadata_index=named), RELAXED
        )
        for number in range(14):
            last = await running.upsert(spec, some(number))
            last = await running.delete(spec, [f"v{number * 20 + 3}", f"v{number * 20 - 15}"])
            await running.applied(spec, last)
            await asyncio.sleep(0.05)
        await until(lambda: len(segments(settings.data, spec)) > 1)
        await until(lambda: unsealed(settings.data, spec) < settings.seal_mutations)
        while unsealed(settings.data, spec) > 3:
            # Two more must not make a seal due: the tail is to stay.
            await running.applied(spec, await running.upsert(spec, some(20)))
            await until(lambda: unsealed(settings.data, spec) < settings.seal_mutations)
        for number in range(20, 22):
            last = await running.upsert(spec, some(number))
        await running.applied(spec, last)
        await asyncio.sleep(0.5)
        assert 2 <= unsealed(settings.data, spec) < settings.seal_mutations
        rows = await everything(running, spec)
    return settings, spec, rows


def some(number: int):
    ids = [f"v{place}" for place in range(number * 20, number * 20 + 40)]
    metadata = [b'{"colour":"red"}'] * 40
    return batch(ids, [[number, place, 1.0, 2.0] for place in range(40)], metadata=metadata)


def unsealed(data: Path, spec: IndexSpec) -> int:
    with closing(Reader(DataFolder(data).index(spec.id).state)) as reader:
        [(sealed, applied)] = reader.rows("SELECT sealed_through, applied FROM progress")
    return int(applied - sealed)


def segments(data: Path, spec: IndexSpec) -> list[tuple[str, int]]:
    with closing(Reader(DataFolder(data).index(spec.id).state)) as reader:
        return reader.rows("SELECT name, first_sequence FROM segments ORDER BY first_sequence")


async def everything(running: Running, spec: IndexSpec) -> Rows:
    request = ListRequest(count=100_000, rules=FilterRules(), include_records=True)
    page = await running.store.list_page(spec, request)
    return {id: one.values for id, one in zip(page.ids, page.records, strict=True) if one is not None}


async def salvaged(settings, spec, *, loses: bool, capsys) -> tuple[Rows, str]:
    """What the index holds after doctor --salvage, and what that said."""
    assert run_doctor(settings, mend=False) == 1
    assert run_doctor(settings, mend=True) == (1 if loses else 0)
    said = capsys.readouterr().out
    assert not [one for one in inspect_index(DataFolder(settings.data).index(spec.id)) if one.part != "derived"]
    async with running_on(settings) as running:
        again = running.store.index(ACCOUNT, "docs")
        head = await running.store.head(again)
        assert await running.store.wait_applied(again, head, 60)
        rows = await everything(running, again)
        assert [one.property for one in running.store.metadata_indexes(again)] == ["colour"]
        # It takes writes again.
        await running.applied(again, await running.upsert(again, batch(["new"], [[1, 2, 3, 4]])))
    return rows, said


def execute(path: Path, sql: str, values=()) -> None:
    with closing(connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql, values).rowcount


async def test_a_whole_index_is_said_to_be(stopped, capsys):
    settings, _, _ = stopped

    assert run_doctor(settings, mend=False) == 0
    assert "acc/docs: whole" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["row", "gone", "garbage", "swapped sums"])
async def test_a_damaged_state_is_made_again_without_a_loss(kind, stopped, capsys):
    settings, spec, rows = stopped
    path = DataFolder(settings.data).index(spec.id).state
    if kind == "row":
        execute(path, "UPDATE vectors SET id = id || 'x' WHERE label = (SELECT max(label) FROM vectors)")
    elif kind == "swapped sums":
        execute(path, "UPDATE progress SET vectors = vectors + 1")
    elif kind == "gone":
        path.unlink()
    else:
        path.write_bytes(b"rubbish" * 5000)
    shutil.rmtree(path.with_name("state.db-wal"), ignore_errors=True)

    found, _ = await salvaged(settings, spec, loses=False, capsys=capsys)
    assert found == rows


async def test_a_lost_witness_is_written_again(stopped, capsys):
    settings, spec, rows = stopped
    DataFolder(settings.data).index(spec.id).witness.unlink()

    found, _ = await salvaged(settings, spec, loses=False, capsys=capsys)
    assert found == rows


async def test_a_damaged_body_is_one_failed_mutation(stopped, capsys):
    settings, spec, rows = stopped
    path = DataFolder(settings.data).index(spec.id).log
    with closing(Reader(path)) as reader:
        [(sequence, id)] = reader.rows("SELECT sequence, mutation_id FROM mutations ORDER BY sequence DESC LIMIT 1")
    execute(path, "UPDATE bodies SET body = zeroblob(100) WHERE sequence = ?", (sequence,))

    found, said = await salvaged(settings, spec, loses=True, capsys=capsys)
    assert id in said
    assert f"mutations {sequence}" in said
    lost = {f"v{place}" for place in range(21 * 20, 21 * 20 + 40)}
    assert {key: value for key, value in found.items() if key not in lost} == {
        key: value for key, value in rows.items() if key not in lost
    }
    async with running_on(settings) as running:
        status = await running.store.mutation(running.store.index(ACCOUNT, "docs"), id)
        assert status.state is MutationState.FAILED


async def test_a_log_that_lost_its_end_says_which_mutations_and_goes_on_behind_them(stopped, capsys):
    settings, spec, _ = stopped
    folder = DataFolder(settings.data).index(spec.id)
    with closing(Reader(folder.log)) as reader:
        [(head,)] = reader.rows("SELECT sequence FROM head")
    execute(folder.log, "DELETE FROM bodies WHERE sequence = ?", (head,))
    execute(folder.log, "DELETE FROM mutations WHERE sequence = ?", (head,))
    execute(
        folder.log,
        "UPDATE head SET (sequence, mutation_id, created_ms, chain, bytes_through) = "
        "(SELECT sequence, mutation_id, created_ms, chain, bytes_through FROM mutations "
        "ORDER BY sequence DESC LIMIT 1)",
    )

    _, said = await salvaged(settings, spec, loses=True, capsys=capsys)
    assert f"mutations {head}" in said


@pytest.mark.parametrize("kind", ["gone", "garbage"])
async def test_a_log_that_is_gone_is_begun_anew_behind_what_is_sealed(kind, stopped, capsys):
    settings, spec, rows = stopped
    path = DataFolder(settings.data).index(spec.id).log
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(b"rubbish" * 5000)
    with closing(Reader(DataFolder(settings.data).index(spec.id).state)) as reader:
        [(sealed, applied)] = reader.rows("SELECT sealed_through, applied FROM progress")
    assert run_doctor(settings, mend=True) == 1

    said = capsys.readouterr().out
    assert f"mutations {sealed + 1} to {applied}" in said
    async with running_on(settings) as running:
        again = running.store.index(ACCOUNT, "docs")
        assert await running.store.wait_applied(again, await running.store.head(again), 60)
        assert (await running.upsert(again, batch(["new"], [[1, 2, 3, 4]]))).sequence == applied + 1
        assert (await everything(running, again)).keys() <= rows.keys() | {"new"}


async def test_damaged_vectors_are_lost_by_name_and_the_others_are_kept(stopped, capsys):
    settings, spec, rows = stopped
    [(name, _), *_] = segments(settings.data, spec)
    folder = DataFolder(settings.data).index(spec.id)
    flip(folder.segments / name / "ids.bin")
    with closing(Reader(folder.state)) as reader:
        [sealed] = reader.rows("SELECT sealed_through FROM progress")
    execute(folder.log, "UPDATE head SET pruned_through = ?", sealed)
    with closing(connect(folder.log, isolation_level=None)) as connection:
        connection.execute("DELETE FROM bodies WHERE sequence <= ?", sealed)

    found, said = await salvaged(settings, spec, loses=True, capsys=capsys)
    assert "LOST" in said
    assert found.items() <= rows.items()


async def test_a_damaged_segment_is_applied_again_where_the_log_still_has_it(small, capsys):
    settings = replace(small, seal_mutations=6, merge_idle_ms=1 << 40, log_retain_ms=1 << 40, segments_max=50)
    async with running_on(settings) as running:
        spec = await running.index()
        body = pack_json({"property": "colour", "type": "string"})
        named = MetadataIndex(id=0, property="colour", type=MetadataType.STRING)
        await running.store.append(
            spec, Change(action=Action.CREATE_METADATA_INDEX, body=body, rows=0, metadata_index=named), RELAXED
        )
        for number in range(10):
            await running.applied(spec, await running.upsert(spec, some(number)))
            await running.applied(spec, await running.delete(spec, [f"v{number * 20 + 3}"]))
            await asyncio.sleep(0.05)
        await until(lambda: len(segments(settings.data, spec)) > 1)
        rows = await everything(running, spec)
    for name, _ in segments(settings.data, spec):
        flip(DataFolder(settings.data).index(spec.id).segments / name / "slots" / "0" / "vectors.f32")

    found, _ = await salvaged(settings, spec, loses=False, capsys=capsys)
    assert found == rows


async def test_an_older_state_in_its_place_is_refused(stopped):
    settings, spec, _ = stopped
    folder = DataFolder(settings.data).index(spec.id)
    with closing(Reader(folder.state)) as reader:
        [sealed] = reader.rows("SELECT sealed_through FROM progress")
    execute(folder.log, "UPDATE head SET pruned_through = ?", sealed)
    folder.state.unlink()
    migrate(folder.state, "state")

    async with running_on(settings) as running:
        again = running.store.index(ACCOUNT, "docs")
        with pytest.raises(StateDamaged, match="older"):
            running.store.metadata_indexes(again)
        with pytest.raises(StateDamaged, match="older"):
            running.store.progress(again)


async def test_a_metadata_index_that_vanished_from_a_state_is_not_taken_for_deleted(stopped):
    settings, spec, _ = stopped
    execute(DataFolder(settings.data).index(spec.id).state, "DELETE FROM metadata_indexes")

    async with running_on(settings) as running:
        with pytest.raises(StateDamaged):
            running.store.metadata_indexes(running.store.index(ACCOUNT, "docs"))


def test_ranges_that_touch_are_one_and_a_gap_stays():
    assert joined([(21, 30), (1, 10), (11, 20)]) == ((1, 30),)
    assert joined([(21, 30), (1, 10)]) == ((1, 10), (21, 30))


def flip(path: Path) -> None:
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content.tobytes())
