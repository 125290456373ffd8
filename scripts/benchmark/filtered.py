"""Filtered queries: every filter at every selectivity, at the default recall, beside the round's unfiltered rate."""

from __future__ import annotations

import statistics

from scripts.benchmark import load
from scripts.benchmark.data import FilterCase
from scripts.benchmark.headrace import answered, loaded, questions, recall_of
from scripts.benchmark.load import Run
from scripts.benchmark.plan import CLIENTS, PROCESSES, Case
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import running

UNFILTERED = "unfiltered"


def measure(case: Case) -> list[Measurement]:
    """With ids and metadata in the answers, as for unfiltered queries at the default setting."""
    requests = {UNFILTERED: questions(case.queries, returnMetadata="all")}
    for one in case.data.filters.values():
        requests[one.name] = _requests(case, one)
    runs: dict[tuple[str, int], list[Run]] = {}
    recalls: dict[str, float] = {}
    with running(loaded(case), processes=PROCESSES, settings=case.settings) as server:
        for name, asked in requests.items():  # Columns and rows are mapped and read before any clock runs.
            run = answered(load.closed_loop(server.port, asked, connections=8, count=len(asked)))
            truth = case.data.truth if name == UNFILTERED else case.data.filters[name].truth
            recalls[name] = recall_of(run, truth, len(asked))
        for _ in range(case.plan.rounds):
            for clients in CLIENTS:
                for name, asked in requests.items():
                    count = case.plan.filtered_count * (1 if name != UNFILTERED else 3)
                    run = load.closed_loop(server.port, asked, connections=clients, count=count)
                    runs.setdefault((name, clients), []).append(answered(run))
    return [_figure(case, name, clients, runs, recalls) for name in requests for clients in CLIENTS]


def label(one: FilterCase) -> str:
    """The name of a filter in a table."""
    return f"{one.name.partition('_')[0]} {one.percent:g} %"


def _requests(case: Case, one: FilterCase) -> list[bytes]:
    filters = [{one.field: str(value)} for value in one.values[: case.plan.filtered_queries].tolist()]
    return questions(case.data.queries[: case.plan.filtered_queries], filters=filters, returnMetadata="all")


def _figure(
    case: Case, name: str, clients: int, runs: dict[tuple[str, int], list[Run]], recalls: dict[str, float]
) -> Measurement:
    bare = runs[UNFILTERED, clients]
    ratios = [one.rate / other.rate for one, other in zip(runs[name, clients], bare, strict=True)]
    settings = {"recall": "default", "to unfiltered": round(statistics.median(ratios), 3), "processes": PROCESSES}
    filter = "" if name == UNFILTERED else label(case.data.filters[name])
    what = "filtered.none" if name == UNFILTERED else "filtered"
    more = {"clients": clients, "filter": filter, "recall": recalls[name]}
    return case.runs(what, runs[name, clients], settings=settings, **more)
