"""Figures that processes share, on a disk with room and on one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from storage.runtime import give_back_metrics_room

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


def test_what_a_process_counted_outlives_it_in_the_room_it_needs(tmp_path: Path) -> None:
    counted(tmp_path, "")
    files = sorted(tmp_path.iterdir())
    pid = int(files[0].stem.partition("_")[2])
    before = {file.name: list(MmapedDict.read_all_values_from_file(file)) for file in files}

    give_back_metrics_room(tmp_path, pid)

    assert sum(file.stat().st_size for file in files) < 64 * 1024
    assert {file.name: list(MmapedDict.read_all_values_from_file(file)) for file in files} == before


@pytest.mark.parametrize("content", [b"", bytes(4096), b"\x00\x00"], ids=["empty", "never used", "cut off"])
def test_a_file_of_figures_that_nothing_was_written_to_becomes_no_larger(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "counter_7.db"
    file.write_bytes(content)

    give_back_metrics_room(tmp_path, 7)

    assert file.stat().st_size == min(len(content), 8)


def test_on_a_full_disk_a_process_counts_for_itself(tmp_path: Path) -> None:
    assert counted(tmp_path, FULL) == "[1.0]"
    assert list(tmp_path.iterdir()) == []
