"""Growth: what a query, a start, memory and disk cost with ten thousand, a hundred thousand and a million vectors.

On `glove`; beyond the 341,479 words its rows are words with noise (see `data`). Every size is loaded into a folder of
its own and sealed in one piece, which leaves the single segment that merging leaves and builds each graph once instead
of several times: the layout is that of an index at rest, the time it took to get there is not judged here. The servers
of all sizes then run at once and are asked in turn in every round, so that all sizes see the same machine; one that is
not asked does nothing.

Beside each query stands the limit for its size: one search in a view of the same graph file with the same expansion,
in process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import orjson
import xxhash
from usearch.index import Index

from scripts.benchmark import load
from scripts.benchmark.data import data_set
from scripts.benchmark.headrace import (
    COUNT,
    INDEX,
    answered,
    expansion_of,
    fill,
    graph_of,
    questions,
    recall_of,
    wait_indexed,
    wait_searchable,
    written_by,
)
from scripts.benchmark.load import Run
from scripts.benchmark.plan import CLIENTS, COMPARED, PROCESSES, Case, Plan
from scripts.benchmark.processes import usage
from scripts.benchmark.queries import RUNS
from scripts.benchmark.resources import disk_bytes
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import Server, running

SET = "glove"
LIMIT = "limit: usearch view"
WHAT = "growth.query"
ASKED: Mapping[str, Mapping[str, float]] = {
    WHAT: {"recall": COMPARED[SET]},
    "growth.query at the default recall": {},
}
"""What is asked for: the recall at which subjects are compared, and what is planned for when none is named."""
QUIET_MS = 1_000
"""How long nobody writes to an index before it is sealed, and merged, while these folders are made."""
PRUNED_S = 300.0
LOG_BYTES_MAX = 4 << 20


@dataclass(slots=True)
class Size:
    """One size under measurement."""

    case: Case
    server: Server
    graph: Path
    requests: Mapping[str, list[bytes]]
    expansions: Mapping[str, int]
    first_s: float
    hash_s: float
    asked: dict[tuple[str, int], list[Run]] = field(default_factory=dict)
    bare_ms: list[float] = field(default_factory=list)


def measure(plan: Plan) -> list[Measurement]:
    """Every size, smallest first."""
    cases = [Case(plan=plan, data=data_set(SET, rows)) for rows in plan.growth_rows]
    loads = {case.data.rows: _loaded(case) for case in cases}
    with ExitStack() as stack:
        sizes = [_started(case, stack) for case in cases]
        for _ in range(plan.rounds):
            for what, clients in product(ASKED, CLIENTS):
                for size in sizes:
                    _ask(size, what, clients)
            for size in sizes:
                if size.expansions[WHAT]:
                    size.bare_ms.append(_bare_ms(size))
        if not plan.short:
            _wait_pruned([_folder(case) for case in cases])
        return [one for size in sizes for one in _figures(size, loads[size.case.data.rows])]


def settings_of(case: Case) -> Mapping[str, str]:
    """Everything in one seal, soon after the last write."""
    if case.plan.short:
        return {**case.settings, "HEADRACE_GRAPH_ROWS_MIN": "100", "HEADRACE_MERGE_IDLE_MS": "200"}
    bytes_of_all = case.data.rows * case.data.dimensions * 4
    chosen = {
        "seal_bytes": 4 * bytes_of_all,
        "seal_mutations": case.data.rows,
        "tail_bytes_max": 8 * bytes_of_all,
        "seal_idle_ms": QUIET_MS,
        "merge_idle_ms": QUIET_MS,
    }
    return {f"HEADRACE_{name.upper()}": str(value) for name, value in chosen.items()}


def _loaded(case: Case) -> float:
    """Make the folder, unless it is there already; how long that took, or 0 where not all of it was made now.

    A run that was ended while a million vectors were built is gone on with from the vectors that it wrote.
    """
    folder = _folder(case)
    stamp, written = folder.with_suffix(".stamp"), folder.with_suffix(".written")
    if _is_current(stamp):
        return 0.0
    stamp.unlink(missing_ok=True)
    is_written = _is_current(written)
    print(f"{'building' if is_written else 'loading'} {case.data.rows:,} rows for growth ...", flush=True)
    begun = time.perf_counter()
    if not is_written:
        written.unlink(missing_ok=True)
        case.empty(folder.name)
    with running(folder, processes=1, settings=settings_of(case)) as server:
        if not is_written:
            wait_searchable(server, fill(server, case), 1)
            written.write_text(written_by())
        wait_indexed(server, case, segments_max=1)
    stamp.write_text(written_by())
    return 0.0 if is_written else time.perf_counter() - begun


def _is_current(stamp: Path) -> bool:
    return stamp.exists() and stamp.read_text() == written_by()


def _folder(case: Case) -> Path:
    return case.folder / "grown"


def _started(case: Case, stack: ExitStack) -> Size:
    """Start it, and measure what a start takes: `hash_s` is what reading and hashing its files takes by itself."""
    folder = _folder(case)
    hash_s = min(_hash_s(folder) for _ in range(3))
    settings = {"HEADRACE_GRAPH_ROWS_MIN": "100"} if case.plan.short else {}
    server = stack.enter_context(running(folder, processes=PROCESSES, settings=settings))
    started = time.perf_counter()
    body = orjson.dumps({"vector": case.data.queries[0].tolist(), "topK": COUNT})
    assert server.call("POST", f"/{INDEX}/query", body)["matches"]
    return Size(
        case=case,
        server=server,
        graph=graph_of(folder),
        requests={what: questions(case.queries, returnMetadata="all", **asked) for what, asked in ASKED.items()},
        expansions={what: expansion_of(server, case.data, **asked) for what, asked in ASKED.items()},
        first_s=time.perf_counter() - started,
        hash_s=hash_s,
    )


def _hash_s(folder: Path) -> float:
    """Reading every file of the segments from the cache of the machine and hashing it, as an opening process does."""
    begun = time.perf_counter()
    for path in folder.glob("indexes/*/segments/**/*"):
        if path.is_file():
            digest = xxhash.xxh3_128()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            digest.digest()
    return time.perf_counter() - begun


def _wait_pruned(folders: list[Path]) -> None:
    """Return when the logs have given back what is in segments: some two minutes after the start at the latest."""
    deadline = time.perf_counter() + PRUNED_S
    while any(path.stat().st_size > LOG_BYTES_MAX for folder in folders for path in folder.glob("indexes/*/log.db")):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"a log still had over {LOG_BYTES_MAX} bytes after {PRUNED_S:g} s")
        time.sleep(0.5)


def _ask(size: Size, what: str, clients: int) -> None:
    requests = size.requests[what]
    if (what, clients) not in size.asked:  # What is mapped is read once, in every process, before any clock runs.
        for _ in range(2):
            load.closed_loop(size.server.port, requests, connections=8, count=len(requests))
    for _ in range(RUNS[clients]):
        run = load.closed_loop(size.server.port, requests, connections=clients, seconds=size.case.plan.query_s)
        size.asked.setdefault((what, clients), []).append(answered(run))


def _bare_ms(size: Size) -> float:
    """The median search in a view of the graph."""
    index = Index.restore(size.graph, view=True, enable_key_lookups=False)
    assert index is not None
    index.expansion_search = size.expansions[WHAT]  # type: ignore[misc]
    compiled = index._compiled  # noqa: SLF001 (as in the bare read path)
    times = []
    for query in [*size.case.queries, *size.case.queries]:  # The first time round maps what the second needs.
        started = time.perf_counter()
        compiled.search_many(query[np.newaxis], COUNT, exact=False, threads=1)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[len(size.case.queries) :])


def _figures(size: Size, load_s: float) -> Iterator[Measurement]:
    case, server = size.case, size.server
    for what, asked in ASKED.items():
        requests = size.requests[what]
        whole = answered(load.closed_loop(server.port, requests, connections=8, count=len(requests)))
        recall = recall_of(whole, case.data.truth, len(requests))
        settings = {"recall": asked.get("recall", "default"), "expansion": size.expansions[what]}
        for clients in CLIENTS:
            runs = size.asked[what, clients]
            yield case.runs(what, runs, clients=clients, recall=recall, settings={**settings, "processes": PROCESSES})
    if size.expansions[WHAT]:  # Few rows are scanned, which is no search of a graph.
        bare = {"expansion": size.expansions[WHAT]}
        note = "one search in process, no HTTP, no exact scores"
        yield case.rounds(WHAT, size.bare_ms, "ms", subject=LIMIT, clients=1, settings=bare, note=note)
    start_s = server.ready_s + size.first_s
    note = "from nothing to the first answer"
    yield case.one("growth.start", start_s, "s", settings={"processes": PROCESSES}, note=note)
    yield case.one("growth.ready", server.ready_s, "s", settings={"processes": PROCESSES})
    note = "reading and hashing the files of the segments, in the cache of the machine"
    yield case.one("growth.hashing", size.hash_s, "s", note=note)
    yield from _memory(case, server)
    disk = disk_bytes(_folder(case))
    yield case.one("growth.disk", disk / case.data.rows, "bytes/vector", note="metadata and ids included")
    if load_s:
        yield case.one("growth.load", load_s, "s", note="with one seal and no merge; not the way of the defaults")


def _memory(case: Case, server: Server) -> Iterator[Measurement]:
    for kind in ("service", "worker"):
        taken = [usage(pid) for pid in server.pids()[kind]]
        for name in ("rss", "pss", "private"):
            value = statistics.median(getattr(one, f"{name}_mb") for one in taken)
            more = {"settings": {"process": kind, "processes": PROCESSES}, "note": "the median of its processes"}
            yield case.one(f"growth.{name}", value, "MB", **more)  # type: ignore[arg-type]
