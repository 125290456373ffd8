"""Figures that processes share, on a disk with room and on one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
import os
{before}
import storage.telemetry as telemetry
telemetry.MUTATIONS.labels("upsert").inc()
print([value.value for metric in telemetry.MUTATIONS.collect() for value in metric.samples if "total" in value.name])
"""
FULL = """
def full(*_):
    raise OSError(28, "No space left on device")
os.posix_fallocate = full
"""


def counted(folder: Path, before: str) -> str:
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", COUNT.format(before=before)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_files_of_figures_have_no_holes_that_a_full_disk_could_not_fill(tmp_path: Path) -> None:
    assert counted(tmp_path, "") == "[1.0]"
    files = {file.name.split("_")[0]: file.stat() for file in tmp_path.iterdir()}
    assert set(files) == {"counter", "histogram"}
    assert all(found.st_blocks * 512 >= found.st_size > 0 for found in files.values())


def test_on_a_full_disk_a_process_counts_for_itself(tmp_path: Path) -> None:
    assert counted(tmp_path, FULL) == "[1.0]"
    assert list(tmp_path.iterdir()) == []
