"""What a process takes, read from `/proc`: memory, descriptors, threads, wake-ups, CPU time.

From outside: nothing is asked of the process, so nothing wakes it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process has taken at one moment. `private_mb` is what nobody shares (USS); `wakes` are all switches."""

    rss_mb: float
    pss_mb: float
    private_mb: float
    descriptors: int
    threads: int
    wakes: int
    cpu_s: float


def usage(pid: int) -> Usage:
    """What a process has taken now."""
    process = Path("/proc") / str(pid)
    memory = _fields(process / "smaps_rollup")
    stat = (process / "stat").read_text().rpartition(")")[2].split()
    return Usage(
        rss_mb=memory["Rss"] / 1024,
        pss_mb=memory["Pss"] / 1024,
        private_mb=(memory["Private_Clean"] + memory["Private_Dirty"]) / 1024,
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(stat[17]),
        wakes=sum(_switches(task) for task in (process / "task").iterdir()),
        cpu_s=(int(stat[11]) + int(stat[12])) * TICK_S,
    )


def _switches(task: Path) -> int:
    try:
        fields = _fields(task / "status")
    except (FileNotFoundError, ProcessLookupError):  # A thread that ended meanwhile.
        return 0
    return fields["voluntary_ctxt_switches"] + fields["nonvoluntary_ctxt_switches"]


def _fields(path: Path) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+)", path.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}
