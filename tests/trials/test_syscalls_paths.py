"""The folders that `scripts/torture syscalls` begins with."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from scripts.trials.syscalls_paths import as_of_old
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder, create_index_folder
from storage.backends.sqlite.migrate import is_current, migrate
from storage.records import IndexId

SCHEMA_SQL = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"


def schema(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(connect(path)) as connection:
        return connection.execute(SCHEMA_SQL).fetchall()


@pytest.mark.parametrize("kind", ["control", "state"])
def test_what_is_made_old_is_migrated_to_the_schema_of_this_program(tmp_path: Path, kind: str):
    data = DataFolder(tmp_path / "data")
    data.prepare()
    create_index_folder(data, IndexId("one"))
    path = data.control if kind == "control" else data.index(IndexId("one")).state
    new = schema(path)

    as_of_old(tmp_path)

    assert schema(path) != new
    assert not is_current(path, kind)
    assert migrate(path, kind) > 0
    assert schema(path) == new
