"""What a loaded index takes: listing, getting, memory by process and number of processes, disk, a restart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from scripts.benchmark import load
from scripts.benchmark.headrace import INDEX, answered, loaded, questions
from scripts.benchmark.plan import CLIENTS, PROCESSES, Case
from scripts.benchmark.processes import usage
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import PREFIX, Server, running

PAGE = 1_000
GET_IDS = 20


def measure(case: Case) -> list[Measurement]:
    """One start for each number of processes in every round; listing and getting with the usual number."""
    folder = loaded(case)
    found: list[Measurement] = []
    starts: list[float] = []
    firsts: list[float] = []
    for processes in case.plan.process_counts:
        for number in range(case.plan.rounds if processes == PROCESSES else 1):
            with running(folder, processes=processes, settings=case.settings) as server:
                first = _first_answer_s(server, case)
                if processes == PROCESSES:
                    starts.append(server.ready_s)
                    firsts.append(server.ready_s + first)
                if number == 0:
                    found += _memory(case, server, processes)
                    found += [*_list(case, server), *_get(case, server)] if processes == PROCESSES else []
    settings = {"processes": PROCESSES}
    found.append(case.rounds("start.ready", starts, "s", settings=settings, note="until /readyz answers 200"))
    found.append(case.rounds("start", firsts, "s", settings=settings, note="from nothing to the first answer"))
    found.append(
        case.one("disk", disk_bytes(folder) / case.data.rows, "bytes/vector", note="metadata and ids included")
    )
    return found


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _first_answer_s(server: Server, case: Case) -> float:
    started = time.perf_counter()
    body = orjson.dumps({"vector": case.data.queries[0].tolist(), "topK": 10})
    assert server.call("POST", f"/{INDEX}/query", body)["matches"]
    return time.perf_counter() - started


def _memory(case: Case, server: Server, processes: int) -> Iterator[Measurement]:
    """After all queries were asked of every process, over several connections."""
    requests = questions(case.queries, returnMetadata="all")
    for _ in range(2 if case.plan.short else 4):
        answered(load.closed_loop(server.port, requests, connections=8, count=len(requests)))
    settings = {"processes": processes}
    total = 0.0
    for kind, pids in server.pids().items():
        taken = [usage(pid) for pid in pids]
        total += sum(one.pss_mb for one in taken)
        for name in ("rss", "pss", "private"):
            values = [getattr(one, f"{name}_mb") for one in taken]
            more = {"settings": {**settings, "process": kind}, "note": "the median of its processes"}
            yield case.one(f"memory.{name}", statistics.median(values), "MB", **more)
    note = "all processes, shared pages counted once"
    yield case.one("rss" if processes == PROCESSES else "memory.all", total, "MB", settings=settings, note=note)


def _list(case: Case, server: Server) -> Iterator[Measurement]:
    """All ids, a page at a time, by cursor."""
    rates, latencies = [], []
    for _ in range(case.plan.rounds):
        listed, cursor, begun = 0, "", time.perf_counter()
        while True:
            started = time.perf_counter()
            page = server.call("GET", f"/{INDEX}/list?count={PAGE}" + (f"&cursor={cursor}" if cursor else ""))
            latencies.append((time.perf_counter() - started) * 1000)
            listed += page["count"]
            if not page["isTruncated"]:
                break
            cursor = page["nextCursor"]
        rates.append(listed / (time.perf_counter() - begun))
        assert listed >= case.data.rows, f"{listed} of {case.data.rows} were listed"
    p50, p99 = (round(float(np.percentile(latencies, percent)), 3) for percent in (50, 99))
    yield case.rounds("list", rates, "ids/s", clients=1, p50_ms=p50, p99_ms=p99, settings={"ids per page": PAGE})


def _get(case: Case, server: Server) -> Iterator[Measurement]:
    dice = np.random.default_rng(3)
    wanted = [list(map(str, dice.integers(0, case.data.rows, GET_IDS).tolist())) for _ in range(200)]
    requests = [load.post(f"{PREFIX}/{INDEX}/get_by_ids", orjson.dumps({"ids": ids})) for ids in wanted]
    for clients in CLIENTS:
        runs = [
            answered(load.closed_loop(server.port, requests, connections=clients, seconds=case.plan.query_s))
            for _ in range(case.plan.rounds)
        ]
        yield case.runs("get", runs, clients=clients, settings={"ids per call": GET_IDS})
