"""Headrace with a data set in it: the requests that load and ask it, and a loaded data folder to start it on.

A loaded folder is kept, so that parts can be measured one at a time; it is made anew when the code that writes it has
changed. Parts that write work on a copy.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
import xxhash

from scripts.benchmark import load
from scripts.benchmark.data import FIELDS, DataSet, recall
from scripts.benchmark.plan import PROCESSES, Case
from scripts.benchmark.server import NDJSON, PREFIX, ROOT, RefusedError, Server, running

INDEX = "docs"
COUNT = 10
LOADED = "loaded"


class Bodies(Sequence[bytes]):
    """Requests in one file that is mapped: those of 100,000 vectors are a gigabyte of text."""

    def __init__(self, path: Path, offsets: list[int]) -> None:
        with path.open("rb") as file:
            self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._ends = list(pairwise(offsets))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(number, slice):
            raise TypeError("one at a time")
        start, end = self._ends[number]
        return self._map[start:end]  # type: ignore[return-value]


def upserts(case: Case) -> Bodies:
    """The requests that load all rows; they are made once and kept beside the data."""
    data, batch = case.data, case.plan.batch
    path = data.folder / f"upserts-{batch}.http"
    places = path.with_suffix(".npy")
    if not places.exists():
        offsets = [0]
        with path.open("wb") as file:
            for start in range(0, data.rows, batch):
                offsets.append(
                    offsets[-1] + file.write(upsert(INDEX, data.ndjson(start, min(start + batch, data.rows))))
                )
        np.save(places, np.array(offsets))
    return Bodies(path, np.load(places).tolist())


def upsert(index: str, body: bytes) -> bytes:
    """The request that writes a batch."""
    return load.post(f"{PREFIX}/{index}/upsert", body, content_type=NDJSON)


def questions(vectors: Iterable[Any], *, filters: Iterable[dict[str, str]] = (), **asked: object) -> list[bytes]:
    """Queries for the ten nearest of each vector; `asked` are further fields of the body."""
    wheres = iter(filters)
    path = f"{PREFIX}/{INDEX}/query"
    requests = []
    for vector in vectors:
        where = next(wheres, None)
        body = {"vector": vector, "topK": COUNT, **asked, **({"filter": where} if where else {})}
        requests.append(load.post(path, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))
    return requests


def answered(run: load.Run) -> load.Run:
    """The run, if nothing in it was refused."""
    if run.refused:
        answer = next(body for body in run.bodies.values() if body[9:12] != b"200")
        raise RefusedError(f"{run.refused} of {len(run.latencies)} requests were refused: {answer[:300]!r}")
    return run


def recall_of(run: load.Run, truth: np.ndarray[Any, Any], count: int) -> float:
    """Of the answers to the first `count` requests."""
    found = [
        [int(match["id"]) for match in orjson.loads(load.body_of(run.bodies[number]))["result"]["matches"]]
        for number in range(count)
    ]
    return round(recall(found, truth, COUNT), 4)


def expansion_of(server: Server, data: DataSet, **asked: object) -> int:
    """With which expansion the largest graph is searched; 0 where there is none or it is not used."""
    body = {"vector": data.queries[0].tolist(), "topK": COUNT, "explain": True, **asked}
    parts = server.call("POST", f"/{INDEX}/query", orjson.dumps(body))["explain"]["segments"]
    return max((part.get("expansion", 0) for part in parts), default=0)


def fill(server: Server, case: Case, *, connections: int = 1) -> load.Run:
    """Load all rows, and return when the last is acknowledged."""
    requests = upserts(case)
    server.create(INDEX, case.data.dimensions, FIELDS)
    return answered(load.closed_loop(server.port, requests, connections=connections, count=len(requests)))


def wait_searchable(server: Server, run: load.Run, connections: int) -> None:
    """Return when everything that was loaded is applied: the last requests of each connection were the last."""
    for number in sorted(run.bodies)[-connections:]:
        server.wait_visible(INDEX, orjson.loads(load.body_of(run.bodies[number]))["result"]["mutationId"])


def wait_indexed(server: Server, case: Case, *, segments_max: int = 1 << 30) -> None:
    """Return when all rows but a small tail are in segments."""
    vector = case.data.queries[0].tolist()
    server.wait_layout(INDEX, vector, tail_rows_max=case.tail_rows_max, segments_max=segments_max)


def loaded(case: Case) -> Path:
    """A data folder with all rows, merged to one segment."""
    folder = case.folder / LOADED
    stamp = _stamp(case)
    if not stamp.exists() or stamp.read_text() != written_by():
        print(f"loading {case.data.name} with {case.data.rows:,} rows ...", flush=True)
        with running(case.empty(LOADED), processes=PROCESSES, settings=case.settings) as server:
            wait_searchable(server, fill(server, case), 1)
            wait_indexed(server, case, segments_max=1)
        keep(case)
    return folder


def keep(case: Case) -> None:
    """Mark the loaded folder as whole."""
    _stamp(case).write_text(written_by())


def forget(case: Case) -> None:
    """The loaded folder is about to be made again."""
    _stamp(case).unlink(missing_ok=True)


@contextmanager
def copied(case: Case, processes: int = PROCESSES) -> Iterator[Server]:
    """A server on a copy of the loaded folder, which is thrown away afterwards."""
    original = loaded(case)
    copy = case.empty("copy")
    shutil.copytree(original, copy)
    try:
        with running(copy, processes=processes, settings=case.settings) as server:
            yield server
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def graph_of(folder: Path) -> Path:
    """The largest graph in a data folder: of the one merged segment."""
    return max(folder.rglob("graph.usearch"), key=lambda path: path.stat().st_size)


def written_by() -> str:
    """A hash of the code that decides what lies in a data folder."""
    digest = xxhash.xxh3_64()
    for part in ("storage", "worker", "migrations"):
        for path in sorted((ROOT / part).rglob("*")):
            if path.suffix in {".py", ".sql"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(case: Case) -> Path:
    return case.folder / f"{LOADED}.stamp"


@dataclass(frozen=True, slots=True)
class Asked:
    """A setting of `recall` that was tried: what it reached, with which expansion, and how fast with eight clients."""

    setting: float
    expansion: int
    reached: float
    rate: float
