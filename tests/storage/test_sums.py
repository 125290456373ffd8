"""Any row of `state.db` that is not what was written shows: at once where it is answered from, else to who compares."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from storage.backends.sqlite.database import Reader, Statements
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.inspection import is_certain, is_certain_of
from storage.backends.sqlite.publishing import condemn
from storage.backends.sqlite.state import StateReader, labels_of
from storage.batch import pack_json
from storage.errors import StateDamaged
from storage.limits import RELAXED
from storage.records import Action, Change, MetadataIndex, MetadataType
from tests.conftest import batch, running_on

AT_ONCE = (
    "UPDATE progress SET vectors = vectors + 1",
    "UPDATE progress SET applied_ms = applied_ms + 1",
    "UPDATE progress SET sealed_through = sealed_through - 1",
    "UPDATE progress SET digest = digest + 1",
    "UPDATE sums SET rest = rest + 1",
    "UPDATE tombstones SET label = label + 1000 WHERE sequence = (SELECT min(sequence) FROM tombstones)",
    "DELETE FROM tombstones WHERE sequence = (SELECT max(sequence) FROM tombstones)",
    "UPDATE parts SET first_label = first_label + 1",
    "UPDATE segments SET checksum = 'x'",
    "DELETE FROM segments",
    "UPDATE metadata_indexes SET type = 'number'",
)
BY_THE_SCRUB = (
    "UPDATE vectors SET id = id || 'x' WHERE label = (SELECT max(label) FROM vectors)",
    "UPDATE vectors SET added = added + 1 WHERE label = (SELECT max(label) FROM vectors)",
    "UPDATE vectors SET removed_ms = removed_ms + 1 WHERE removed > 0",
    "UPDATE vectors SET removed = 0 WHERE removed > 0",
    "DELETE FROM vectors WHERE label = (SELECT max(label) FROM vectors)",
    "UPDATE outcomes SET inserted = inserted + 1 WHERE sequence = 1",
    "DELETE FROM namespaces",
)


@pytest.fixture
async def state(small):
    """The state of an index with a bit of everything, which nobody has open."""
    settings = replace(small, grace_ms=0, seal_idle_ms=50)
    async with running_on(settings) as running:
        spec = await running.index()
        named = MetadataIndex(id=0, property="colour", type=MetadataType.STRING)
        change = Change(
            action=Action.CREATE_METADATA_INDEX,
            body=pack_json({"property": "colour", "type": "string"}),
            rows=0,
            metadata_index=named,
        )
        await running.store.append(spec, change, RELAXED)
        for number in range(60):
            ids = [f"v{number % 7}", f"w{number}"]
            last = await running.upsert(spec, batch(ids, [[1, 2, number, 4]] * 2, namespaces=["a", ""]))
        await running.applied(spec, last)
        path = DataFolder(settings.data).index(spec.id).state
        for _ in range(4):
            await running.stop_worker()
            with closing(StateReader(Reader(path))) as reader:
                if reader.rows("SELECT 1 FROM segments") and not reader.rows("SELECT 1 FROM parts"):
                    break
            await running.start_worker()
            last = await running.upsert(spec, batch(["again"], [[1, 2, 3, 4]]))
            await running.applied(spec, last)
        last = await running.delete(spec, ["v0"])
    return path


def verify(path) -> None:
    with closing(StateReader(Reader(path))) as reader:
        reader.verified_manifest()


def change(path, sql) -> int:
    with closing(connect(path, isolation_level=None)) as connection:
        return connection.execute(sql).rowcount


async def test_a_state_that_is_what_was_written_passes(state):
    verify(state)


@pytest.mark.parametrize("sql", AT_ONCE)
async def test_what_a_manifest_is_made_of_is_compared_whenever_it_is_read(sql, state):
    if not change(state, sql):
        pytest.skip("no such row this time")

    with closing(StateReader(Reader(state))) as reader, pytest.raises(StateDamaged):
        reader.manifest()


@pytest.mark.parametrize("sql", BY_THE_SCRUB)
async def test_every_other_row_is_compared_before_anything_lasting_is_made_of_it(sql, state):
    changed = change(state, sql)

    assert changed or "removed > 0" in sql
    if changed:
        with pytest.raises(StateDamaged):
            verify(state)


@pytest.mark.parametrize("row", [("v1", None), ("v1", -30347), ("v1", "7"), ("v1", 1.5), (None, 7), (b"v1", 7)])
def test_a_row_that_could_never_be_written_is_damage_and_no_crash(row):
    """A flipped bit in the head of a record changes the type of a value, whatever the table says."""
    with pytest.raises(StateDamaged):
        labels_of([("v0", 1), row])


async def test_a_condemned_state_stays_condemned(state):
    for _ in range(3):
        with closing(connect(state, isolation_level=None)) as connection:
            condemn(Statements(connection))
        with closing(StateReader(Reader(state))) as reader, pytest.raises(StateDamaged):
            reader.state()


def test_what_cannot_be_read_now_is_not_damage(tmp_path):
    no_database = StateDamaged("state.db cannot be read as a database: file is not a database")

    assert is_certain(StateDamaged("state.db is damaged: rows are not what was written in vectors"))
    assert not is_certain(StateDamaged("state.db: out of memory"))
    # SQLite says that of a page it could not read, too: it is certain where every byte can be read.
    assert not is_certain(no_database)
    (tmp_path / "state.db").write_bytes(b"no database")
    assert is_certain_of(tmp_path / "state.db", no_database)
    (tmp_path / "state.db-wal").mkdir()
    assert not is_certain_of(tmp_path / "state.db", no_database)
