"""Kill `headrace up` under load with SIGKILL, and hold it to every answer it gave; see `scripts/crash`.

Writers share ids and repeat a write under its Idempotency-Key until it is acknowledged, whatever dies meanwhile. So
nothing is uncertain at the end: the log must hold each write exactly once, those of one writer in its order, and what
the log did must be what a dictionary does that is given the same writes in the order of the log: the counts of every
single mutation, the ids, the values and the metadata. Exits non-zero at the first difference.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import orjson

from tests.contract.program import ACCOUNT, Program, is_alive, running

INDEX = f"/client/v4/accounts/{ACCOUNT}/vectorize/v2/indexes"
WRITERS = 6
IDS = 400
GROUPS = 40
DIMENSIONS = 8
BATCH_MAX = 12
PATIENCE_S = 120.0
PAUSE_S = 0.02
"""Between two tries of a write that was not acknowledged."""
UP = {
    # Builds, merges and collecting go on all the time, so that they are killed as well.
    "HEADRACE_SEAL_BYTES": "20000",
    "HEADRACE_SEAL_MUTATIONS": "20",
    "HEADRACE_SEAL_IDLE_MS": "200",
    "HEADRACE_SEGMENTS_MAX": "2",
    "HEADRACE_MERGE_IDLE_MS": "500",
    "HEADRACE_GRACE_MS": "300",
    "HEADRACE_SWEEP_MS": "1000",
    "HEADRACE_GRAPH_ROWS_MIN": "200",
    "HEADRACE_BUILDER_THREADS": "1",
}
Row = tuple[list[float], int]
"""What the model keeps of a vector: its values and its group."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write as a writer meant it. `rows` are (id, number) pairs; the number makes the values and the group."""

    action: str
    rows: tuple[tuple[str, int], ...] = ()
    group: int = -1

    @classmethod
    def at_random(cls, dice: random.Random, number: int) -> Write:
        """Some write; ids come up again and again, within one batch as well."""
        ids = [f"v{dice.randrange(IDS):03}" for _ in range(dice.randint(1, BATCH_MAX))]
        action = dice.choices(["upsert", "insert", "delete_by_ids", "delete_by_filter"], [6, 3, 2, 1])[0]
        if action == "delete_by_filter":
            return cls(action, group=dice.randrange(GROUPS))
        if action == "insert":
            ids = list(dict.fromkeys(ids))  # An insert that names an id twice is refused.
        return cls(action, tuple((id, number * BATCH_MAX + place) for place, id in enumerate(ids)))

    def body(self) -> bytes:
        """The request."""
        match self.action:
            case "delete_by_ids":
                return orjson.dumps({"ids": [id for id, _ in self.rows]})
            case "delete_by_filter":
                return orjson.dumps({"filter": {"group": self.group}})
            case _:
                return b"\n".join(
                    orjson.dumps({"id": id, "values": row_of(number)[0], "metadata": {"group": row_of(number)[1]}})
                    for id, number in self.rows
                )


def row_of(number: int) -> Row:
    """Values that tell the number again, exactly in float32, and the group it is in."""
    return [1.0, float(number % 4096), float(number // 4096), *[0.5] * (DIMENSIONS - 3)], number % GROUPS


class Model:
    """What an index is after some writes: a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def apply(self, write: Write) -> dict[str, int]:
        """Do a write; returns the counts the service must have found."""
        counts = dict.fromkeys(("inserted", "replaced", "ignored", "deleted", "missing"), 0)
        match write.action:
            case "insert":
                for id, number in write.rows:
                    counts["ignored" if id in self.rows else "inserted"] += 1
                    self.rows.setdefault(id, row_of(number))
            case "upsert":
                last = dict(write.rows)
                counts["ignored"] = len(write.rows) - len(last)
                for id, number in last.items():
                    counts["replaced" if id in self.rows else "inserted"] += 1
                    self.rows[id] = row_of(number)
            case "delete_by_ids":
                for id in dict(write.rows):
                    counts["missing" if self.rows.pop(id, None) is None else "deleted"] += 1
            case "delete_by_filter":
                gone = [id for id, (_, group) in self.rows.items() if group == write.group]
                counts["deleted"] = len(gone)
                for id in gone:
                    del self.rows[id]
        return counts


class Api:
    """One client: a connection that is made anew when it breaks."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: bytes | None = None, key: str = "") -> object:
        """The result, however often it takes; an answer that is neither success nor "later" ends the run."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                status, answer = self._once(method, path, body, key)
            except (OSError, http.client.HTTPException):
                self._connection = None
            else:
                if status == 200:
                    return answer["result"]
                check(status in (429, 503), f"{method} {path} answered {status}: {answer.get('errors')}")
            time.sleep(PAUSE_S)
        raise SystemExit(f"BROKEN: {method} {path} got no answer for {PATIENCE_S:g} s")

    def _once(self, method: str, path: str, body: bytes | None, key: str) -> tuple[int, dict[str, object]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._program.port, timeout=30)
        kind = "application/x-ndjson" if path.endswith(("insert", "upsert")) else "application/json"
        headers = {"Content-Type": kind} | ({"Idempotency-Key": key} if key else {})
        self._connection.request(method, INDEX + path, body, headers)
        response = self._connection.getresponse()
        return response.status, orjson.loads(response.read())


@dataclass
class Load:
    """Writers that go on whatever dies, and everything that was acknowledged to each, in its order."""

    program: Program
    acknowledged: list[list[tuple[str, Write]]] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """Writers run in the block. Whatever each began is acknowledged after it."""
        self.acknowledged = [[] for _ in range(WRITERS)]
        threads = [threading.Thread(target=self._write, args=(place, seed), daemon=True) for place in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        check(not self.failed, f"every write is answered: {self.failed[:1]}")

    def _write(self, place: int, seed: int) -> None:
        api, dice = Api(self.program), random.Random(seed * WRITERS + place)
        try:
            while not self._stopping.is_set():
                number = next(self._numbers)
                write = Write.at_random(dice, number)
                answer = api.call("POST", f"/docs/{write.action}", write.body(), key=f"write-{number}")
                self.acknowledged[place].append((answer["mutationId"], write))  # type: ignore[index]
        except BaseException as error:
            self.failed.append(error)

    @property
    def count(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.acknowledged))


def check(holds: bool, claim: str) -> None:
    """End the run when a promise does not hold."""
    if not holds:
        raise SystemExit(f"BROKEN: {claim}")


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        check(time.monotonic() < deadline, what)
        time.sleep(PAUSE_S)


def kill(program: Program, dice: random.Random, wait: Callable[[str, Callable[[], bool]], None]) -> str:
    """Kill something without a warning, and bring the whole back; says what it was.

    `wait` waits for what must happen, and raises when it does not.
    """
    victim = dice.choice(["worker", "worker", "service-1", "service-2", "children", "supervisor"])
    some = [program.child(name) for name in ("worker", "service-1", "service-2")]
    # One may have died in an earlier kill, with no successor that is ready yet: its number may be anybody's now.
    children = [pid for pid in some if program.has_child(pid)]
    match victim:
        case "supervisor":
            # One that is being started has the port as well, and no number in the log yet.
            orphans = program.children()
            program.end(signal.SIGKILL)
            wait("children end with their supervisor", lambda: not any(is_alive(pid) for pid in orphans))
            program.start()
        case "children":
            _kill(*children)
        case _:
            _kill(*{program.child(victim)}.intersection(children))
    return victim


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def compare(api: Api, load: Load) -> None:
    """Everything the service says of its past and present, against the model."""
    acknowledged = {mutation: write for writes in load.acknowledged for mutation, write in writes}
    check(len(acknowledged) == load.count, "every write has a mutation of its own")
    newest = max(acknowledged)
    api.call("GET", f"/docs/info?wait_for={newest}&timeout=100")
    logged = walk_mutations(api)
    ids = [str(one["mutationId"]) for one in logged]
    lost, doubled = acknowledged.keys() - set(ids), set(ids) - acknowledged.keys()
    check(not lost, f"{len(lost)} acknowledged writes are lost: {sorted(lost)[:3]}")
    check(not doubled and len(ids) == len(acknowledged), f"{len(doubled)} writes are in the log twice")
    check(ids == sorted(ids), "mutation ids ascend in the order of the log")
    for writes in load.acknowledged:
        mine = [mutation for mutation, _ in writes]
        check(mine == sorted(mine), "the writes of one writer keep their order")
    model = Model()
    for one in logged:
        write = acknowledged[str(one["mutationId"])]
        expected = model.apply(write)
        check(one["state"] == "applied", f"every mutation is applied: {one}")
        check(one["counts"] == expected, f"{write} does what it does in the model, {expected}: {one}")
    check_vectors(api, model)


def walk_mutations(api: Api) -> list[dict[str, object]]:
    """The whole log, oldest first."""
    found: list[dict[str, object]] = []
    before = ""
    while True:
        page = api.call("GET", f"/docs/mutations?count=1000{before}")
        found += page["mutations"]  # type: ignore[index]
        if page["nextBefore"] is None:  # type: ignore[index]
            return found[::-1]
        before = f"&before={page['nextBefore']}"  # type: ignore[index]


def check_vectors(api: Api, model: Model) -> None:
    """What is stored, listed and found is what the model has."""
    listed: dict[str, Row] = {}
    page: dict[str, str] = {"include": "values,metadata", "count": "100"}
    while page:
        answer = api.call("GET", f"/docs/list?{urlencode(page)}")
        listed |= {one["id"]: (one["values"], one["metadata"]["group"]) for one in answer["vectors"]}  # type: ignore[index]
        cursor = answer["nextCursor"]  # type: ignore[index]
        page = page | {"cursor": cursor} if cursor else {}
    check(listed == model.rows, f"the vectors are those of the model: {_difference(listed, model.rows)}")
    info = api.call("GET", "/docs/info?latest=true")
    check(info["vectorCount"] == len(model.rows), f"/info counts {len(model.rows)} vectors: {info}")  # type: ignore[index]
    for group in range(0, GROUPS, 7):
        expected = {id for id, (_, own) in model.rows.items() if own == group}
        query = {"vector": row_of(0)[0], "topK": 100, "filter": {"group": group}}
        found = api.call("POST", "/docs/query", orjson.dumps(query))
        check({one["id"] for one in found["matches"]} == expected, f"group {group} is {expected}: {found}")  # type: ignore[index]


def _difference(found: dict[str, Row], expected: dict[str, Row]) -> str:
    wrong = [id for id in sorted(found.keys() | expected.keys()) if found.get(id) != expected.get(id)]
    return f"{len(wrong)} differ, the first: {[(id, found.get(id), expected.get(id)) for id in wrong[:2]]}"


def run(folder: Path, *, kills: int, seed: int) -> None:
    """One data folder, killed so often."""
    dice = random.Random(seed)
    killed: list[str] = []
    with running(folder, "--processes", "2", environ=UP) as program:
        api = Api(program)
        create = {"name": "docs", "config": {"dimensions": DIMENSIONS, "metric": "euclidean"}}
        api.call("POST", "", orjson.dumps(create))
        load = Load(program)
        with load.running(seed):
            for _ in range(kills):
                time.sleep(dice.uniform(0.05, 3.0))
                goal = load.count + dice.randrange(1, 60)
                until("writes go on after a kill", lambda goal=goal: load.count >= goal or bool(load.failed))  # type: ignore[misc]
                killed.append(kill(program, dice, until))
        compare(api, load)
        until("something is built", lambda: bool(program.events("build.published")))
        compare(api, load)
        built = len(program.events("build.published"))
        check(program.stop() == 0, "the server stops cleanly after all that")
        halted = [*program.events("index.halted"), *program.events("mutation.failed"), *program.events("index.failed")]
        check(not halted, f"nothing is damaged: {halted[:2]}")
        program.start()
        compare(api, load)
        program.stop()
    print(f"{len(killed)} kills:", ", ".join(f"{killed.count(one)} x {one}" for one in sorted(set(killed))))
    print(f"{load.count:,} writes acknowledged by {WRITERS} writers, {built} builds published")
    print("0 lost, 0 doubled, 0 out of order; every count and every vector is that of the model")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="how many kills (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="what is killed and written, if not when (default 1)")
    parser.add_argument("--short", action="store_true", help="8 kills")
    parser.add_argument("--keep", type=Path, help="a folder for the data and the log, kept; must not exist")
    options = parser.parse_args()
    kills = 8 if options.short else options.kills
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        run(options.keep, kills=kills, seed=options.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), kills=kills, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
