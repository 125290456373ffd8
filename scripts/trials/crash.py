"""Random kills of the service, of the worker, of builders and backups, or of all of them, under load.

Writers of every kind of mutation, metadata indexes, indexes that come and go, walks of the list and now and then a
backup go on all the time, while seals, merges and collecting do. After some kills the load rests, and everything is
compared with the model: nothing acknowledged is lost, nothing is there that nobody wrote, all of it once and in order.
Most folders have processes of their own, which start again at once; every tenth a whole `headrace up`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import orjson

from scripts.trials.crash_backups import Backups
from scripts.trials.crash_check import Checker
from scripts.trials.crash_load import Api, Line, Load, until
from scripts.trials.crash_processes import SETTINGS, WORKER, Crew
from scripts.trials.crash_writes import DIMENSIONS
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from scripts.trials.subject import fast_folder, launch
from storage.backends.sqlite.folder import DRAFT_PREFIX, DataFolder
from storage.backends.sqlite.inspection import inspect_index
from storage.records import IndexId
from storage.settings import Settings
from tests.contract.program import Program, is_alive, running

SHORT = 20
FULL = 3_000
KILLS = 20
"""Kills of one data folder; then another is made."""
CHECKED = 5
"""Everything is compared after so many."""
SUPERVISED = 10
"""One folder of so many is that of a `headrace up`."""
Kills = Callable[[Path, int, list[int]], Iterator[Trial]]
"""Kills of some numbers on a folder, with a seed."""
CREATE = {"name": "docs", "config": {"dimensions": DIMENSIONS, "metric": "euclidean"}}


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the kills that were not done yet. A replay does all of the same folder."""
    done = Trials(results / f"crash-{seed}.jsonl", replay)
    for numbers in done.blocks(trials, KILLS):
        is_supervised = numbers[0] // KILLS % SUPERVISED == SUPERVISED - 1
        kill_all(done, numbers, supervised_kills if is_supervised else _kills, seed, results / f"crash-{seed}")
    return done.result(range(trials))


def kill_all(done: Trials, numbers: range, kills: Kills, seed: int, kept: Path) -> None:
    """Do those of the kills that were not done yet; after a violation the rest on another folder. `kept` and the number
    name where the folder of a violation is kept."""
    left = done.missing(numbers)
    while left:
        with tempfile.TemporaryDirectory(prefix="headrace-crash-", dir=fast_folder()) as scratch:
            for trial in kills(Path(scratch), seed, left):
                left = left[1:]
                done.note(trial)
                if trial.is_violation:
                    # It is not at rest: files vanish while they are copied.
                    with suppress(OSError, shutil.Error):
                        shutil.copytree(scratch, f"{kept}-{trial.number}", dirs_exist_ok=True)


class _Verdicts:
    """Kills whose outcome is known when everything is compared next."""

    def __init__(self, promise: str) -> None:
        self._promise = promise
        self._waiting: dict[int, str] = {}
        self._started = time.monotonic()

    def begin(self, number: int, what: str = "before the kill") -> None:
        """A kill is about to be done; or it was, and this is what was killed."""
        self._waiting[number] = what

    def given(self, verdict: str, note: str) -> Iterator[Trial]:
        """A violation is that of the last kill before it was seen; which it was, nobody knows."""
        took = round((time.monotonic() - self._started) / max(1, len(self._waiting)), 3)
        for place, (number, what) in enumerate(self._waiting.items(), 1):
            outcome, told = (verdict, note) if place == len(self._waiting) else ("kept", "")
            yield Trial(number=number, promise=self._promise, what=what, verdict=outcome, seconds=took, note=told)
        self._waiting, self._started = {}, time.monotonic()


def _killing(
    load: Load,
    checker: Checker,
    verdicts: _Verdicts,
    seed: int,
    numbers: list[int],
    kill: Callable[[random.Random], str],
) -> Iterator[Trial]:
    """Kill under load, and compare now and then and in the end. Raises Broken.

    The verdict of the last kills is left to the caller, who looks at more: whatever breaks, a kill waits to be blamed.
    """
    with load.running(seed * 100_003 + numbers[0]):
        for number in numbers:
            verdicts.begin(number)
            load.resume()
            verdicts.begin(number, f"killed {kill(random.Random(seed * 1_000_003 + number))}")
            if (number + 1) % CHECKED == 0 and number != numbers[-1]:
                load.pause()
                checker.all(load)
                yield from verdicts.given("kept", f"{load.count} writes, {load.walks} walks")
        load.pause()
        checker.all(load)


def _kills(folder: Path, seed: int, numbers: list[int]) -> Iterator[Trial]:
    """Kills of a worker, two services and what they started, on one folder. After a violation there is no other."""
    verdicts = _Verdicts("killed at random")
    with Crew(folder / "data", folder / "log", services=2) as crew:
        api, backups = Api(crew.line), Backups(folder, folder / "log")
        load, checker = Load(crew.line), Checker(api)

        def kill_one(dice: random.Random) -> str:
            backups.go_on(load, dice)
            time.sleep(dice.uniform(0.0, 0.4))
            check(not crew.fallen(), f"nothing ends by itself: {crew.fallen()}")
            return _kill(crew, backups, dice)

        verdicts.begin(numbers[0])
        try:
            crew.start()
            api.call("POST", "", orjson.dumps(CREATE))
            yield from _killing(load, checker, verdicts, seed, numbers, kill_one)
            _at_the_end(folder, crew, load, checker, backups)
            yield from verdicts.given("kept", f"{load.count} writes, {load.walks} walks, {backups.done} backups")
        except Broken as error:
            yield from verdicts.given("broken promise", str(error)[:2000])
        finally:
            backups.close()


def _kill(crew: Crew, backups: Backups, dice: random.Random) -> str:
    """Kill something and start it again; says what it was."""
    victim = dice.choice([WORKER, WORKER, "service-1", "service-2", "everything", "everything", "builder", "backup"])
    match victim:
        case "builder":
            _send_kill(*crew.children(WORKER))
        case "backup":
            backups.kill()
        case "everything":
            crew.kill(*crew.names)
            time.sleep(dice.uniform(0.0, 0.05))
            crew.start(*dice.sample(crew.names, len(crew.names)))
        case _:
            crew.kill(victim)
            time.sleep(dice.uniform(0.0, 0.1))
            crew.start(victim)
    return victim


def _at_the_end(folder: Path, crew: Crew, load: Load, checker: Checker, backups: Backups) -> None:
    """A clean stop changes nothing, all of it is whole, and so is what was backed up on the way."""
    crew.line.is_over = False
    crew.stop()
    _inspect(folder / "data")
    crew.start()
    checker.all(load)
    crew.stop()
    backups.check(load)


def _inspect(data: Path) -> None:
    for path in DataFolder(data).indexes.iterdir():
        if not path.name.startswith(DRAFT_PREFIX):  # Killed while it was made: it goes an hour later.
            findings = inspect_index(DataFolder(data).index(IndexId(path.name)))
            check(not findings, f"nothing is damaged: {findings[:2]}")


def _environ_of(settings: Settings) -> dict[str, str]:
    """The variables that make those settings, where they are not the defaults."""
    usual = Settings()
    names = [one.name for one in fields(Settings) if one.name not in ("data", "limits", "log_format", "log_level")]
    return {
        f"HEADRACE_{name.upper()}": str(getattr(settings, name))
        for name in names
        if getattr(settings, name) != getattr(usual, name)
    }


def supervised_kills(folder: Path, seed: int, numbers: list[int]) -> Iterator[Trial]:
    """Kills of the children of a `headrace up`, or of itself. After a violation there is no other."""
    verdicts = _Verdicts("killed at random, supervised")
    with running(folder, "--processes", "2", environ=_environ_of(SETTINGS), launch=launch("service")) as program:
        line = Line(program.port)
        load, checker = Load(line), Checker(Api(line))

        def kill_one(dice: random.Random) -> str:
            time.sleep(dice.uniform(0.0, 1.0))
            goal = load.count + dice.randrange(1, 30)
            until("writes go on after a kill", lambda: load.count >= goal or bool(load.failed))
            return _kill_below(program, dice)

        verdicts.begin(numbers[0])
        try:
            Api(line).call("POST", "", orjson.dumps(CREATE))
            yield from _killing(load, checker, verdicts, seed, numbers, kill_one)
            _after_supervised(program, line, load, checker)
            _inspect(folder / "data")
            yield from verdicts.given("kept", f"{load.count} writes, {load.walks} walks")
        except Broken as error:
            yield from verdicts.given("broken promise", str(error)[:2000])


def _kill_below(program: Program, dice: random.Random) -> str:
    """Kill something without a warning, and bring the whole back; says what it was."""
    victim = dice.choice(["worker", "worker", "service-1", "service-2", "children", "supervisor"])
    some = [program.child(name) for name in ("worker", "service-1", "service-2")]
    # One may have died in an earlier kill, with no successor that is ready yet: its number may be anybody's now.
    children = [pid for pid in some if program.has_child(pid)]
    match victim:
        case "supervisor":
            # One that is being started has the port as well, and no number in the log yet.
            orphans = program.children()
            program.end(signal.SIGKILL)
            until("children end with their supervisor", lambda: not any(is_alive(pid) for pid in orphans))
            program.start()
        case "children":
            _send_kill(*children)
        case _:
            _send_kill(*{program.child(victim)}.intersection(children))
    return victim


def _send_kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _after_supervised(program: Program, line: Line, load: Load, checker: Checker) -> None:
    line.is_over = False
    until("something is built", lambda: bool(program.events("build.published")))
    check(program.stop() == 0, "the server stops cleanly after all that")
    halted = [*program.events("index.halted"), *program.events("mutation.failed"), *program.events("index.failed")]
    check(not halted, f"nothing is damaged: {halted[:2]}")
    program.start()
    checker.all(load)
    check(program.stop() == 0, "the server stops cleanly again")
