"""No memory: the worker below `headrace up` is confined to too little, and builds until the kernel kills something.

The service answers throughout, and what it answers is right; the worker comes back; what was acknowledged is applied
though the builds it leads to do not fit, for they go on in smaller pieces, which `/info`, the metrics and the log say.
At the end everything written is there once. A memory cgroup kills; a limit of the address space makes calls fail.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import resource
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson

from scripts.trials.full import KEEP
from scripts.trials.full_load import PAUSE_S, Client
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from tests.contract.program import Program, is_alive, running

SHORT = 2
FULL = 40
MIB = 1024 * 1024
DIMENSIONS = 192
BATCH = 400
BATCHES = 60
LONG_S = 240.0
"""How long the worker may take for all of it, with what is killed on the way."""
PROMISE = "the worker without memory: {way}"
WAYS = ("a memory cgroup", "a limit of the address space")
UP = {
    # What is sealed at once is several times what there is memory for.
    "HEADRACE_SEAL_BYTES": str(12 * MIB),
    "HEADRACE_TAIL_BYTES_MAX": str(16 * MIB),
    "HEADRACE_SEAL_IDLE_MS": "500",
    "HEADRACE_MERGE_IDLE_MS": "1000",
    "HEADRACE_GRAPH_ROWS_MIN": "1000",
    "HEADRACE_BUILDER_THREADS": "1",
    "HEADRACE_SWEEP_MS": "500",
}
Confine = Callable[[int], None]


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the trials that were not done yet; a number stands for one trial of a seed."""
    done = Trials(results / f"memory-{seed}.jsonl", replay)
    for number in done.wanted(range(trials)):
        way = WAYS[number % len(WAYS)]
        if way == WAYS[0] and _cgroups() is None:
            done.note(_trial_of(number, way, "", "not run", 0, "memory cgroups that may be made (root)"))
        else:
            done.note(_trial(number, seed, way))
    return done.result(range(trials))


def _trial_of(number: int, way: str, what: str, verdict: str, seconds: float, note: str) -> Trial:
    promise = PROMISE.format(way=way)
    return Trial(number=number, promise=promise, what=what, verdict=verdict, seconds=round(seconds, 3), note=note)


def _trial(number: int, seed: int, way: str) -> Trial:
    dice = random.Random(f"{seed} {number}")
    room = dice.randrange(40, 90) * MIB if way == WAYS[0] else dice.randrange(4, 40) * MIB
    started, verdict, note = time.monotonic(), "kept", ""
    with tempfile.TemporaryDirectory(prefix="headrace-memory-") as scratch:
        folder = Path(scratch)
        try:
            with running(folder, environ=UP) as program, _confining(way, room) as confine:
                note = Starved(program, dice).run(confine)
        except (Broken, OSError, http.client.HTTPException, AssertionError) as error:
            verdict, note = "broken", f"{type(error).__name__}: {error}"[:600]
        if keep := os.environ.get(KEEP):
            shutil.copyfile(folder / "log.jsonl", f"{keep}-{number}.jsonl")
    return _trial_of(number, way, f"{room // MIB} MiB", verdict, time.monotonic() - started, note)


def _cgroups() -> Path | None:
    """Where memory cgroups can be made: version 1, or 2 with the controller in our hands."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        probe = root / f"headrace-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            probe.mkdir()
            limited = (probe / "memory.limit_in_bytes").exists() or (probe / "memory.max").exists()
            probe.rmdir()
            if limited:
                return root
    return None


@contextmanager
def _confining(way: str, room: int) -> Iterator[Confine]:
    """How a process is confined, for the block."""
    if way == WAYS[1]:
        yield lambda pid: _limit_space(pid, room)
        return
    root = _cgroups()
    assert root is not None
    group = root / f"headrace-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        limit = group / "memory.limit_in_bytes"
        (limit if limit.exists() else group / "memory.max").write_text(str(room))
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            with contextlib.suppress(OSError):
                (group / swap).write_text(str(room) if "memsw" in swap else "0")
        yield lambda pid: _join(group, pid)
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            _join(root, int(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


def _join(group: Path, pid: int) -> None:
    with contextlib.suppress(OSError):  # It may have been killed a moment ago.
        (group / "cgroup.procs").write_text(str(pid))


def _limit_space(pid: int, room: int) -> None:
    """What it has and so much more, for it and whatever it starts."""
    with contextlib.suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + room
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def _values(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=DIMENSIONS).astype(np.float32)


class Starved:
    """One server whose worker has too little memory."""

    def __init__(self, program: Program, dice: random.Random) -> None:
        self._program, self._dice = program, dice
        self._client = Client(program)
        self._rows = 0
        self._done = threading.Event()

    def run(self, confine: Confine) -> str:
        """Write, wait until it is applied and built, ask all the time, and compare; says what happened."""
        config = {"dimensions": DIMENSIONS, "metric": "euclidean"}
        self._client.call("POST", "", orjson.dumps({"name": "docs", "config": config}))
        newest = self._write(0)
        self._wait(newest)
        confining = threading.Thread(target=self._confine, args=(confine,), daemon=True)
        confining.start()
        try:
            for number in range(1, BATCHES):
                newest = self._write(number)
                self._ask()
            self._wait(newest)
            self._settle()
        finally:
            self._done.set()
            confining.join()
        self._compare()
        return self._told()

    def _confine(self, confine: Confine) -> None:
        """Every worker that comes back as well."""
        confined = 0
        while not self._done.wait(0.1):
            pid = self._program.child("worker")
            if pid != confined and is_alive(pid):
                confine(pid)
                confined = pid

    def _write(self, number: int) -> str:
        first = number * BATCH
        lines = (
            orjson.dumps({"id": f"v{one:05}", "values": _values(one)}, option=orjson.OPT_SERIALIZE_NUMPY)
            for one in range(first, first + BATCH)
        )
        answer = self._client.call("POST", "/docs/upsert", b"\n".join(lines), key=f"batch-{number}")
        self._rows = first + BATCH
        return str(answer["mutationId"])  # type: ignore[index]

    def _ask(self) -> None:
        """The service answers, and right, whatever becomes of the worker."""
        info = self._result("GET", "/docs/info?latest=true", None)
        applied = int(info["vectorCount"])  # type: ignore[index, call-overload]
        check(applied <= self._rows, f"/info counts {applied} of {self._rows} vectors")
        one = self._dice.randrange(applied)
        query = {"vector": _values(one).tolist(), "topK": 1}
        found = self._result("POST", "/docs/query", query)
        check(found["matches"][0]["id"] == f"v{one:05}", f"the nearest of v{one:05} is {found}")  # type: ignore[index, call-overload]

    def _result(self, method: str, path: str, document: object) -> object:
        answer = self._client.ask(method, path, orjson.dumps(document) if document is not None else None)
        check(answer.status == 200, f"{method} {path} is answered {answer.status}: {answer.document.get('errors')}")
        return answer.document["result"]

    def _wait(self, newest: str) -> None:
        deadline = time.monotonic() + LONG_S
        while True:
            info = self._result("GET", "/docs/info?latest=true", None)
            if str(info.get("processedUpToMutation", "")) >= newest:  # type: ignore[attr-defined]
                return
            check(time.monotonic() < deadline, f"what was written is applied within {LONG_S:g} s: {info}")
            if info["vectorCount"]:  # type: ignore[index]
                self._ask()
            time.sleep(5 * PAUSE_S)

    def _settle(self) -> None:
        """Until something was built, as small as it must be."""
        deadline = time.monotonic() + LONG_S
        while not self._program.events("build.published"):
            check(time.monotonic() < deadline, f"something is built within {LONG_S:g} s")
            self._ask()
            time.sleep(10 * PAUSE_S)

    def _compare(self) -> None:
        """Everything is there once, with its values, and nothing else."""
        listed: list[str] = []
        cursor = ""
        while True:
            page = self._result("GET", f"/docs/list?count=1000{cursor}", None)
            listed += [one["id"] for one in page["vectors"]]  # type: ignore[index]
            if not page["nextCursor"]:  # type: ignore[index]
                break
            cursor = f"&cursor={page['nextCursor']}"  # type: ignore[index]
        check(listed == [f"v{one:05}" for one in range(self._rows)], f"{len(listed)} of {self._rows} are listed")
        for one in range(0, self._rows, 997):
            found = self._result("POST", "/docs/get_by_ids", {"ids": [f"v{one:05}"]})
            check(np.array_equal(np.float32(found[0]["values"]), _values(one)), f"v{one:05} is {found}")  # type: ignore[index]
        loud = [one for one in self._program.complaints() if one["event"] in LOUD_EVENTS]
        check(not loud, f"nothing is called damaged or unforeseen: {loud[:2]}")

    def _told(self) -> str:
        """What it came to; a build that did not fit must have been told of."""
        deaths = sum(one["name"] == "worker" for one in self._program.events("child.died"))
        unfit, failed = self._program.events("build.does_not_fit"), self._program.events("build.failed")
        check(not any(one["name"] != "worker" for one in self._program.events("child.died")), "no service died")
        bounded = self._result("GET", "/docs/info", None).get("boundedBuilds", {})  # type: ignore[attr-defined]
        check(not unfit or bounded, f"/info says which builds are bounded after {len(unfit)} did not fit")
        built = len(self._program.events("build.published"))
        return f"worker died {deaths} times, {len(failed)} builds failed, {len(unfit)} did not fit, {built} published"


LOUD_EVENTS = {"index.halted", "mutation.set_aside", "request.failed", "segment.unproved"}
