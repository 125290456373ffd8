"""SIGKILL at every system call that changes a file, of ingest, apply, seal, merge, collect, migration, backup, restore.

Each path is run once to count its calls; then once for each of them, on a fresh copy of the folder, killed right before
that call, when everything else has gone on for a moment. The next start must find everything that was acknowledged,
apply what was not, and be as the model is after the client has repeated what it got no answer to. A backup is whole or
not there; one that was there before stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from scripts.trials import syscalls_trace
from scripts.trials.crash_check import Checker
from scripts.trials.crash_load import Load, check, until
from scripts.trials.crash_writes import Write
from scripts.trials.report import Journal, Trial
from scripts.trials.syscalls_paths import CALM, ROUTES, Route, Stage
from scripts.trials.syscalls_site import History, Site, Step, break_if_asked, on_site, settings_in
from storage.backends.sqlite.archive import MANIFEST
from storage.backends.sqlite.folder import DRAFT_PREFIX, DataFolder
from storage.backends.sqlite.inspection import Part, inspect_index
from storage.backends.sqlite.restoring import restore
from storage.records import IndexId

SHORT = 26
FULL = 1_000_000
"""Every call of every path."""
NUMBERS = 100_000
"""Numbers of one path: the trial at call 12 of the third path is 200,012."""
TRIAL_S = 120.0
GRACE_MS = 50
_LATER = (Step(write=Write.anchors(5_000)), Step(write=Write("delete_by_ids", (("v006", 0), ("v009", 0)))))


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the calls that were not tried yet, `trials` of them spread over all; `seed` changes nothing."""
    needs = _in_child(lambda: syscalls_trace.missing(), Path(os.devnull))
    if needs:
        return [_trial(0, "every path", "", "not run", 0.0, needs)]
    journal = Journal(results / f"syscalls-{seed}.jsonl")
    done = {} if replay is not None else journal.done()
    found = {}
    for place, route in enumerate(ROUTES):
        if replay is not None and replay // NUMBERS != place:
            continue
        with tempfile.TemporaryDirectory(prefix="headrace-syscalls-", dir=_fast_folder()) as scratch:
            for trial in _route(place, route, Path(scratch), trials, done, replay):
                found[trial.number] = trial
                if replay is None and trial.number not in done:
                    journal.add(trial)
                if trial.is_violation:
                    sys.stderr.write(f"{trial.number}: {trial.verdict}: {trial.what}: {trial.note}\n")
    return [trial for _, trial in sorted(found.items())]


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _trial(number: int, route: str, what: str, verdict: str, seconds: float, note: str) -> Trial:
    promise = f"killed at a system call of {route}"
    return Trial(number=number, promise=promise, what=what, verdict=verdict, seconds=round(seconds, 3), note=note)


def _route(
    place: int, route: Route, scratch: Path, trials: int, done: dict[int, Trial], replay: int | None
) -> Iterator[Trial]:
    """The trials of one path: at least one."""
    template = scratch / "template"
    template.mkdir()
    log = scratch / "log"
    error = _in_child(lambda: _make(route, template), log)
    if error is not None:
        yield _trial(place * NUMBERS, route.name, "making the folder", "broken promise", 0.0, str(error))
        return
    counted = _attempt(route, template, scratch / "counting", kill_at=0, log=log)
    calls = counted["calls"]
    share = max(1, trials // len(ROUTES))
    if not calls or counted["exit_code"] != 0:
        yield _trial(place * NUMBERS, route.name, "counting", "broken promise", 0.0, str(counted)[-1500:])
        return
    chosen = sorted({1 + int((number + 0.5) * len(calls) / share) for number in range(share)})
    wanted = range(1, len(calls) + 1) if share >= len(calls) else chosen
    for call in [replay % NUMBERS] if replay is not None else wanted:
        number = place * NUMBERS + call
        if number in done:
            yield done[number]
            continue
        started = time.monotonic()
        folder = scratch / "trial"
        found = _attempt(route, template, folder, kill_at=call, log=log)
        what = f"call {call} of {len(calls)}: {_short((found['calls'] or ['none'])[-1])}"
        broken = found["error"] or (found["exit_code"] not in (0, -signal.SIGKILL) and f"ended: {found['exit_code']}")
        broken = broken or _in_child(partial(_verify, route, folder), log)
        verdict, note = ("broken promise", f"{broken}"[-2000:]) if broken else ("kept", "")
        if replay is not None:
            print(log.read_text())
        yield _trial(number, route.name, what, verdict, time.monotonic() - started, note)
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(route: Route, template: Path, folder: Path, *, kill_at: int, log: Path) -> dict[str, object]:
    """Run the path on a copy of the folder, killed at one call; what was seen, as a dictionary."""
    shutil.copytree(template, folder)
    shutil.copy(_history(template), _history(folder))
    history = History.load(_history(folder))

    def work() -> None:
        if route.stage is not None:
            _stage(route.stage, folder, history)
        if route.does is not None:
            break_if_asked()
            route.does(folder)

    def trace() -> dict[str, object]:
        traced = syscalls_trace.run(work, folder.resolve(), kill_at=kill_at, timeout_s=TRIAL_S, counts=route.counts)
        return {"calls": traced.calls, "exit_code": traced.exit_code, "error": traced.error}

    return _in_child(trace, log)  # type: ignore[return-value]


def _make(route: Route, folder: Path) -> None:
    history = History()
    history.save(_history(folder))
    for stage in route.before:
        # Each in a process of its own, as each is a start of the product.
        error = _in_child(partial(_stage, stage, folder, history), folder.with_name("making"))
        assert error is None, error
        history = History.load(_history(folder))
        if stage.after is not None:
            stage.after(folder)


def _stage(stage: Stage, folder: Path, history: History) -> None:
    """Do the steps as a client, and wait for what the stage waits for."""

    def client(site: Site) -> None:
        site.do(stage.steps, history, kept=_history(folder))
        if stage.with_worker:
            site.wait_applied(history)
            site.wait("the stage", stage.until)

    on_site(settings_in(folder, stage.settings), client, with_worker=stage.with_worker)
    history.save(_history(folder))


def _history(folder: Path) -> Path:
    # Beside the folder: what the client keeps of its answers is no call of the product.
    return folder.with_name(f"{folder.name}.history")


def _verify(route: Route, folder: Path) -> None:
    """Start again, finish what the client was doing, and compare everything. Raises Broken, or anything else."""
    history = History.load(_history(folder))
    steps = route.stage.steps if route.stage is not None else ()
    needed = {mutation for mutation, _ in history.acknowledged}
    _check_copy(route, folder, history, needed)

    def client(site: Site) -> None:
        checker = Checker(site.api)
        site.do(steps, history, repeats=True)
        checker.all(_load(site, history))
        site.wait("what was begun", route.stage.until if route.stage is not None else lambda _: True)
        site.do(_LATER, history)
        checker.all(_load(site, history))
        until("nothing is left lying about", lambda: not _leftovers(folder / "data"))

    settings = route.stage.settings if route.stage is not None else CALM
    on_site(settings_in(folder, replace(settings, grace_ms=GRACE_MS)), client)
    _inspect(folder / "data")
    if route.does is not None:
        if route.name == "restore":
            shutil.rmtree(folder / route.copies, ignore_errors=True)
        route.does(folder)
        _check_copy(route, folder, history, needed)


def _load(site: Site, history: History) -> Load:
    return Load(site.line, acknowledged=[history.acknowledged], extra=history.extra - {"docs"})


def _inspect(data: Path, *, is_restored: bool = False) -> None:
    """Nothing is damaged; what is derived, a restored folder makes anew."""
    for index in DataFolder(data).indexes.iterdir():
        if index.name.startswith(DRAFT_PREFIX):  # Killed while it was made: it goes an hour later.
            continue
        found = inspect_index(DataFolder(data).index(IndexId(index.name)))
        findings = [one for one in found if not (is_restored and one.part is Part.DERIVED)]
        check(not findings, f"nothing is damaged: {findings[:2]}")


def _leftovers(data: Path) -> list[str]:
    """What an end in the middle left, and nobody names."""
    return [str(path.relative_to(data)) for path in data.rglob(".tmp-*")]


def _check_copy(route: Route, folder: Path, history: History, needed: set[str]) -> None:
    """A backup or a restored folder is whole, or, where there was none before, not there."""
    if not route.copies:
        return
    copy = folder / route.copies
    is_whole = copy.exists() if copy.suffix == ".tar" or route.name == "restore" else (copy / MANIFEST).exists()
    check(is_whole or not route.has_copy, "the backup from before is still there")
    if not is_whole:
        return
    again = folder / "again" / "data"
    again.parent.mkdir()
    try:
        if route.name == "restore":
            shutil.copytree(copy, again)
        else:
            restore(copy, again)
        needed = set() if route.has_copy else needed
        acknowledged = dict(history.acknowledged)
        on_site(settings_in(again.parent, CALM), lambda site: Checker(site.api).prefix(acknowledged, needed=needed))
        _inspect(again, is_restored=True)
    finally:
        shutil.rmtree(again.parent)


def _short(call: str) -> str:
    """A call without what is different each time."""
    return re.sub(r"[0-9a-f]{32}", "*", call)


def _in_child(work: Callable[[], object], log: Path) -> object:
    """Run something in a process of its own; what it returned, or as text what ended it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(work, log, write)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    if answer:
        return json.loads(answer)
    return f"ended with {os.waitstatus_to_exitcode(status)}: {log.read_text()[-700:]}"


def _be_child(work: Callable[[], object], log: Path, write: int) -> None:
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.setitimer(signal.ITIMER_REAL, TRIAL_S * 2)  # Its default is to end the process.
        answer = json.dumps(work())
        with os.fdopen(write, "w") as file:
            file.write(answer)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
