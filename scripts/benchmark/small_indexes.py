"""Many small indexes on one machine: what they cost while nobody uses them, and how soon a write to one is visible.

    python -m scripts.benchmark.small_indexes --indexes 5000 --vectors 100 --json OUT
    python -m scripts.benchmark.small_indexes --indexes 50 --vectors 100 --idle 2 --writes 30     (does it work?)

The steps are `create` (make the indexes), `fill` (write their vectors), `start` (a restart with all of them, and what
the worker does after it), `visible` (single upserts to random indexes), `query` (queries on random indexes) and `idle`
(what the processes take while nothing happens, after all that). With `--data` the folder is kept, and steps can be
measured one at a time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import orjson

from scripts.benchmark.plan import Plan
from scripts.benchmark.processes import Usage, usage
from scripts.benchmark.results import Measurement
from scripts.benchmark.server import NDJSON, Server, running

DIMENSIONS = 100
CLIENTS = 4
STEPS = ("create", "fill", "start", "visible", "query", "idle")
WRITES_PER_S = 20
POLL_S = 0.001
NEWEST, SAMPLED = 200, 25
"""So many of the last indexes, and every so manieth of all, are asked whether all is applied: each answer takes opening
the index, and all of them would take longer than applying did."""
SETTLE_S = 75.0
"""Longer than anything that was used stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured: this many indexes of this many vectors."""

    indexes: int
    vectors: int
    idle_s: float
    writes: int
    settle_s: float

    def measurement(self, what: str, value: float, unit: str, **more: object) -> Measurement:
        """One figure about this case."""
        return Measurement(
            subject="headrace",
            set=f"{self.indexes} indexes",
            rows=self.vectors,
            what=what,
            value=round(value, 3),
            unit=unit,
            **more,  # type: ignore[arg-type]
        )


def case_of(plan: Plan) -> Case:
    """What a run of the whole benchmark measures."""
    if plan.short:
        return Case(indexes=12, vectors=100, idle_s=0.3, writes=5, settle_s=0.2)
    return Case(indexes=5_000, vectors=100, idle_s=10.0, writes=200, settle_s=SETTLE_S)


def another(server: Server) -> Server:
    """One more connection to the same server."""
    return replace(server)


def usages(server: Server) -> dict[str, Usage]:
    """What the service and the worker have taken now."""
    return {name: usage(pid) for name, pids in server.pids().items() for pid in pids if name != "supervisor"}


def name_of(number: int) -> str:
    """The name of an index."""
    return f"small-{number}"


def records(dice: np.random.Generator, ids: Iterable[str]) -> bytes:
    """Random vectors as NDJSON."""
    return b"".join(
        orjson.dumps(
            {"id": id, "values": dice.standard_normal(DIMENSIONS).astype(np.float32), "metadata": {"kind": id[:1]}},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for id in ids
    )


def create(case: Case, server: Server) -> list[Measurement]:
    """Make every index."""
    rate = _each(server, range(case.indexes), lambda api, name: api.create(name, DIMENSIONS))
    return [case.measurement("create", rate, "/s", clients=CLIENTS)]


def fill(case: Case, server: Server) -> list[Measurement]:
    """Fill each with one upsert, and wait until all of it is applied; then one more, made and filled while idle."""
    body = records(np.random.default_rng(7), map(str, range(case.vectors)))
    started = time.monotonic()
    filled = _each(server, range(case.indexes), lambda api, name: api.upsert(name, body))
    # The newest are applied last, and cost nothing to ask: the service has them open. Of the rest, some.
    asked = [*range(max(0, case.indexes - NEWEST), case.indexes), *range(0, case.indexes, SAMPLED)]
    for number in asked:
        _wait_for_all(another(server), name_of(number), case.vectors)
    applied = case.indexes / (time.monotonic() - started)
    started = time.monotonic()
    api = another(server)
    api.create("one-more", DIMENSIONS)
    api.call("POST", "/one-more/upsert?wait=true", body, content_type=NDJSON)
    first_write_ms = (time.monotonic() - started) * 1000
    return [
        case.measurement("fill.acknowledged", filled, "indexes/s", clients=CLIENTS),
        case.measurement("fill.searchable", applied, "indexes/s", clients=CLIENTS),
        case.measurement("create and first write visible", first_write_ms, "ms"),
    ]


def _each(server: Server, numbers: range, work: Callable[[Server, str], None]) -> float:
    """Do something to every index with a few clients at once; how many a second."""
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        shares = [numbers[first::CLIENTS] for first in range(CLIENTS)]
        list(pool.map(lambda share: _all(another(server), share, work), shares))
    return len(numbers) / (time.monotonic() - started)


def _all(api: Server, numbers: range, work: Callable[[Server, str], None]) -> None:
    for number in numbers:
        work(api, name_of(number))


def _wait_for_all(api: Server, name: str, vectors: int) -> None:
    deadline = time.monotonic() + 600
    while api.call("GET", f"/{name}/info?latest=true")["vectorCount"] < vectors:
        if time.monotonic() > deadline:
            raise SystemExit(f"index {name} was not applied within ten minutes")
        time.sleep(0.02)


def start(case: Case, server: Server) -> list[Measurement]:
    """What a restart with all the indexes took, and what the worker does in the first half minute."""
    before = usages(server)
    time.sleep(case.idle_s)
    after = usages(server)
    found = [case.measurement("start", server.ready_s, "s")]
    for name in before:
        found.append(case.measurement(f"start.cpu until ready, {name}", before[name].cpu_s, "s"))
        spent = after[name].cpu_s - before[name].cpu_s
        found.append(case.measurement(f"start.cpu in the first {case.idle_s:g} s, {name}", spent, "s"))
    return found


def idle(case: Case, server: Server) -> list[Measurement]:
    """What every process takes while nothing happens."""
    time.sleep(case.settle_s)
    before = usages(server)
    time.sleep(case.idle_s)
    after = usages(server)
    found = []
    for name, one in after.items():
        rates = {"wakes": "idle wake-ups", "cpu_s": "idle cpu"}
        for field in fields(Usage):
            value = getattr(one, field.name)
            if field.name in rates:
                value = (value - getattr(before[name], field.name)) / case.idle_s
                unit = "/s" if field.name == "wakes" else "s/s"
                found.append(case.measurement(f"{rates[field.name]}, {name}", value, unit))
            else:
                unit = "MB" if field.name.endswith("_mb") else ""
                found.append(case.measurement(f"idle {field.name.removesuffix('_mb')}, {name}", value, unit))
    return found


def visible(case: Case, server: Server) -> list[Measurement]:
    """How soon single upserts can be read: to random indexes, most of which nobody has open, and to one index."""
    found = []
    for where in ("random indexes", "one index"):
        for how, write in (("wait=true", _write_and_wait), ("get_by_ids", _write_and_poll)):
            names = _anywhere(case, how) if where == "random indexes" else [name_of(0)] * case.writes
            times = _paced(another(server), names, write, f"{where}-{how}".replace(" ", "-"))
            found.append(_latency(case, f"visible, {where}, {how}", times))
    return found


def query(case: Case, server: Server) -> list[Measurement]:
    """Queries on random indexes, most of which nobody has open, and on one index."""
    vectors = np.random.default_rng(13)

    def ask(api: Server, name: str, _: str) -> None:
        vector = vectors.standard_normal(DIMENSIONS).tolist()
        if not api.call("POST", f"/{name}/query", orjson.dumps({"vector": vector, "topK": 10}))["matches"]:
            raise SystemExit(f"index {name} found nothing")

    return [
        _latency(case, f"query, {where}", _paced(another(server), names, ask, ""))
        for where, names in (("random indexes", _anywhere(case, "query")), ("one index", [name_of(0)] * case.writes))
    ]


def _anywhere(case: Case, seed: str) -> list[str]:
    """Random indexes, others for each seed: what was just used is open."""
    dice = random.Random(seed)
    return [name_of(dice.randrange(case.indexes)) for _ in range(case.writes)]


def _paced(api: Server, names: list[str], work: Callable[[Server, str, str], None], salt: str) -> list[float]:
    """Milliseconds of each call, at a steady rate that leaves the machine nearly idle."""
    times = []
    began = time.monotonic()
    for number, name in enumerate(names):
        time.sleep(max(0.0, began + number / WRITES_PER_S - time.monotonic()))
        started = time.monotonic()
        work(api, name, f"{salt}-{number}")
        times.append((time.monotonic() - started) * 1000)
    return times


def _write_and_wait(api: Server, name: str, id: str) -> None:
    body = records(np.random.default_rng(3), [id])
    api.call("POST", f"/{name}/upsert?wait=true", body, content_type=NDJSON)


def _write_and_poll(api: Server, name: str, id: str) -> None:
    api.upsert(name, records(np.random.default_rng(3), [id]))
    asked = orjson.dumps({"ids": [id]})
    while not api.call("POST", f"/{name}/get_by_ids", asked):
        time.sleep(POLL_S)


def _latency(case: Case, what: str, times: list[float]) -> Measurement:
    p99 = float(np.quantile(times, 0.99))
    p50 = statistics.median(times)
    return case.measurement(
        what, p50, "ms", p50_ms=round(p50, 3), p99_ms=round(p99, 3), low=round(min(times), 3), high=round(max(times), 3)
    )


def measure(case: Case, steps: Iterable[str], data: Path) -> list[Measurement]:
    """Every step of the list, in order: the first two on a server of their own, the others on one started again."""
    works = {"create": create, "fill": fill, "start": start, "visible": visible, "query": query, "idle": idle}
    found: list[Measurement] = []
    for group in (STEPS[:2], STEPS[2:]):
        wanted = [step for step in group if step in steps]
        if wanted:
            with running(data, processes=1) as server:
                for step in wanted:
                    found += works[step](case, server)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--indexes", type=int, default=5_000)
    parser.add_argument("--vectors", type=int, default=100)
    parser.add_argument(
        "--idle", type=float, default=30.0, metavar="SECONDS", help="how long idle processes are watched"
    )
    parser.add_argument("--settle", type=float, metavar="SECONDS", help="how long nothing happens before that")
    parser.add_argument("--writes", type=int, default=300, help="upserts, and queries, in each round")
    parser.add_argument("--steps", default=",".join(STEPS), help="which of them, separated by commas")
    parser.add_argument("--data", type=Path, help="the data folder; kept")
    parser.add_argument("--json", type=Path, help="where the figures go")
    asked = parser.parse_args()
    settle_s = asked.settle if asked.settle is not None else (SETTLE_S if asked.indexes > 100 else 1.0)
    case = Case(indexes=asked.indexes, vectors=asked.vectors, idle_s=asked.idle, writes=asked.writes, settle_s=settle_s)
    with tempfile.TemporaryDirectory(prefix="headrace-small-") as folder:
        found = measure(case, asked.steps.split(","), asked.data or Path(folder) / "data")
    for one in found:
        tail = "" if one.p99_ms is None else f"   p99 {one.p99_ms:.2f} ms"
        print(f"{one.what:45} {one.value:12,.3f} {one.unit}{tail}")
    if asked.json is not None:
        asked.json.write_bytes(orjson.dumps([one.as_dict() for one in found], option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
