"""What is measured during a soak, and how much of it may come on top in an hour."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.trials.workers_crew import Crew
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.glance import glance
from storage.errors import StorageError
from storage.records import IndexId

MIB = 1 << 20
BOUNDS = {"private MiB": 4.0, "descriptors": 2.0, "maps": 8.0}
"""By how much each may grow in an hour. Resident memory is sampled as well, and is the kernel's affair: pages of
segments that were mapped."""
WAL_BYTES_MAX = 32 * MIB
"""Of any one database: it is emptied when it passes 16 MB."""
BACKLOG_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything at a moment, by the name of what was measured: "maps of service-0"."""

    at_s: float
    values: dict[str, float]


def sample(some: Crew, at_s: float) -> Sample:
    """Take one. A process that has just been killed is left out."""
    values: dict[str, float] = {}
    for member in some.members:
        values |= _process(member.supervisor, f"{member.name}'s supervisor")
        for pid in member.children():
            values |= _process(pid, member.name)
    data = DataFolder(some.folder / "data")
    # A folder that is taken away meanwhile is no error to `os.walk`.
    files = [Path(folder, name) for folder, _, names in os.walk(data.path) for name in names]
    values["wal bytes"] = float(max((_size(path) for path in files if path.name.endswith("-wal")), default=0))
    values["disk MiB"] = sum(map(_size, files)) / MIB
    backlog = 0
    for folder in data.indexes.iterdir():
        try:
            seen = glance(data.index(IndexId(folder.name)))
        except StorageError:
            continue
        backlog += max(0, seen.head - seen.applied)
    values["backlog"] = float(backlog)
    return Sample(at_s, values)


def growth(times: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """By how much it grows in an hour (the median slope of all pairs, which a few outliers do not move), and the
    median."""
    if len(times) < 3:
        return 0.0, float(np.median(values)) if len(values) else 0.0
    pairs = np.triu_indices(len(times), max(1, len(times) // 4))
    slopes = (values[pairs[1]] - values[pairs[0]]) / (times[pairs[1]] - times[pairs[0]])
    return float(np.median(slopes)) * 3600, float(np.median(values))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _process(pid: int, name: str) -> dict[str, float]:
    folder = Path(f"/proc/{pid}")
    try:
        rollup = {
            line.partition(":")[0]: int(line.split()[1])
            for line in (folder / "smaps_rollup").read_text().splitlines()[1:]
        }
        return {
            f"private MiB of {name}": (rollup["Private_Clean"] + rollup["Private_Dirty"]) / 1024,
            f"resident MiB of {name}": rollup["Rss"] / 1024,
            f"descriptors of {name}": float(len(list((folder / "fd").iterdir()))),
            f"maps of {name}": float((folder / "maps").read_text().count("\n")),
        }
    except (OSError, KeyError, IndexError):
        return {}
