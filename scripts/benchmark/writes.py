"""How soon a write is visible, and how queries fare while others write in bulk. On copies of the loaded folder."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import orjson

from scripts.benchmark import load
from scripts.benchmark.headrace import INDEX, answered, copied, questions
from scripts.benchmark.load import Run
from scripts.benchmark.plan import PROCESSES, Case
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import NDJSON, ROOT, Server

WRITES_PER_S = 20
POLL_S = 0.001
VISIBLE_S = 30.0
READS_PER_S, READERS = 20, 4
"""So few that a query that takes long delays no other: what is measured is latency, not a queue."""
IDS = 10
"""Single writes go round these ids, so that all but the first replace a vector."""
OTHER = "other"
BULK_BATCHES = 40
"""Different ones, before they are written again."""


def visible(case: Case) -> list[Measurement]:
    """Single upserts at an easy pace: from their sending until their value is read."""
    ways = {"get_by_ids": _until_got, "query": _until_found, "wait=true": _waiting}
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    with copied(case) as server:
        number = 0
        for _ in range(case.plan.rounds):
            for way, write in ways.items():
                took, number = _paced(case, server, write, number)
                times[way].append(took)
    return [
        case.rounds(
            "visible",
            [statistics.median(took) for took in rounds],
            "ms",
            p50_ms=round(float(np.percentile(np.concatenate(rounds), 50)), 3),
            p99_ms=round(float(np.percentile(np.concatenate(rounds), 99)), 3),
            settings={"seen by": way, "writes a second": WRITES_PER_S, "processes": PROCESSES},
            note=f"{sum(map(len, rounds))} writes" + ("" if way == "wait=true" else ", looked for every millisecond"),
        )
        for way, rounds in times.items()
    ]


def _paced(
    case: Case, server: Server, write: Callable[[Case, Server, Server, int], None], number: int
) -> tuple[list[float], int]:
    writer, reader = replace(server), replace(server)  # Each has a connection of its own, to whichever process.
    reader.call("GET", f"/{INDEX}/info")
    times = []
    began = time.perf_counter()
    for place in range(int(case.plan.visible_s * WRITES_PER_S)):
        time.sleep(max(0.0, began + place / WRITES_PER_S - time.perf_counter()))
        number += 1
        started = time.perf_counter()
        write(case, writer, reader, number)
        times.append((time.perf_counter() - started) * 1000)
    return times, number


def _body(case: Case, number: int) -> bytes:
    vector = case.data.queries[number % len(case.data.queries)]
    record = {"id": f"one-{number % IDS}", "values": vector, "metadata": {"number": number}}
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _until_got(case: Case, writer: Server, reader: Server, number: int) -> None:
    writer.upsert(INDEX, _body(case, number))
    asked = orjson.dumps({"ids": [f"one-{number % IDS}"]})

    def seen() -> bool:
        found = reader.call("POST", f"/{INDEX}/get_by_ids", asked)
        return bool(found) and found[0]["metadata"]["number"] == number

    _poll(seen)


def _until_found(case: Case, writer: Server, reader: Server, number: int) -> None:
    writer.upsert(INDEX, _body(case, number))
    vector = case.data.queries[number % len(case.data.queries)]
    asked = orjson.dumps({"vector": vector, "topK": 1, "returnMetadata": "all"}, option=orjson.OPT_SERIALIZE_NUMPY)

    def seen() -> bool:
        matches = reader.call("POST", f"/{INDEX}/query", asked)["matches"]
        return bool(matches) and matches[0].get("metadata", {}).get("number") == number

    _poll(seen)


def _waiting(case: Case, writer: Server, reader: Server, number: int) -> None:
    del reader
    writer.call("POST", f"/{INDEX}/upsert?wait=true", _body(case, number), content_type=NDJSON)


def _poll(seen: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + VISIBLE_S
    while not seen():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"a write was not visible after {VISIBLE_S:g} s")
        time.sleep(POLL_S)


def reads_during_load(case: Case) -> list[Measurement]:
    """Queries at an easy pace: with nothing else, and beside a bulk load of another index, or of
    the same one. Every round begins with a fresh copy, so that all rounds are of the same size."""
    runs: dict[str, list[Run]] = {}
    rates: dict[str, list[float]] = {}
    requests = questions(case.queries, returnMetadata="all")
    for _ in range(case.plan.rounds):
        with copied(case) as server:
            load.closed_loop(server.port, requests, connections=8, count=len(requests))
            runs.setdefault("idle", []).append(_reads(case, server, requests))
            server.create(OTHER, case.data.dimensions)
            for beside, index in (("load of another index", OTHER), ("load of the same index", INDEX)):
                run, rate = _beside(case, server, index, requests)
                runs.setdefault(beside, []).append(run)
                rates.setdefault(beside, []).append(rate)
    return list(_figures(case, runs, rates))


def _reads(case: Case, server: Server, requests: list[bytes]) -> Run:
    seconds = case.plan.bulk_s
    return answered(load.paced(server.port, requests, connections=READERS, seconds=seconds, rate=READS_PER_S))


def _beside(case: Case, server: Server, index: str, requests: list[bytes]) -> tuple[Run, float]:
    vectors = case.data.folder / "vectors.npy"
    command = [sys.executable, "-P", "-m", "scripts.benchmark.bulk_writer", str(server.port), index, str(vectors)]
    command += [str(BULK_BATCHES), str(case.plan.batch), str(case.plan.bulk_s)]
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.stdin.write("\n")
        writer.stdin.flush()
        run = _reads(case, server, requests)
        line = writer.stdout.readline()
    if not line:
        raise RuntimeError("the bulk load failed; its error is above")
    written = json.loads(line)
    server.wait_visible(index, written["last"])
    return run, float(written["rate"])


def _figures(case: Case, runs: dict[str, list[Run]], rates: dict[str, list[float]]) -> Iterator[Measurement]:
    for beside, each in runs.items():
        p50s, p99s = ([run.percentile(percent) for run in each] for percent in (50, 99))
        ratios = [p99 / run.percentile(99) for p99, run in zip(p99s, runs["idle"], strict=True)]
        loaded = {"load /s": round(statistics.median(rates[beside]))} if beside in rates else {}
        yield case.rounds(
            "reads during load",
            p99s,
            "ms",
            clients=READERS,
            p50_ms=round(statistics.median(p50s), 3),
            p99_ms=round(statistics.median(p99s), 3),
            settings={"beside": beside, "p99 to idle": round(statistics.median(ratios), 2), **loaded},
            note=f"{READS_PER_S} queries a second at random times on {READERS} connections; "
            f"batches of {case.plan.batch:,} as fast as they are acknowledged",
        )
