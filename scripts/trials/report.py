"""What trials come to: one row for each promise, kept in a file so that a run can go on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

VERDICTS = ("kept", "detected", "scrubbed", "crashed once", "harmless", "not run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial. `verdict` is "kept" (what was done to it broke nothing), "detected" (damage was noticed and said),
    "scrubbed" (noticed by the scrub, not before), "crashed once" (one process below an open mapping, and never
    again), "harmless" (damage that nothing reads), "not run" (`note` says what it needs), or a violation's name."""

    number: int
    promise: str
    what: str
    verdict: str
    seconds: float
    note: str = ""

    @property
    def is_violation(self) -> bool:
        """Whether a promise was broken."""
        return self.verdict not in VERDICTS


@dataclass(frozen=True, slots=True)
class Journal:
    """Trials that were done, a line each."""

    path: Path

    def done(self) -> dict[int, Trial]:
        """By number. A line that a crash cut off is as if it never was."""
        found = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    trial = Trial(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                found[trial.number] = trial
        return found

    def add(self, trial: Trial) -> None:
        """Remember one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")


def table(trials: Iterable[Trial]) -> str:
    """Promise, trials, violations, and what the others came to."""
    by_promise: dict[str, list[Trial]] = {}
    for trial in trials:
        by_promise.setdefault(trial.promise, []).append(trial)
    lines = ["| promise | trials | violations | kept | detected | by the scrub | crashed once | harmless | duration |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for promise, some in sorted(by_promise.items()):
        count = {name: sum(one.verdict == name for one in some) for name in VERDICTS}
        broken = sum(one.is_violation for one in some)
        seconds = sum(one.seconds for one in some)
        if tried := len(some) - count["not run"]:
            lines.append(
                f"| {promise} | {tried} | {broken} | {count['kept']} | {count['detected']} | {count['scrubbed']} | "
                f"{count['crashed once']} | {count['harmless']} | {seconds:.0f} s |"
            )
        missing = sorted({one.note for one in some if one.verdict == "not run"})
        lines += [f"| {promise} | not run: {needs} | | | | | | | |" for needs in missing]
    return "\n".join(lines)
