"""Migrations: whole or not at all, and together exactly what schema.sql says."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.migrate import KINDS, MIGRATIONS, create, is_current, migrate, migrations, statements
from storage.errors import SchemaChanged, SchemaTooNew


def schema(path: Path) -> list[tuple[str, ...]]:
    connection = connect(path)
    try:
        return connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name <> 'migrations' ORDER BY type, name"
        ).fetchall()
    finally:
        connection.close()


def pragmas(path: Path) -> list[object]:
    """What only the first statements of a database can set, and that all of it is there."""
    asked = ("journal_mode", "auto_vacuum", "page_size", "integrity_check")
    with closing(connect(path)) as connection:
        return [connection.execute(f"PRAGMA {one}").fetchall() for one in asked]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may change."""
    return Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_migrations_together_give_exactly_the_schema(kind, tmp_path):
    migrate(tmp_path / "migrated.db", kind)
    connection = connect(tmp_path / "schema.db", isolation_level=None)
    for statement in statements((MIGRATIONS / kind / "schema.sql").read_text()):
        connection.execute(statement)
    connection.close()

    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "schema.db")


@pytest.mark.parametrize("kind", KINDS)
def test_every_new_database_is_as_migrations_make_it_and_a_file_of_its_own(kind, tmp_path):
    migrate(tmp_path / "migrated.db", kind)
    names = [f"{number}.db" for number in range(3)]  # At least the later ones are copies of the first.
    for name in names:
        create(tmp_path / name, kind)
    with closing(connect(tmp_path / names[0], isolation_level=None)) as connection:
        connection.execute("CREATE TABLE apart (x INTEGER) STRICT")

    for name in names[1:]:
        assert schema(tmp_path / name) == schema(tmp_path / "migrated.db")
        assert pragmas(tmp_path / name) == pragmas(tmp_path / "migrated.db")
        assert is_current(tmp_path / name, kind)


def test_a_new_database_never_takes_the_place_of_another(tmp_path):
    create(tmp_path / "first.db", "log")
    create(tmp_path / "log.db", "log")

    with pytest.raises(FileExistsError):
        create(tmp_path / "log.db", "log")


def test_a_second_run_does_nothing(tmp_path):
    assert migrate(tmp_path / "log.db", "log") == len(migrations("log"))

    assert migrate(tmp_path / "log.db", "log") == 0
    assert is_current(tmp_path / "log.db", "log")


def test_a_newer_schema_is_refused_with_what_to_do(root, tmp_path):
    (root / "log" / "0002_later.sql").write_text("CREATE TABLE later (x INTEGER) STRICT;\n")
    migrate(tmp_path / "log.db", "log", root)

    with pytest.raises(SchemaTooNew, match="newer Headrace"):
        migrate(tmp_path / "log.db", "log")


def test_a_migration_that_was_edited_after_it_was_applied_is_refused(root, tmp_path):
    migrate(tmp_path / "log.db", "log", root)
    first = next((root / "log").glob("0001_*.sql"))
    first.write_text(first.read_text() + "-- edited\n")

    with pytest.raises(SchemaChanged, match="log migration 1"):
        migrate(tmp_path / "log.db", "log", root)


def test_a_migration_that_fails_half_way_leaves_the_old_schema(root, tmp_path):
    migrate(tmp_path / "log.db", "log", root)
    before = schema(tmp_path / "log.db")
    (root / "log" / "0002_bad.sql").write_text("CREATE TABLE one (x INTEGER) STRICT;\nCREATE TABLE one (x INTEGER);\n")

    with pytest.raises(Exception, match="already exists"):
        migrate(tmp_path / "log.db", "log", root)

    assert schema(tmp_path / "log.db") == before
    assert not is_current_with(tmp_path / "log.db", root)


def is_current_with(path: Path, root: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        [(done,)] = connection.execute("SELECT count(*) FROM migrations").fetchall()
    finally:
        connection.close()
    return bool(done == len(migrations("log", root)))
