"""What has been measured, on disk: one file, to which every part of a run is added when it is done.

A run that is cut off loses only the part it was at, and a part that is measured again takes the place of its older
self. Ratios are honest only within one machine, so the file says which it was, and each part when and on what load.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pysqlite3

from scripts.benchmark.results import Measurement, from_dicts

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("usearch", "numpy", "aiohttp", "pysimdjson", "orjson")


class Journal:
    """The file `results.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = orjson.loads(path.read_bytes()) if path.exists() else {}
        self.machine: dict[str, Any] = stored.get("machine", {})
        self.parts: list[dict[str, Any]] = stored.get("parts", [])

    def add(self, part: str, set: str, rows: int, found: Iterable[Measurement], **about: object) -> None:
        """Keep what a part found, in place of what it found before."""
        key = {"part": part, "set": set, "rows": rows}
        self.parts = [one for one in self.parts if {name: one[name] for name in key} != key]
        self.parts.append({**key, **about, "measurements": [one.as_dict() for one in found]})
        self.machine = machine()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(orjson.dumps({"machine": self.machine, "parts": self.parts}, option=orjson.OPT_INDENT_2))
        temporary.replace(self.path)

    @property
    def measurements(self) -> list[Measurement]:
        """Of all parts."""
        return [one for part in self.parts for one in from_dicts(part["measurements"])]


def now() -> dict[str, object]:
    """The time, and how busy the machine was with other things a moment before."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load average": round(os.getloadavg()[0], 2),
        "source": _source(),
    }


def machine() -> dict[str, object]:
    """What the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(memory_kb / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "SQLite": pysqlite3.sqlite_version,
        **{name: version(name) for name in PACKAGES},
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _source() -> str:
    """The commit that was measured, with a plus where files differ from it."""
    commit = _git("rev-parse", "--short", "HEAD")
    return commit + "+" * bool(_git("status", "--porcelain", "--", "service", "storage", "worker"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
