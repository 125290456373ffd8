"""The tracer of `scripts/torture syscalls`: every call that changes a file is seen, and the last one is not done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, subprocess, sys, threading
from dataclasses import asdict
from pathlib import Path
from scripts.trials import syscalls_trace

root = Path(sys.argv[1])

def work():
    (root / "a").write_text("text")
    thread = threading.Thread(target=lambda: (root / "a").rename(root / "b"))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", f"open({str(root / 'c')!r}, 'x').close()"], check=True)
    (root / "b").read_text()
    (root / "b").unlink()

if missing := syscalls_trace.missing():
    print(json.dumps(missing))
else:
    print(json.dumps(asdict(syscalls_trace.run(work, root, kill_at=int(sys.argv[2]), timeout_s=30))))
"""
CALLS = ["openat a", "write a", "rename a", "openat c", "unlink b"]


def traced(folder: Path, kill_at: int) -> dict[str, Any]:
    """What the tracer says, in a process that has no other children."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(folder), str(kill_at)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    if isinstance(found, str):
        pytest.skip(found)
    assert isinstance(found, dict)
    return found


def test_calls_of_all_threads_and_processes_are_counted_together(tmp_path: Path) -> None:
    found = traced(tmp_path, 0)

    assert found["calls"] == CALLS
    assert found["exit_code"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("kill_at", "left"),
    [(1, []), (2, ["a"]), (3, ["a"]), (4, ["b"]), (5, ["b", "c"])],
)
def test_everything_is_killed_right_before_one_call(kill_at: int, left: list[str], tmp_path: Path) -> None:
    found = traced(tmp_path, kill_at)

    assert found["calls"] == CALLS[:kill_at]
    assert found["exit_code"] == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    if kill_at == 2:
        assert (tmp_path / "a").read_text() == ""
