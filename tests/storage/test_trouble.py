"""What an operator is told of an index that works."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.trouble import NEWEST_MAX, Troubles
from storage.errors import StoreBusy


def reading(failed: int, log_rows) -> SimpleNamespace:
    """A reader of an index whose mutations all failed."""
    return SimpleNamespace(
        progress=lambda: SimpleNamespace(applied=failed),
        state_reader=SimpleNamespace(
            rows=lambda _, values: [(one, f"error {one}") for one in range(values[0] + 1, values[1] + 1)]
        ),
        log=SimpleNamespace(rows=log_rows),
    )


async def test_what_was_set_aside_counts_once_though_a_look_at_it_failed(tmp_path: Path) -> None:
    troubles = Troubles(IndexFolder(tmp_path))

    def busy_for_the_second(_, values):
        if values == (2,):
            raise StoreBusy("not now")
        return [(f"id {values[0]}",)]

    with pytest.raises(StoreBusy):
        await troubles.now(reading(2, busy_for_the_second))
    found = await troubles.now(reading(2, lambda _, values: [(f"id {values[0]}",)]))

    assert found.set_aside_count == 2
    assert [(one.id, one.error) for one in found.set_aside] == [("id 2", "error 2"), ("id 1", "error 1")]


async def test_of_many_the_newest_are_named_and_only_those_are_looked_up(tmp_path: Path) -> None:
    asked = []

    def log_rows(_, values):
        asked.append(values)
        return []

    found = await Troubles(IndexFolder(tmp_path)).now(reading(100, log_rows))

    assert found.set_aside_count == 100
    assert [one.error for one in found.set_aside] == [f"error {one}" for one in range(100, 100 - NEWEST_MAX, -1)]
    assert len(asked) == NEWEST_MAX
