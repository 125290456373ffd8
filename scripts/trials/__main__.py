"""`python -m scripts.trials PART ...`: run parts and print what they came to. Non-zero when a promise was broken."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from scripts.trials.report import Trial, table

PARTS = {
    "rot": "bits flipped, pages zeroed, files cut off, swapped or lost; stopped and running",
    "fresh": "write, ask /info on one process, read on another, under churn",
    "full": "a full disk, again and again, under load",
    "faults": "system calls of the service and the worker fail, one, some or all, under load",
    "memory": "a worker with too little memory, killed for it or refused it",
    "power": "power cuts on ext4 and XFS under load",
    "workers": "three workers, stopped for longer than a lease, let go again and killed, under load",
    "soak": "mixed load, a worker killed every minute: what grows, what is lost",
    "walks": "walks over a listing under churn and restarts: exact, or clearly expired",
    "sabotage": "builds that are broken on purpose, each against what must catch it",
    "contract": "requests made from the OpenAPI document: what it allows, what it forbids, what answers look like",
    "fuzz": "every parser of foreign bytes under atheris; a trial is a second of each",
    "syscalls": "killed at every system call that changes a file, on every path",
    "clocks": "clocks that jump ten years either way, running and between starts",
    "crash": "killed at random under load: service, worker, builders, backups, or all of them",
    "supervised": "killed at random under load: the children of a whole `headrace up`, or itself",
    "model": "random walks of writes, questions, seals, merges and restarts beside a dictionary",
}
"""Each is a module here with `SHORT` and `FULL`, numbers of trials, and `run(trials, seed, folder, replay)`."""


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; every part without one")
    parser.add_argument("--short", action="store_true", help="few trials (default)")
    parser.add_argument("--full", action="store_true", help="as many trials as acceptance takes")
    parser.add_argument("--trials", type=int, help="so many trials of each part")
    parser.add_argument("--seed", type=int, default=1, help="what is tried (default 1)")
    parser.add_argument("--results", type=Path, default=Path(".cache/torture"), help="where results are kept")
    parser.add_argument("--replay", type=int, help="one trial again, by its number")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}")
    signal.signal(signal.SIGTERM, _end)
    done: list[Trial] = []
    # Sockets and metrics of processes that are killed stay where they were: in a folder that goes at the end. Its name
    # is short, because those of sockets are.
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        for name in options.parts or PARTS:
            part = importlib.import_module(f"scripts.trials.{name}")
            trials = options.trials or (part.FULL if options.full else part.SHORT)
            done += part.run(trials, options.seed, options.results, options.replay)
    print(table(done))
    broken = [trial for trial in done if trial.is_violation]
    for trial in broken:
        print(f"VIOLATION {trial}")
    return 1 if broken else 0


def _end(number: int, _: object) -> None:
    """Ended from outside, by `timeout` say, trials clean up as well: no process, folder or mount is left behind."""
    signal.signal(number, signal.SIG_IGN)  # A second one must not keep the first from its work.
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
