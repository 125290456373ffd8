"""Every answer is that of a dictionary: the state machine of `tests/storage/test_model.py`, at acceptance size.

A trial is one walk of STEPS random steps: mutations, queries, listings, seals, merges, restarts, on one folder with two
stores and a worker. Walks are made in processes of WALKS each; one that breaks is made smaller and told with its steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from scripts.trials.report import Trial, Trials

SHORT = 4
FULL = 2_000
STEPS, STEPS_SHORT = 100, 30
WALKS = 20
PROMISE = "every answer is that of a dictionary"
ROOT = Path(__file__).resolve().parents[2]
PROCESS_S = 3_600


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Make the walks that were not made yet; `replay` makes the walks again that one number was made with."""
    steps = STEPS if trials >= WALKS else STEPS_SHORT
    done = Trials(results / f"model-{steps}-{seed}.jsonl", replay)
    for first in range(0, trials, WALKS) if replay is None else (replay // WALKS * WALKS,):
        count = min(WALKS, trials - first)
        if done.missing(range(first, first + count)):
            for trial in _walks(first, count, steps, f"{seed}-{first}"):
                done.note(trial)
    return done.result(range(trials))


def _walks(first: int, count: int, steps: int, seed: str) -> list[Trial]:
    command = [sys.executable, "-P", "-m", "scripts.trials.model_walks", str(count), str(steps), seed]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PROCESS_S, check=False)
    took = (time.monotonic() - began) / count
    what = f"{count} walks of {steps} steps, seed {seed}"
    if ran.returncode:
        note = (ran.stdout + ran.stderr)[-6_000:]
        return [Trial(number=first, promise=PROMISE, what=what, verdict="broken", seconds=took * count, note=note)]
    return [
        Trial(number=first + place, promise=PROMISE, what=what, verdict="kept", seconds=took) for place in range(count)
    ]
