"""Power cuts, on ext4 and XFS: what was acknowledged before the cut is there after it, and everything fits the model.

A data folder lies on a file system of its own on a loop device. A service process and a worker are under load when the
file system is shut down without its journal being written; then they are killed, the file system is mounted again, and
the next ones start on what is left. An answer that arrives after the cut counts for nothing: the write is repeated.
Backups onto the same file system are made on the way; one that had ended before a cut is whole after it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from scripts.trials.crash_backups import Backups
from scripts.trials.crash_check import Checker
from scripts.trials.crash_load import Api, Load
from scripts.trials.crash_processes import Crew
from scripts.trials.crash_writes import DIMENSIONS
from scripts.trials.power_disk import Disk, missing
from scripts.trials.promises import Broken
from scripts.trials.report import Trial, Trials
from scripts.trials.subject import fast_folder

SHORT = 10
FULL = 750
"""500 on ext4 and 250 on XFS."""
KINDS = ("ext4", "xfs", "ext4")
CUTS = 5
"""Cuts of one file system; then another is made."""
LOAD_S = (0.02, 0.7)


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the cuts that were not done yet. A replay does those of the same file system before it as well."""
    done = Trials(results / f"power-{seed}.jsonl", replay)
    with tempfile.TemporaryDirectory(prefix="headrace-power-", dir=fast_folder()) as scratch:
        needs = {kind: missing(kind, _new(Path(scratch), f"try-{kind}")) for kind in sorted(set(KINDS))}
        for numbers in done.blocks(trials, CUTS):
            block = numbers[0] // CUTS
            kind = KINDS[block % len(KINDS)]
            left = done.missing(numbers)
            if needs[kind]:
                for number in left:
                    done.note(_trial(number, kind, "", "not run", 0.0, needs[kind]))
                continue
            for trial in _block(_new(Path(scratch), f"block-{block}"), kind, seed, left, results):
                done.note(trial)
    return done.result(range(trials))


def _new(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def _trial(number: int, kind: str, what: str, verdict: str, seconds: float, note: str) -> Trial:
    return Trial(
        number=number,
        promise=f"power cut on {kind}",
        what=what,
        verdict=verdict,
        seconds=round(seconds, 3),
        note=note,
    )


def _block(folder: Path, kind: str, seed: int, numbers: list[int], results: Path) -> Iterator[Trial]:
    """Cuts of one file system after the other; after a violation the rest is done on a new one."""
    while numbers:
        disk = Disk(folder, kind)
        broken = False
        try:
            with Crew(disk.path / "data", folder / "log") as crew:
                for trial in _cuts(disk, crew, folder / "log", seed, numbers):
                    numbers = numbers[1:]
                    broken = trial.is_violation
                    if broken:
                        _keep(disk, folder, results / f"power-{seed}-{trial.number}")
                    yield trial
                    if broken:
                        break
        finally:
            disk.close()
            shutil.rmtree(disk.path, ignore_errors=True)
        if not broken:
            break
    shutil.rmtree(folder, ignore_errors=True)


def _cuts(disk: Disk, crew: Crew, log: Path, seed: int, numbers: list[int]) -> Iterator[Trial]:
    load = Load(crew.line)
    api = Api(crew.line)
    checker, backups = Checker(api), Backups(disk.path, log)
    crew.start()
    create = {"name": "docs", "config": {"dimensions": DIMENSIONS, "metric": "euclidean"}}
    api.call("POST", "", orjson.dumps(create))
    with load.running(seed * 100_003 + numbers[0]):
        for number in numbers:
            dice = random.Random(seed * 1_000_003 + number)
            started = time.monotonic()
            before = load.count
            try:
                load.resume()
                backups.go_on(load, dice)
                time.sleep(dice.uniform(*LOAD_S))
                backups.look()
                crew.line.is_cut = True
                disk.cut()
                counted = load.count - before
                crew.kill(*crew.names)
                backups.kill()
                disk.unmount()
                disk.mount()
                crew.line.is_cut = False
                crew.start()
                load.pause()
                checker.all(load)
                backups.check(load)
                verdict = "kept"
                note = f"{load.count - before} writes, {load.walks} walks, {backups.done} backups"
            except Broken as error:
                counted = load.count - before
                verdict, note = "broken promise", str(error)[:2000]
            what = f"cut after {counted} acknowledged writes"
            yield _trial(number, disk.kind, what, verdict, time.monotonic() - started, note)


def _keep(disk: Disk, folder: Path, target: Path) -> None:
    """Keep what shows a violation, for whoever looks into it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with contextlib.suppress(OSError, shutil.Error):  # A disk that was cut may not be readable.
        shutil.copy(folder / "log", target / "log")
        shutil.copytree(disk.path / "data", target / "data")
