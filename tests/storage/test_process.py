"""What a process allows itself, and what it makes of the end of that."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.migrate import migrate
from storage.errors import StateDamaged, StoreBusy
from storage.process import CHILD_VARIABLE, Inheritance, raise_open_files_limit
from storage.settings import Settings

LEAVING = """
import sys
import threading
from storage.errors import StateDamaged
from storage.process import run_child

async def main(settings, ready, stop):
    threading.Thread(target=threading.Event().wait).start()
    ready()
    raise StateDamaged("what was read is wrong")

sys.exit(run_child(main))
"""


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The limit that this process cannot raise; its own is put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_may_open_more_files_than_it_was_started_for(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard_limit))

    raise_open_files_limit()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == hard_limit
    assert soft == min(hard_limit, 65_536) or hard_limit == resource.RLIM_INFINITY


def test_a_database_that_cannot_be_opened_for_want_of_descriptors_is_not_called_damaged(
    hard_limit: int, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    migrate(path, "state")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard_limit))

    with pytest.raises(StoreBusy):
        Reader(path).version()


def test_a_database_that_is_not_there_is(tmp_path: Path) -> None:
    with pytest.raises(StateDamaged):
        Reader(tmp_path / "state.db").version()


def test_a_child_that_left_a_database_open_ends_all_the_same(tmp_path: Path) -> None:
    """A database has a thread, which Python would wait for: a worker that was to be started again hung for ever."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        settings = replace(Settings(), data=tmp_path)
        handed = Inheritance(name="worker", settings=settings, parent_fd=theirs.fileno(), listen_fd=-1)
        root = str(Path(__file__).resolve().parents[2])
        ended = subprocess.run(
            [sys.executable, "-P", "-c", LEAVING],
            env={**os.environ, CHILD_VARIABLE: handed.to_text(), "PYTHONPATH": root},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            check=False,
        )

    assert ended.returncode == 1
    assert b"process.left_open" in ended.stdout + ended.stderr
