"""SIGKILL at every system call that changes a file, of ingest, apply, seal, merge, collect, migration, backup, restore.

Each path is run once to count its calls; then once for each of them, on a fresh copy of the folder, killed right before
that call, when everything else has gone on for a moment. The next start must find everything that was acknowledged,
apply what was not, and be as the model is after the client has repeated what it got no answer to. A backup is whole or
not there; one that was there before stays.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from scripts.trials import syscalls_trace
from scripts.trials.crash_check import Checker
from scripts.trials.crash_load import Load, until
from scripts.trials.crash_writes import Write
from scripts.trials.forked import answered
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from scripts.trials.subject import fast_folder
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
    done = Trials(results / f"syscalls-{seed}.jsonl", replay)
    numbers: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="headrace-syscalls-", dir=fast_folder()) as scratch:
        templates = _Templates(Path(scratch))
        for place, route in enumerate(ROUTES):
            if replay is not None and replay // NUMBERS != place:
                continue
            numbers.update(_route(place, route, templates, trials, done, verbose=replay is not None))
    return done.result(numbers)


class _Templates:
    """Folders as the stages before a path leave them. Those that begin alike are made once."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._made: dict[tuple[Stage, ...], Path] = {}

    def of(self, stages: tuple[Stage, ...]) -> Path:
        """The folder after these. Raises Broken."""
        if stages not in self._made:
            folder = self.scratch / f"template-{len(self._made)}"
            if stages:
                before = self.of(stages[:-1])
                folder = self.scratch / f"template-{len(self._made)}"
                _copy(before, folder)
                # In a process of its own, as each is a start of the product.
                error = _in_child(partial(_prepare, stages[-1], folder), self.scratch / "log")
                check(error is None, f"the folder can be made: {error}")
            else:
                folder.mkdir()
                History().save(_history(folder))
            self._made[stages] = folder
        return self._made[stages]


def _prepare(stage: Stage, folder: Path) -> None:
    _stage(stage, folder, History.load(_history(folder)))
    if stage.after is not None:
        stage.after(folder)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    shutil.copy(_history(source), _history(target))


def _trial(number: int, route: str, what: str, verdict: str, seconds: float, note: str) -> Trial:
    promise = f"killed at a system call of {route}"
    return Trial(number=number, promise=promise, what=what, verdict=verdict, seconds=round(seconds, 3), note=note)


def _route(place: int, route: Route, templates: _Templates, trials: int, done: Trials, *, verbose: bool) -> list[int]:
    """Try one path, at one call at least. The numbers of its trials, with those that were done before."""
    log = templates.scratch / "log"
    try:
        template = templates.of(route.before)
        calls = _attempt(route, template, templates.scratch / f"counting-{place}", kill_at=0, log=log)
    except Broken as error:
        number = place * NUMBERS
        done.note(_trial(number, route.name, "counting the calls", "broken promise", 0.0, str(error)[-1500:]))
        return [number]
    share = max(1, trials // len(ROUTES))
    chosen = sorted({1 + int((number + 0.5) * len(calls) / share) for number in range(share)})
    wanted = range(1, len(calls) + 1) if share >= len(calls) else chosen
    numbers = [place * NUMBERS + call for call in wanted]
    for number in done.wanted(numbers):
        call, started = number % NUMBERS, time.monotonic()
        folder = templates.scratch / "trial"
        what, verdict, note = f"call {call} of {len(calls)}", "kept", ""
        try:
            seen = _attempt(route, template, folder, kill_at=call, log=log)
            what += f": {re.sub('[0-9a-f]{32}', '*', (seen or ['none'])[-1])}"
            error = _in_child(partial(_verify, route, folder), log)
            check(error is None, str(error))
        except Broken as error:
            verdict, note = "broken promise", str(error)[-2000:]
        if verbose:
            print(log.read_text())
        done.note(_trial(number, route.name, what, verdict, time.monotonic() - started, note))
        shutil.rmtree(folder, ignore_errors=True)
    return numbers


def _attempt(route: Route, template: Path, folder: Path, *, kill_at: int, log: Path) -> list[str]:
    """Run the path on a copy of the folder, killed at one call; the calls that were seen. Raises Broken."""
    _copy(template, folder)
    history = History.load(_history(folder))

    def work() -> None:
        if route.stage is not None:
            _stage(route.stage, folder, history)
        if route.does is not None:
            break_if_asked()
            route.does(folder)

    def trace() -> dict[str, object]:
        traced = syscalls_trace.run(work, folder.resolve(), kill_at=kill_at, timeout_s=TRIAL_S, counts=route.counts)
        return asdict(traced)

    traced = _in_child(trace, log)
    if not isinstance(traced, dict):
        raise Broken(f"the trial itself failed: {traced}")
    check(not traced["error"], str(traced["error"]))
    # Where it takes a call less than when they were counted, it comes to its end.
    as_meant = traced["exit_code"] == 0 or (kill_at and traced["exit_code"] == -signal.SIGKILL)
    check(bool(as_meant), f"it ended with {traced['exit_code']}: {log.read_text()[-700:]}")
    calls: list[str] = traced["calls"]
    return calls


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


def _in_child(work: Callable[[], object], log: Path) -> object:
    """Run something in a process of its own; what it returned, or as text what ended it."""
    ended = answered(work, log, 2 * TRIAL_S)
    return ended.answer if ended.code == 0 else f"ended with {ended.code}: {log.read_text()[-700:]}"
