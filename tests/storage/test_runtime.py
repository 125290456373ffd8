"""The runtime folder: one per data folder, private, short enough for sockets."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.runtime import (
    ABANDONED_S,
    METRICS,
    RuntimeFolderInvalid,
    clear_stale_metrics,
    present,
    runtime_folder,
    sweep_abandoned,
)


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
    folder = runtime_folder(tmp_path)
    living = folder / f"counter_{os.getpid()}.db"
    dead = folder / "gauge_livesum_99999999.db"
    living.touch()
    dead.touch()

    clear_stale_metrics(folder)

    assert list(folder.iterdir()) == [living]


DEAD = 99_999_999
"""The number of no process."""


def killed(data: Path, *, pid: int = DEAD, age_s: float = 2 * ABANDONED_S) -> Path:
    """The folder of a process that was killed so long ago."""
    folder = runtime_folder(data)
    (folder / METRICS).mkdir()
    (folder / METRICS / f"counter_{pid}.db").touch()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bell:
        bell.bind(str(folder / f"service-{pid}-abcdef.sock"))
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_folders_of_the_killed_go_at_the_next_start(tmp_path: Path) -> None:
    left = [killed(tmp_path / name) for name in ("a", "b")]

    assert sweep_abandoned(tmp_path / "c") == 2

    assert not any(folder.exists() for folder in left)
    assert runtime_folder(tmp_path / "c").exists()


def test_a_folder_for_temporary_files_that_cannot_be_listed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: Path) -> None:
        raise PermissionError

    left = killed(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", unreadable)
        assert sweep_abandoned(tmp_path / "c") == 0

    assert left.exists()


@pytest.mark.parametrize("kind", ["new", "of a living process", "answered", "of others", "with something else", "link"])
def test_what_may_be_in_use_or_is_not_ours_is_left(tmp_path: Path, temporary_root: Path, kind: str) -> None:
    match kind:
        case "new":
            kept = killed(tmp_path / "a", age_s=1)
        case "of a living process":
            kept = killed(tmp_path / "a", pid=os.getpid())
        case "of others":
            kept = killed(tmp_path / "a").rename(temporary_root / f"headrace-{os.getuid() + 1}-{'0' * 16}")
        case "link":
            kept = temporary_root / f"headrace-{os.getuid()}-{'0' * 16}"
            kept.symlink_to(killed(tmp_path / "a").rename(temporary_root / "else"))
        case _:
            kept = killed(tmp_path / "a")
    if kind == "with something else":
        (kept / "else").touch()
    then = kept.stat().st_mtime if kind == "new" else time.time() - 2 * ABANDONED_S
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bell:
        if kind == "answered":
            # As of a process in a container of its own, whose number means nothing here.
            bell.bind(str(kept / f"worker-{DEAD}-123456.sock"))
        os.utime(kept, (then, then))

        assert sweep_abandoned(tmp_path / "c") == 0

    assert kept.exists()
    assert (kept / "else").exists() == (kind == "with something else")


def test_the_last_to_leave_takes_the_folder_away(tmp_path: Path) -> None:
    with present(tmp_path) as metrics:
        with present(tmp_path) as same:
            assert same == metrics
        assert metrics.is_dir(), "another is still there, and has written nothing yet"

    assert not metrics.parent.exists()


def test_who_enters_as_the_last_one_leaves_makes_the_folder_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = fcntl.flock, []

    def overtaken(descriptor: int, operation: int) -> None:
        if not left:
            left.append(runtime_folder(tmp_path))
            left[0].rmdir()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with present(tmp_path) as metrics:
        assert left == [metrics.parent]
        assert metrics.is_dir()


def test_a_folder_somebody_is_present_in_is_not_abandoned(tmp_path: Path) -> None:
    with present(tmp_path / "a") as metrics:
        then = time.time() - 2 * ABANDONED_S
        os.utime(metrics.parent, (then, then))

        assert sweep_abandoned(tmp_path / "c") == 0

        assert metrics.is_dir()
