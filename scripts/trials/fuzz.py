"""No bytes make a parser fail in a way it does not foresee, or take another reading of itself.

A trial is one parser of foreign bytes (`fuzz_targets`) under atheris, which mutates inputs towards code that was not
reached before, for `trials` seconds. What it kept is under the results, and the next run goes on from there. An input
that breaks something is left beside it, and belongs into `tests/service/test_fuzzed.py` when it is mended.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmark.environments import NotInstalled, environment
from scripts.trials.fuzz_seeds import seeds
from scripts.trials.fuzz_targets import TARGETS
from scripts.trials.report import Trial
from scripts.trials.subject import fast_folder

SHORT = 2
FULL = 3_600
PROMISE = "no bytes break a parser"
REQUIREMENTS = ("atheris==3.0.0",)
INPUT_BYTES_MAX = 4096
MEMORY_MB, ONE_INPUT_S, START_S = 1_500, 10, 300
ROOT = Path(__file__).resolve().parents[2]
EXECUTED = re.compile(r"number_of_executed_units: (\d+)")


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Feed every parser for so many seconds, or one again what broke it."""
    names = list(TARGETS)
    if replay is not None:
        return [_replayed(replay, names[replay], _folder(results, names[replay]))]
    try:
        python = environment("atheris", REQUIREMENTS)
    except NotInstalled as error:
        note = f"needs atheris, and a wheel of it for this Python ({error})"
        return [Trial(number=0, promise=PROMISE, what="", verdict="not run", seconds=0.0, note=note)]
    # What is fuzzed has its packages in our own environment.
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    return [
        _fuzzed(number, name, packages, _folder(results, name), seconds=trials, seed=seed)
        for number, name in enumerate(names)
    ]


def _folder(results: Path, name: str) -> Path:
    return results.absolute() / "fuzz" / name


def _fuzzed(number: int, name: str, packages: Path, folder: Path, *, seconds: int, seed: int) -> Trial:
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for place, content in enumerate(seeds(name)):
        (corpus / f"seed-{place}").write_bytes(content)
    command = [sys.executable, "-P", "-m", "scripts.trials.fuzz_one", name, str(corpus)]
    command += [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    command += [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={ONE_INPUT_S}", f"-max_len={INPUT_BYTES_MAX}"]
    began = time.monotonic()
    # What breaks a parser ends the process at once, and leaves behind what it made.
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-", dir=fast_folder()) as scratch:
        environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", "TMPDIR": scratch}
        ran = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=seconds + START_S, check=False
        )
    said = ran.stdout + ran.stderr
    executed = EXECUTED.search(said)
    broken = ran.returncode != 0 or executed is None
    return Trial(
        number=number,
        promise=PROMISE,
        what=f"{name}: {executed[1] if executed else 'no'} inputs, {len(list(corpus.iterdir()))} kept",
        verdict="broken" if broken else "kept",
        seconds=time.monotonic() - began,
        note=said[-3_000:] if broken else "",
    )


def _replayed(number: int, name: str, folder: Path) -> Trial:
    began, found = time.monotonic(), ""
    for path in sorted(one for one in folder.glob("*-*") if one.is_file()):
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            found += f"{path}: {type(error).__name__}: {error}\n"
            print(f"{path}: {path.read_bytes()!r:.2000}")
    return Trial(
        number=number,
        promise=PROMISE,
        what=name,
        verdict="broken" if found else "kept",
        seconds=time.monotonic() - began,
        note=found,
    )
