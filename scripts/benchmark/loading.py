"""Loading: until acknowledged, until searchable, until fully indexed, until merged; and what bounds each.

Every load is of all rows with their metadata and eight metadata indexes. The clock of all four starts with the first
request. The bare ingest server gets the very same requests; usearch builds the same rows in the same form.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark import load
from scripts.benchmark.data import FIELDS
from scripts.benchmark.headrace import (
    INDEX,
    LOADED,
    answered,
    fill,
    forget,
    keep,
    upsert,
    upserts,
    wait_indexed,
    wait_searchable,
)
from scripts.benchmark.plan import PROCESSES, Case
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import ROOT, running

LARGE = 5_000
THREADS = 2
Times = dict[tuple[str, int], list[float]]


def measure(case: Case) -> list[Measurement]:
    """All rounds; the folder of the last is kept for the other parts."""
    forget(case)
    large = upsert(INDEX, case.data.ndjson(0, min(LARGE, case.data.rows)))
    ours: Times = {}
    bare: Times = {}
    built: list[dict[str, object]] = []
    for _ in range(case.plan.load_rounds):
        for connections in case.plan.load_connections:
            _ours(case, connections, ours)
        _ours_large(case, large, ours)
        for threads in (True, False)[case.plan.short :]:
            _bare(case, large, bare, threads=threads)
        built.append(_build(case))
    keep(case)
    return [*_figures(case, ours), *_bare_figures(case, bare), _built(case, built)]


def _ours(case: Case, connections: int, times: Times) -> None:
    with running(case.empty(LOADED), processes=PROCESSES, settings=case.settings) as server:
        started = time.perf_counter()
        run = fill(server, case, connections=connections)
        _note(times, "load.acknowledged", connections, run.seconds)
        # Making the index and its metadata indexes is no part of it.
        started += time.perf_counter() - started - run.seconds
        wait_searchable(server, run, connections)
        _note(times, "load.searchable", connections, time.perf_counter() - started)
        if connections == 1:
            wait_indexed(server, case)
            _note(times, "load.indexed", connections, time.perf_counter() - started)
            wait_indexed(server, case, segments_max=1)
            _note(times, "load.merged", connections, time.perf_counter() - started)


def _ours_large(case: Case, body: bytes, times: Times) -> None:
    with running(case.empty("large"), processes=PROCESSES, settings=case.settings) as server:
        server.create(INDEX, case.data.dimensions, FIELDS)
        run = answered(load.closed_loop(server.port, [body], connections=1, count=1))
        _note(times, "load.large", 1, run.seconds)
    case.empty("large")


def _bare(case: Case, large: bytes, times: Times, *, threads: bool) -> None:
    kind = "threads" if threads else "inline"
    requests = upserts(case)
    for connections in case.plan.load_connections:
        with bare_ingest(case.empty("bare"), case.data.dimensions, threads=threads) as port:
            run = answered(load.closed_loop(port, requests, connections=connections, count=len(requests)))
            _note(times, f"load.acknowledged {kind}", connections, run.seconds)
    with bare_ingest(case.empty("bare"), case.data.dimensions, threads=threads) as port:
        run = answered(load.closed_loop(port, [large], connections=1, count=1))
        _note(times, f"load.large {kind}", 1, run.seconds)
    case.empty("bare")


@contextmanager
def bare_ingest(folder: Path, dimensions: int, *, threads: bool) -> Iterator[int]:
    """Run the bare ingest server; gives the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-P", "-m", "scripts.benchmark.ingest_limit", "--port", str(port)]
    command += ["--data", str(folder), "--dimensions", str(dimensions), *["--threads"] * threads]
    process = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    try:
        wait_listening(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody accepts connections."""
    deadline = time.perf_counter() + 30
    while time.perf_counter() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def _build(case: Case) -> dict[str, object]:
    """What usearch did with the rows, in a process of its own."""
    vectors = str(case.data.folder / "vectors.npy")
    command = [sys.executable, "-P", "-m", "scripts.benchmark.build_limit", vectors, "--threads", str(THREADS)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def _note(times: Times, what: str, connections: int, seconds: float) -> None:
    times.setdefault((what, connections), []).append(seconds)


def _figures(case: Case, times: Times) -> Iterator[Measurement]:
    rows = case.data.rows
    for (what, connections), seconds in times.items():
        count, batch = (min(LARGE, rows), LARGE) if what == "load.large" else (rows, case.plan.batch)
        note = "with the 30 s without writes after which an index is merged" if what == "load.merged" else ""
        more = {"clients": connections, "settings": {"batch": batch, "processes": PROCESSES}, "note": note}
        if what == "load.merged":
            yield case.rounds(what, seconds, "s", **more)
        else:
            yield case.rounds(what, [count / one for one in seconds], "/s", **more)


def _bare_figures(case: Case, times: Times) -> Iterator[Measurement]:
    rows = case.data.rows
    for (what, connections), seconds in times.items():
        name, _, kind = what.partition(" ")
        count, batch = (min(LARGE, rows), LARGE) if name == "load.large" else (rows, case.plan.batch)
        rates = [count / one for one in seconds]
        settings = {"batch": batch, "processes": 1, "parsing": kind}
        yield case.rounds(name, rates, "/s", subject="limit: bare ingest", clients=connections, settings=settings)


def _built(case: Case, builds: list[dict[str, object]]) -> Measurement:
    rates = [float(str(one["per_second"])) for one in builds]
    settings = {name: value for name, value in builds[0].items() if name not in ("rows", "seconds", "per_second")}
    note = "one call, in process, no HTTP and no disk"
    return case.rounds("load.indexed", rates, "/s", subject="limit: usearch build", settings=settings, note=note)
