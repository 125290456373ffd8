"""How long the WAL of a database gets, and that what is in it counts and not what was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.backends.sqlite import database as module
from storage.backends.sqlite.database import NOOP_VERSION, Database, Reader
from storage.backends.sqlite.driver import version_info
from storage.backends.sqlite.migrate import migrate

BOUND = 64 * 1024

pytestmark = pytest.mark.skipif(version_info < NOOP_VERSION, reason="this SQLite cannot say what is in a WAL")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    migrate(tmp_path / "log.db", "log")
    database = await Database.open(tmp_path / "log.db")
    async with database.writing() as transaction:
        await transaction.rows("CREATE TABLE kept (number INTEGER PRIMARY KEY, content BLOB)")
    yield database
    await database.close()


async def keep(database: Database, size: int) -> None:
    await database.at_once(
        lambda statements: statements.rows("INSERT INTO kept (content) VALUES (zeroblob(?))", (size,))
    )


async def test_a_wal_is_written_anew_from_its_start_and_counts_by_what_is_in_it(database: Database):
    await keep(database, 2 * BOUND)
    emptied = await database.keep_wal_short(BOUND)
    size = database.wal_bytes()
    await keep(database, 100)

    assert emptied
    assert not await database.keep_wal_short(BOUND)  # The file is long, and little of it is in use.
    assert database.wal_bytes() == size > BOUND
    assert await database.rows("SELECT length(content) FROM kept ORDER BY number") == [(2 * BOUND,), (100,)]


async def test_a_wal_that_others_still_read_goes_on_growing(database: Database):
    await database.rows("PRAGMA busy_timeout = 1")
    reader = Reader(database.path)
    with reader.transaction():
        reader.rows("SELECT count(*) FROM kept")
        await keep(database, 2 * BOUND)
        emptied = await database.keep_wal_short(BOUND)
    reader.close()

    assert not emptied
    assert await database.keep_wal_short(BOUND)


async def test_a_wal_that_became_far_too_long_is_cut_off(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WAL_FILE_BYTES_MAX", 4 * BOUND)
    await keep(database, 8 * BOUND)

    assert await database.keep_wal_short(BOUND)
    assert database.wal_bytes() == 0
