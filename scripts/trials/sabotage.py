"""Builds that are broken on purpose: each must be caught by what keeps the promise it breaks.

A trial runs one test, or another part of these trials, against one broken build. It is "detected" when that fails, and
a violation when it passes: then the test, or the trial, is worth nothing. The product has no switch for any of it: a
module here changes it from outside, in every process (`preloaded`). Trials without a broken build show that nothing
else makes them fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.trials.report import Trial, Trials
from scripts.trials.subject import PRELOAD

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
LATE = -1
"""Stands for the exit code of what was ended because it took too long."""
FIRST_TRIALS = 4
"""Of a part, so many first; then twice as many, until one notices."""
NOTHING = "report"
"""A module that breaks nothing."""

BUILDS = {
    NOTHING: "nothing is broken",
    "sabotage_unsynced_files": "no fsync of files of segments",
    "sabotage_unsynced_commits": "synchronous=NORMAL",
    "sabotage_repeated_names": "segments named after their content, two workers",
    "sabotage_early_answers": "answers before the commit",
    "sabotage_separate_progress": "progress in another transaction than the rows",
    "sabotage_unchecked_chain": "the log applied without checking its chain",
    "sabotage_unchecked_files": "segments mapped without comparing their checksums",
}
"""Modules here, and what is broken in them."""


@dataclass(frozen=True, slots=True)
class Catcher:
    """What must notice: a test, as pytest names it, or so many trials of a part."""

    build: str
    test: str = ""
    part: str = ""
    trials: int = 0

    @property
    def name(self) -> str:
        """As it is told."""
        return self.test.rpartition("::")[2] or f"`scripts/torture {self.part}`, {self.trials} trials at most"


_TESTS = {
    "sabotage_unsynced_files": (
        "tests/storage/test_durability.py::test_every_file_of_a_segment_is_on_disk_before_the_segment_has_its_name",
        "tests/storage/test_files.py::test_a_file_and_its_name_are_on_disk_before_the_writer_returns",
    ),
    "sabotage_unsynced_commits": ("tests/storage/test_durability.py::test_every_commit_waits_for_the_disk",),
    "sabotage_repeated_names": (
        "tests/worker/test_fencing.py::test_two_workers_that_build_the_same_rows_do_not_touch_each_others_files",
    ),
    "sabotage_early_answers": ("tests/storage/test_durability.py::test_a_write_is_answered_only_when_it_is_committed",),
    "sabotage_separate_progress": ("tests/worker/test_fencing.py::test_every_commit_of_a_worker_leaves_a_whole_state",),
    "sabotage_unchecked_chain": ("tests/worker/test_apply.py::test_a_log_that_was_changed_is_not_applied",),
    "sabotage_unchecked_files": (
        "tests/storage/test_segment.py::test_a_flipped_bit_in_a_primary_file_is_refused_and_names_ids",
    ),
}
_PARTS = (
    Catcher("sabotage_unsynced_commits", part="power", trials=40),
    Catcher("sabotage_separate_progress", part="crash", trials=64),
    Catcher("sabotage_early_answers", part="power", trials=160),
    Catcher("sabotage_unsynced_files", part="power", trials=320),
    Catcher("sabotage_unchecked_files", part="rot", trials=64),
)


def catchers() -> list[Catcher]:
    """All of them; those that take minutes come last."""
    tests = [Catcher(build, test=test) for build, some in _TESTS.items() for test in some]
    sound = [Catcher(NOTHING, test=one.test) for one in tests]
    return [*tests, *sound, *_PARTS]


SHORT = 2 * sum(map(len, _TESTS.values()))
FULL = SHORT + len(_PARTS)


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Try every build against what must catch it; a number stands for one of `catchers()`."""
    done = Trials(results / f"sabotage-{seed}.jsonl", replay)
    every = catchers()
    for number in done.wanted(range(min(trials, len(every)))):
        catcher, started = every[number], time.monotonic()
        verdict, note = _tried(catcher, seed, verbose=replay is not None)
        done.note(
            Trial(
                number=number,
                promise=f"sabotage: {BUILDS[catcher.build]}",
                what=catcher.name,
                verdict=verdict,
                note=note,
                seconds=round(time.monotonic() - started, 3),
            )
        )
    return done.result(range(trials))


def _tried(catcher: Catcher, seed: int, *, verbose: bool) -> tuple[str, str]:
    """The verdict, and a note."""
    with tempfile.TemporaryDirectory(prefix="headrace-sabotage-") as scratch:
        if catcher.test:
            command = [
                "scripts.trials.sabotage_tests",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "--basetemp",
                f"{scratch}/pytest",
                catcher.test,
            ]
            code, said = _run(catcher.build, command, verbose=verbose)
            failed = code == 1 and " failed" in said
            return _judged(catcher, failed=failed, passed=code == 0, said=said)
        count = min(FIRST_TRIALS, catcher.trials)
        while True:
            # What was tried is in the results, so every round goes on where the one before ended.
            command = [
                "scripts.trials",
                catcher.part,
                "--trials",
                str(count),
                "--seed",
                str(seed),
                "--results",
                scratch,
            ]
            code, said = _run(catcher.build, command, verbose=verbose)
            if code == 0 and "not run: " in said:
                return "not run", said.partition("not run: ")[2].partition(" |")[0]
            failed = code == 1 and "VIOLATION" in said
            if failed or code != 0 or count >= catcher.trials:
                verdict, note = _judged(catcher, failed=failed, passed=code == 0, said=said)
                return verdict, f"within {count} trials; {note}" if failed else note
            count = min(2 * count, catcher.trials)


def _judged(catcher: Catcher, *, failed: bool, passed: bool, said: str) -> tuple[str, str]:
    last = said.strip().rpartition("\n")[2][-400:]
    if catcher.build == NOTHING:
        return ("kept", "") if passed else ("broken without sabotage", last)
    if failed:
        return "detected", f"{catcher.name}: {last}"
    return ("not caught", catcher.name) if passed else ("error", last)


def _run(build: str, command: list[str], *, verbose: bool) -> tuple[int, str]:
    """Run a module of Python with the broken build in front of it."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "scripts.trials.preloaded", build, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), PRELOAD: build},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE_S)
            code = process.returncode
        except subprocess.TimeoutExpired:
            code, said = LATE, f"it did not end within {PATIENCE_S:g} s"
        finally:
            # Not killed: it has processes, folders and mounts to clean up.
            process.terminate()
    if verbose:
        print(said)
    return code, said
