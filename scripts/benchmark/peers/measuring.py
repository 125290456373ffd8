"""The measurements of one peer, in the order in which they can be made on one loaded index."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.benchmark.peers.clients import Rated, one_by_one, rated, recall, together
from scripts.benchmark.peers.contract import Data, Peer, Where
from scripts.benchmark.results import Measurement

LEVELS = (0.95, 0.98)
CLIENTS = (1, 8)
FILTERS = tuple(f"{kind}_{number}" for kind in ("random", "near", "far") for number in (2, 10, 100, 1_000))
FILTERED_RECALL = 0.99
GET_IDS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    rounds: int = 3
    round_s: float = 1.0
    effort_s: float = 3.0
    """For finding the recall of one effort."""
    filter_s: float = 2.5
    """For one filter at one selectivity."""
    raised_s: float = 1.0
    """A filter that took longer than this is not tried again with more effort."""
    filtered_queries: int = 200
    writes: int = 60
    missed_max: int = 3
    """After so many writes that were not found in time, no more are made."""
    visible_s: float = 5.0
    """How long a write is looked for."""
    efforts_step: int = 1
    """Of the efforts, every which one is tried."""


SHORT = Plan(
    rounds=1,
    round_s=0.2,
    effort_s=0.5,
    filter_s=0.15,
    raised_s=0.0,
    filtered_queries=20,
    writes=5,
    visible_s=2.0,
    efforts_step=4,
)


class Measuring:
    """One peer on one data set."""

    def __init__(self, subject: str, peer: Peer, data: Data, work: Path, plan: Plan, version: str) -> None:
        name, _, rows = data.folder.name.rpartition("-")
        self._peer, self._data, self._work, self._plan = peer, data, work, plan
        self._subject, self._name, self._rows, self._version = subject, name, int(rows), version
        self._efforts = peer.efforts[:: plan.efforts_step]
        self._recalls: dict[int, tuple[float, int]] = {}

    def all(self) -> Iterator[Measurement]:
        """Everything, each as soon as it is known. A part that fails is told of, and the next goes on."""
        yield from self._load()
        parts: list[Callable[[], Iterator[Measurement]]] = [self._query, self._filtered, self._get, self._scan]
        for part in (*parts, self._disk, self._visible, self._reopened):
            try:
                yield from part()
            except Exception as error:  # A peer may raise anything; the report says what.
                what = part.__name__.removeprefix("_")
                yield self._one("failed", 0.0, "-", note=f"{what}: {type(error).__name__}: {str(error)[:300]}")

    def _one(self, what: str, value: float, unit: str, **more: object) -> Measurement:
        settings = {"version": self._version, **self._peer.settings, **more.pop("settings", {})}  # type: ignore[dict-item]
        note = "; ".join(filter(None, (self._peer.note, str(more.pop("note", "")))))
        return Measurement(
            subject=self._subject,
            set=self._name,
            rows=self._rows,
            what=what,
            value=round(value, 4),
            unit=unit,
            settings=settings,
            note=note,
            **more,  # type: ignore[arg-type]
        )

    def _load(self) -> Iterator[Measurement]:
        self._peer.create(self._data)
        loaded = self._peer.load(self._data)
        yield self._one("load.searchable", self._rows / loaded.searchable_s, "/s")
        yield self._one("load.indexed", self._rows / loaded.indexed_s, "/s")

    def _recall(self, effort: int) -> tuple[float, int]:
        if effort not in self._recalls:
            session = self._peer.session(effort)
            queries = self._data.queries
            found, _ = one_by_one(session, queries, [None] * len(queries), seconds=self._plan.effort_s)
            session.close()
            self._recalls[effort] = recall(found, self._data.truth), len(found)
        return self._recalls[effort]

    def _effort(self, level: float) -> int:
        """The first that reaches the level, or the last: halving, as recall grows with the effort."""
        efforts = self._efforts
        low, high = 0, len(efforts) - 1
        while low < high:
            middle = (low + high) // 2
            if self._recall(efforts[middle])[0] >= level:
                high = middle
            else:
                low = middle + 1
        return efforts[low]

    def _query(self) -> Iterator[Measurement]:
        efforts = {self._effort(level): level for level in reversed(LEVELS)}
        for effort, level in sorted(efforts.items()):
            reached, asked = self._recall(effort)
            note = "" if reached >= level else f"a recall of {level} was not reached"
            more = {"recall": round(reached, 4), "note": note, "settings": {"effort": effort, "recall of": asked}}
            for clients in CLIENTS:
                yield self._rounds("query", clients, lambda: self._together(effort, clients), more)  # noqa: B023
            if "raw" in self._peer.abilities:
                for clients in CLIENTS:
                    yield self._rounds("query.raw", clients, lambda: self._raw(effort, clients), more)  # noqa: B023

    def _together(self, effort: int, clients: int) -> Rated:
        return together(self._peer, self._data.queries, effort, clients=clients, seconds=self._plan.round_s)

    def _raw(self, effort: int, clients: int) -> Rated:
        return rated(*self._peer.raw(self._data.queries, effort, clients=clients, seconds=self._plan.round_s))

    def _rounds(self, what: str, clients: int, measure: Callable[[], Rated], more: dict[str, object]) -> Measurement:
        rounds = [measure() for _ in range(self._plan.rounds)]
        rates = [one.rate for one in rounds]
        return self._one(
            what,
            statistics.median(rates),
            "/s",
            low=round(min(rates), 1),
            high=round(max(rates), 1),
            clients=clients,
            p50_ms=round(statistics.median(one.p50 for one in rounds), 3),
            p99_ms=round(statistics.median(one.p99 for one in rounds), 3),
            **dict(more),
        )

    def _filtered(self) -> Iterator[Measurement]:
        if "filters" not in self._peer.abilities:
            return
        effort = self._effort(LEVELS[0])
        behind = []
        for name in FILTERS:
            one, seconds = self._filter(name, effort)
            yield one
            if (one.recall or 0) < FILTERED_RECALL and seconds < self._plan.raised_s:
                behind.append(one)
        # Effort by effort and not filter by filter: one peer has to start anew to change its effort.
        for raised in (each for each in self._efforts if each > effort and each in (128, 256, 512)):
            rest = []
            for best in behind:
                one, seconds = self._filter(_name(best.filter), raised)
                one = replace(one, what="filtered.raised")
                if (one.recall or 0) >= FILTERED_RECALL or raised == self._efforts[-1]:
                    yield one
                elif seconds < self._plan.raised_s:
                    rest.append(one)
                else:
                    yield one
            behind = rest

    def _filter(self, name: str, effort: int) -> tuple[Measurement, float]:
        """A filter at one selectivity, with the seconds that asking took."""
        field = name.replace("near", "region").replace("far", "region")
        values = self._data.filters[f"{name}_value"][: self._plan.filtered_queries].tolist()
        wheres = [Where(field, str(value)) for value in values]
        queries = self._data.queries[: len(wheres)]
        session = self._peer.session(effort)
        session.ask(session.prepare(queries[-1], 10, wheres[-1]))
        found, latencies = one_by_one(session, queries, wheres, seconds=self._plan.filter_s)
        session.close()
        seconds = sum(latencies) / 1000
        figures = rated(latencies, seconds)
        one = self._one(
            "filtered",
            figures.rate,
            "/s",
            recall=round(recall(found, self._data.filters[f"{name}_truth"]), 4),
            clients=1,
            filter=_label(name),
            p50_ms=round(figures.p50, 3),
            p99_ms=round(figures.p99, 3),
            settings={"effort": effort, "queries": len(found)},
            note="" if len(found) == len(wheres) else f"{len(found)} of {len(wheres)} queries, for the time they took",
        )
        return one, seconds

    def _get(self) -> Iterator[Measurement]:
        if "get" not in self._peer.abilities:
            return
        dice = np.random.default_rng(3)
        wanted = [dice.integers(0, self._rows, GET_IDS).tolist() for _ in range(200)]
        latencies = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < self._plan.round_s:
            rows = wanted[len(latencies) % len(wanted)]
            started = time.perf_counter()
            came = self._peer.get(rows)
            latencies.append((time.perf_counter() - started) * 1000)
            assert came == len(set(rows)), f"{came} of {len(set(rows))} came"
        figures = rated(latencies, time.perf_counter() - begun)
        times = {"p50_ms": round(figures.p50, 3), "p99_ms": round(figures.p99, 3)}
        yield self._one("get", figures.rate, "/s", clients=1, settings={"ids per call": GET_IDS}, **times)

    def _scan(self) -> Iterator[Measurement]:
        if "scan" not in self._peer.abilities:
            return
        listed, latencies = 0, []
        begun = now = time.perf_counter()
        for page in self._peer.scan():
            latencies.append((time.perf_counter() - now) * 1000)
            now = time.perf_counter()
            listed += page
            if now - begun > self._plan.round_s:
                break
        figures = rated(latencies, now - begun)
        times = {"p50_ms": round(figures.p50, 3), "p99_ms": round(figures.p99, 3)}
        yield self._one("list", listed / (now - begun), "ids/s", clients=1, settings={"ids per page": 1_000}, **times)

    def _disk(self) -> Iterator[Measurement]:
        files = [file for file in (self._work / "data").rglob("*") if file.is_file()]
        # PostgreSQL keeps as much of its log as it is allowed, whatever the rows.
        counted = [file for file in files if file.parent.name != "pg_wal"]
        used = sum(file.stat().st_blocks * 512 for file in counted)
        note = "without the write-ahead log" if len(counted) < len(files) else ""
        yield self._one("disk", used / self._rows, "bytes/vector", note=note)

    def _visible(self) -> Iterator[Measurement]:
        if "write" not in self._peer.abilities:
            return
        session = self._peer.session(self._effort(LEVELS[0]))
        took, missed = [], 0
        for number in range(self._plan.writes):
            row, vector = self._rows + number, self._data.queries[-1 - number]
            request = session.prepare(vector, 10)
            started = time.perf_counter()
            self._peer.write(row, vector, self._data.metadata(number))
            while row not in session.rows(session.ask(request)):
                if time.perf_counter() - started > self._plan.visible_s:
                    missed += 1
                    break
            took.append((time.perf_counter() - started) * 1000)
            if missed > self._plan.missed_max:
                break
        session.close()
        p50, p99 = (float(each) for each in np.percentile(took, (50, 99)))
        note = f"{missed} of {len(took)} were not found within {self._plan.visible_s:g} s" if missed else ""
        yield self._one("visible", p50, "ms", p50_ms=round(p50, 3), p99_ms=round(p99, 3), note=note)

    def _reopened(self) -> Iterator[Measurement]:
        self._peer.close()
        effort = self._effort(LEVELS[0])
        command = [sys.executable, "-P", "-m", "scripts.benchmark.peers", self._subject, "--reopen", str(effort)]
        command += ["--data", str(self._data.folder), "--work", str(self._work)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if run.returncode:
            raise RuntimeError(f"could not be opened again: {run.stderr[-300:]}")
        found = json.loads(run.stdout.splitlines()[-1])
        yield self._one("start", found["seconds"], "s", note="from nothing to the first answer with the loaded index")
        yield self._one("rss", found["mb"], "MB", note=found["note"])


def reopened(peer: Peer, data: Data, effort: int) -> dict[str, object]:
    """In a process of its own: the seconds to the first answer, and the memory after answering all queries."""
    queries = np.array(data.queries)
    _imported(peer)
    before = _resident_mb("self")
    begun = time.perf_counter()
    peer.open()
    session = peer.session(effort)
    session.ask(session.prepare(queries[0], 10))
    seconds = time.perf_counter() - begun
    one_by_one(session, queries, [None] * len(queries), seconds=5.0)
    if processes := peer.processes():
        mb, note = sum(map(_resident_mb, processes)), f"of {len(processes)} server processes, shared pages counted once"
    else:
        mb, note = _resident_mb("self") - before, "growth of the process by opening the index and searching it"
    session.close()
    peer.close()
    return {"seconds": seconds, "mb": mb, "note": note}


def _imported(peer: Peer) -> None:
    """Have the peer's package imported, which is not a part of opening."""
    package = getattr(peer, "package", "")
    if package:
        __import__(package)


def _resident_mb(process: int | str) -> float:
    """The proportional set size: the pages that processes share are divided among them."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    return 0.0


def _label(name: str) -> str:
    kind, _, number = name.partition("_")
    return f"{kind} {100 / int(number):g} %"


def _name(label: str) -> str:
    kind, percent, _ = label.split()
    return f"{kind}_{round(100 / float(percent))}"
