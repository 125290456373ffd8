"""Queries at a recall, against the bare read path on the same graph at the same recall, in turn in every round.

Headrace is asked with the smallest `recall` setting whose answers reach the level; the bare path walks the very graph
file that Headrace walks, with the smallest expansion that reaches it. Where Headrace's answers are better than the
level by more than `RECALL_EQUAL`, as on easy data, the bare path is measured at that better recall too ("equal").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from usearch.index import Index

from scripts.benchmark import load, read_limit, trivial
from scripts.benchmark.data import DataSet, Ints
from scripts.benchmark.environments import NotInstalled, environment
from scripts.benchmark.headrace import (
    COUNT,
    Asked,
    answered,
    expansion_of,
    graph_of,
    loaded,
    questions,
    recall_of,
)
from scripts.benchmark.plan import CLIENTS, PROCESSES, Case
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import Server, running

SETTINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
EXPANSIONS = (10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 44, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128)
EXPANSIONS += (144, 160, 176, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
RECALL_EQUAL = 0.005
BARE = "limit: bare read path"
RUNS = {1: 2, 8: 5}
"""Runs in a round, by clients: which process takes a connection is the kernel's dice, thrown anew in each run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One subject in the rounds: where it listens, what it is asked, and what is said about it."""

    subject: str
    what: str
    port: int
    requests: list[bytes]
    settings: dict[str, object]
    truth: Ints
    note: str = ""


def measure(case: Case) -> list[Measurement]:
    """The settings tried, the rounds, the latency at half load, and the generator's own ceiling."""
    folder = loaded(case)
    with running(folder, processes=PROCESSES, settings=case.settings) as server, ExitStack() as stack:
        tried = _tried(server, case)
        ours = list(_ours(server, case, tried))
        contenders = [*ours, *_bare(case, graph_of(folder), server.port, ours, stack)]
        found = _rounds(case, contenders)
        found += [_half_load(case, one, found) for one in ours if one.settings.get("answer") == "ids and metadata"]
        found += [_curve(case, one) for one in tried]
    return found + _generator(case, ours[0].requests)


def _tried(server: Server, case: Case) -> list[Asked]:
    """Every setting once with all queries; settings that come to the same expansion are one."""
    found: dict[int, Asked] = {}
    for setting in SETTINGS:
        expansion = expansion_of(server, case.data, recall=setting)
        if expansion in found:
            continue
        requests = questions(case.queries, recall=setting, returnMetadata="all")
        load.closed_loop(server.port, requests, connections=8, count=len(requests))
        run = answered(load.closed_loop(server.port, requests, connections=8, count=len(requests)))
        reached = recall_of(run, case.data.truth, len(requests))
        found[expansion] = Asked(setting=setting, expansion=expansion, reached=reached, rate=run.rate)
    return list(found.values())


def _ours(server: Server, case: Case, tried: list[Asked]) -> Iterator[Contender]:
    for level in case.levels:
        best = max(tried, key=lambda one: one.reached)
        asked = next((one for one in tried if one.reached >= level), best)
        for answer, metadata in (("ids and metadata", "all"), ("ids", "none")):
            yield Contender(
                subject="headrace",
                what="query",
                port=server.port,
                requests=questions(case.queries, recall=asked.setting, returnMetadata=metadata),
                settings={
                    "level": level,
                    "recall": asked.setting,
                    "expansion": asked.expansion,
                    "answer": answer,
                    "processes": PROCESSES,
                },
                truth=case.data.truth,
                note="" if asked.reached >= level else f"a recall of {level} was not reached",
            )
    yield Contender(
        subject="headrace",
        what="query.default",
        port=server.port,
        requests=questions(case.queries, returnMetadata="all"),
        settings={"recall": "default", "expansion": expansion_of(server, case.data), "answer": "ids and metadata"},
        truth=case.data.truth,
    )


def _bare(case: Case, graph: Path, port: int, ours: list[Contender], stack: ExitStack) -> Iterator[Contender]:
    """The bare path at every level, and where Headrace exceeds a level, at Headrace's recall too."""
    index = Index.restore(graph, view=True, enable_key_lookups=False)
    assert index is not None
    truth = _truth_within(case.data, len(index))
    curve = _curve_of(index, case, truth)
    servers: dict[tuple[int, bool], int] = {}
    uvloop = None if case.plan.short else _uvloop()
    for one in ours:
        if one.settings.get("answer") != "ids" or one.what != "query":
            continue
        level = float(str(one.settings["level"]))
        run = answered(load.closed_loop(port, one.requests, connections=8, count=len(one.requests)))
        reached = recall_of(run, case.data.truth, len(one.requests))
        wanted = {"level": level}
        if reached > level + RECALL_EQUAL:
            wanted["equal"] = reached - RECALL_EQUAL
        for match, recall in wanted.items():
            expansion = next((each for each, value in curve.items() if value >= recall), max(curve))
            # uvloop where the verdict is: at equal recall.
            for python in (None, uvloop) if uvloop and match == [*wanted][-1] else (None,):
                key = (expansion, python is not None)
                if key not in servers:
                    bare = read_limit.running(graph, expansion=expansion, processes=PROCESSES, python=python)
                    servers[key] = stack.enter_context(bare)
                settings = {"level": level, "match": match, "expansion": expansion, "processes": PROCESSES}
                yield replace(
                    one,
                    subject=BARE + (", uvloop" if python else ""),
                    port=servers[key],
                    settings={**settings, "answer": "ids"},
                    truth=truth,
                    note=f"of {len(index):,} rows" if len(index) < case.data.rows else "",
                )


def _truth_within(data: DataSet, rows: int) -> Ints:
    """The nearest among the first rows: the last few may not be in the graph yet, and only Headrace finds those."""
    return np.array([[row for row in line if row < rows][:COUNT] for line in data.truth.tolist()])


def _curve_of(index: Index, case: Case, truth: Ints) -> dict[int, float]:
    """The recall of the graph by expansion."""
    found = {}
    for expansion in EXPANSIONS:
        index.expansion_search = expansion  # type: ignore[misc]
        keys = index.search(case.queries, COUNT, threads=2).keys.astype(np.int64) - 1
        shares = [
            len({*line} & {*nearest}) / COUNT for line, nearest in zip(keys.tolist(), truth.tolist(), strict=False)
        ]
        found[expansion] = float(np.mean(shares))
    return found


def _uvloop() -> Path | None:
    packages = ("aiohttp", "numpy", "orjson", "pysimdjson", "usearch")
    pinned = tuple(f"{name}=={version(name)}" for name in packages)
    try:
        return environment("uvloop", (*pinned, "uvloop==0.23.0"))
    except NotInstalled as error:
        print(f"without uvloop: {error}", flush=True)
        return None


def _rounds(case: Case, contenders: list[Contender]) -> list[Measurement]:
    runs: dict[tuple[int, int], list[load.Run]] = {}
    for one in contenders:  # What is mapped is read once before any clock runs.
        load.closed_loop(one.port, one.requests, connections=8, count=len(one.requests))
    for _ in range(case.plan.rounds):
        for clients in CLIENTS:
            for place, one in enumerate(contenders):
                for _ in range(RUNS[clients]):
                    run = load.closed_loop(one.port, one.requests, connections=clients, seconds=case.plan.query_s)
                    runs.setdefault((place, clients), []).append(answered(run))
    found = []
    for place, one in enumerate(contenders):
        count = len(one.requests)
        whole = load.closed_loop(one.port, one.requests, connections=8, count=count)
        more = {"recall": recall_of(answered(whole), one.truth, count), "note": one.note, "settings": one.settings}
        found += [
            case.runs(one.what, runs[place, clients], subject=one.subject, clients=clients, **more)
            for clients in CLIENTS
        ]
    return found


def _half_load(case: Case, one: Contender, found: list[Measurement]) -> Measurement:
    [full] = [
        each
        for each in found
        if each.subject == "headrace" and each.what == one.what and each.clients == 8
        if each.settings.get("level") == one.settings.get("level") and each.settings["answer"] == "ids and metadata"
    ]
    rate = full.value / 2
    runs = [
        answered(load.paced(one.port, one.requests, connections=8, seconds=case.plan.paced_s / 2, rate=rate))
        for _ in range(case.plan.rounds)
    ]
    note = f"starts at random times, {rate:.0f} a second; a latency counts from when a request should have started"
    return case.runs(f"{one.what}.half", runs, clients=8, recall=full.recall, settings=one.settings, note=note)


def _curve(case: Case, one: Asked) -> Measurement:
    settings = {"recall": one.setting, "expansion": one.expansion}
    return case.one("query.curve", one.rate, "/s", recall=one.reached, clients=8, settings=settings)


def _generator(case: Case, requests: list[bytes]) -> list[Measurement]:
    """What the generator does against a server that does nothing: far more than any subject is asked for."""
    with trivial.running() as port:
        return [
            case.runs(
                "query",
                [
                    answered(load.closed_loop(port, requests, connections=clients, seconds=case.plan.query_s))
                    for _ in range(case.plan.rounds)
                ],
                subject="limit: load generator",
                clients=clients,
                settings={"processes": 1},
                note="the same requests, answered with fixed bytes by one process that does nothing else",
            )
            for clients in CLIENTS
        ]
