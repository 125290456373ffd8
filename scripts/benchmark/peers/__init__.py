"""The peers: each is measured by a program that runs in the peer's own environment (see `environments`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from scripts.benchmark.environments import REQUIREMENTS, NotInstalled, environment

NAMES = ("chroma", "pgvector", "qdrant-edge", "lancedb", "milvus-lite", "sqlite-vec", "usearch", "hnswlib", "faiss")
ROOT = Path(__file__).resolve().parents[3]
STOP_S = 15.0

assert set(NAMES) == set(REQUIREMENTS)


def measure_peer(name: str, folder: Path, work: Path, *, short: bool) -> list[dict[str, Any]]:
    """Everything measured of one peer on the data set in `folder`, as results.py writes measurements.

    `work` is where the peer may keep what it likes; it is emptied before and after. What keeps a peer from being
    measured is itself a measurement: `what` is "missing" or "failed", and the note says why.
    """
    data_set, _, rows = folder.name.rpartition("-")
    about = {"subject": name, "set": data_set, "rows": int(rows), "value": 0.0, "unit": "-"}
    try:
        python = environment(name)
    except NotInstalled as error:
        return [{**about, "what": "missing", "note": f"not installed: {error}"}]
    place = work / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    out, errors = place / "measurements.json", place / "errors.txt"
    command = [str(python), "-P", "-m", "scripts.benchmark.peers", name, "--data", str(folder)]
    command += ["--work", str(place), "--json", str(out), *(["--short"] if short else [])]
    # The slowest peer indexes some 200 rows a second.
    problem = _run(command, errors, seconds=60.0 if short else 900 + int(rows) / 100)
    found: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    if problem:
        lines = errors.read_text(errors="replace").strip().splitlines()
        found.append({**about, "what": "failed", "note": f"{problem}: {lines[-1][:300] if lines else ''}"})
    shutil.rmtree(place, ignore_errors=True)
    return found


def _run(command: list[str], errors: Path, *, seconds: float) -> str:
    """Run to the end or to the time allowed; what went wrong, or nothing. No process of it is left."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with errors.open("wb") as stderr:
        # A session of its own, so that a peer's servers can be stopped with it.
        process = subprocess.Popen(command, stderr=stderr, stdout=stderr, env=environ, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:.0f} s"
        finally:
            _stop_group(process)
    return f"ended with {code}" if code else ""


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_S)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue
