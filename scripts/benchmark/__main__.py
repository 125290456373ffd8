"""The benchmark: `scripts/bench`. See BENCHMARKS.md for what each part measures and how to read it."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from scripts.benchmark import filtered, growth, loading, queries, report, resources, small_indexes, writes
from scripts.benchmark.data import data_set
from scripts.benchmark.journal import Journal, now
from scripts.benchmark.peers import NAMES, measure_peer
from scripts.benchmark.plan import Case, Plan
from scripts.benchmark.results import Measurement, from_dicts
from scripts.benchmark.targets import problems
from scripts.words import CACHE

SETS = ("glove", "syn768")
OURS: dict[str, Callable[[Case], list[Measurement]]] = {
    "load": loading.measure,
    "query": queries.measure,
    "filtered": filtered.measure,
    "visible": writes.visible,
    "reads_during_load": writes.reads_during_load,
    "list": resources.measure,
}
"""What is measured of Headrace on each set, in this order: loading leaves the folder that the others start on."""
PARTS = (*OURS, "growth", "small", "peers")
SHORT_ROWS, SHORT_PEERS = 2_000, ("usearch",)


def main() -> int:
    """Measure what is asked for, part by part, and report all there is."""
    asked = _arguments()
    # What was started is stopped by whoever started it, also when the whole is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = tuple(asked.only.split(",")) if asked.only else PARTS
    if unknown := set(parts) - {*PARTS, "report"}:
        raise SystemExit(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)} and report")
    plan = _plan(asked)
    journal = Journal(plan.out / "results.json")
    failed = _measured(plan, parts, journal)
    report.write(journal, plan.out, rows=plan.rows, plots=not plan.short)
    if asked.markdown:
        print(report.markdown(journal, rows=plan.rows))
    wrong = problems(journal.measurements, rows=plan.rows)
    for problem in [*failed, *wrong]:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    return 1 if failed or wrong else 0


def _measured(plan: Plan, parts: tuple[str, ...], journal: Journal) -> list[str]:
    """Measure; which parts failed."""
    failed = []
    if {*OURS, "peers"} & set(parts):
        for name in plan.sets:
            failed += _measured_on(Case(plan=plan, data=data_set(name, plan.rows)), parts, journal)
    for part, measure in _scaling(plan).items():
        if part in parts:
            failed += _one(journal, part, "", 0, measure)
    return failed


def _measured_on(case: Case, parts: tuple[str, ...], journal: Journal) -> list[str]:
    works: dict[str, Callable[[], Iterable[Measurement]]] = {}
    works |= {part: partial(measure, case) for part, measure in OURS.items() if part in parts}
    works |= {f"peers {peer}": partial(_peer, case, peer) for peer in case.plan.peers if "peers" in parts}
    failed = []
    for part, measure in works.items():
        failed += _one(journal, part, case.data.name, case.data.rows, measure)
    return failed


def _one(journal: Journal, part: str, name: str, rows: int, measure: Callable[[], Iterable[Measurement]]) -> list[str]:
    """Measure one part and keep what it found; a part that fails is told of, and the next goes on."""
    title = f"{part} {name}".strip()
    print(f"{title} ...", flush=True)
    about, begun = now(), time.perf_counter()
    try:
        found = list(measure())
    except Exception as error:
        traceback.print_exc()
        return [f"{title}: {type(error).__name__}: {error}"]
    seconds = round(time.perf_counter() - begun, 1)
    journal.add(part, name, rows, found, **about, seconds=seconds)
    print(f"{title}: {len(found)} figures in {seconds:g} s", flush=True)
    return []


def _peer(case: Case, name: str) -> list[Measurement]:
    work = case.plan.work / "peers"
    return from_dicts(measure_peer(name, case.data.folder, work, short=case.plan.short))


def _scaling(plan: Plan) -> dict[str, Callable[[], Iterable[Measurement]]]:
    """What has sizes of its own."""
    return {"growth": partial(growth.measure, plan), "small": partial(_small, plan)}


def _small(plan: Plan) -> list[Measurement]:
    plan.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="small-", dir=plan.work) as folder:
        return small_indexes.measure(small_indexes.case_of(plan), small_indexes.STEPS, Path(folder) / "data")


def _plan(asked: argparse.Namespace) -> Plan:
    short = asked.short
    sets = tuple(asked.sets.split(","))
    if unknown := set(sets) - set(SETS):
        raise SystemExit(f"unknown sets {', '.join(sorted(unknown))}; there are {' and '.join(SETS)}")
    chosen = asked.peers or ("short" if short else "all")
    peers = {"all": NAMES, "none": (), "short": SHORT_PEERS}.get(chosen, tuple(chosen.split(",")))
    if unknown := set(peers) - set(NAMES):
        raise SystemExit(f"unknown peers {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    out = asked.out or CACHE / "bench" / ("report-short" if short else "report")
    rows = asked.rows or (SHORT_ROWS if short else 100_000)
    sizes = tuple(sorted(map(int, asked.sizes.replace("_", "").split(",")))) if asked.sizes else ()
    rounds = 1 if short else asked.rounds
    return Plan(sets=sets, rows=rows, peers=peers, rounds=rounds, short=short, out=out, sizes=sizes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure Headrace, its limits and its peers.")
    parser.add_argument("--sets", default=",".join(SETS), help="glove, syn768 or both, separated by a comma")
    parser.add_argument("--rows", type=int, help="vectors of each set: 10,000 to 1,000,000; 100,000 by default")
    parser.add_argument("--peers", help=f"all, none, or some of {', '.join(NAMES)}")
    parser.add_argument("--only", help=f"some of {', '.join(PARTS)}; report alone measures nothing")
    parser.add_argument("--sizes", help="of growth, separated by commas; 10000,100000,1000000 by default")
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians of so many rounds")
    parser.add_argument("--out", type=Path, help="the folder of results.json and report.html")
    parser.add_argument("--short", action="store_true", help="a minute or two, to see that it works; judges no time")
    parser.add_argument("--markdown", action="store_true", help="print the README's table at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
