"""Random kills under load of the children of a whole `headrace up`, of all of them, or of itself.

Every tenth folder of `crash` is killed like this as well; here are no others, so that a short run has some.
"""

from __future__ import annotations

from pathlib import Path

from scripts.trials.crash import KILLS, kill_all, supervised_kills
from scripts.trials.report import Trial, Trials

SHORT = 8
FULL = 300


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the kills that were not done yet. A replay does all of the same folder."""
    done = Trials(results / f"supervised-{seed}.jsonl", replay)
    for numbers in done.blocks(trials, KILLS):
        kill_all(done, numbers, supervised_kills, seed, results / f"supervised-{seed}")
    return done.result(range(trials))
