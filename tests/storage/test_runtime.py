"""The runtime folder: one per data folder, private, short enough for sockets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.runtime import RuntimeFolderInvalid, clear_stale_metrics, metrics_folder, runtime_folder


@pytest.fixture(autouse=True)
def temporary_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Short, because pytest's own folders are deeper than the name of a socket may be.
    with tempfile.TemporaryDirectory(prefix="hr-") as root:
        monkeypatch.setenv("TMPDIR", root)
        yield Path(root)


def test_two_spellings_of_one_data_folder_meet_in_one_runtime_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")

    assert runtime_folder(tmp_path / "link") == runtime_folder(tmp_path / "data")
    assert runtime_folder(tmp_path / "other") != runtime_folder(tmp_path / "data")


def test_the_folder_is_private_and_short_however_deep_the_data_is(tmp_path: Path, temporary_root: Path) -> None:
    folder = runtime_folder(tmp_path / ("deep/" * 100))

    assert folder.parent == temporary_root
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(folder)) <= 64


def test_a_long_temporary_root_is_left_for_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / ("x" * 100)
    root.mkdir()
    monkeypatch.setenv("TMPDIR", str(root))

    folder = runtime_folder(tmp_path / "data")

    assert len(os.fsencode(folder)) <= 64
    assert not list(root.iterdir())
    folder.rmdir()


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, kind: str) -> None:
    folder = runtime_folder(tmp_path)
    folder.rmdir()
    match kind:
        case "open to others":
            folder.mkdir(mode=0o700)
            folder.chmod(0o770)
        case "a link":
            folder.symlink_to(tmp_path)
        case _:
            folder.touch()

    with pytest.raises(RuntimeFolderInvalid, match="remove it"):
        runtime_folder(tmp_path)


def test_metrics_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    folder = metrics_folder(tmp_path)
    living = folder / f"counter_{os.getpid()}.db"
    dead = folder / "gauge_livesum_99999999.db"
    living.touch()
    dead.touch()

    clear_stale_metrics(folder)

    assert list(folder.iterdir()) == [living]
