"""What trials come to: one row for each promise, kept in a file so that a run can go on where it was stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
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

    def __str__(self) -> str:
        return f"{self.promise}, trial {self.number}: {self.verdict}: {self.what}: {self.note}"


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


class Trials:
    """Those of one part: what earlier runs did, and what this one does. A replay starts with none and keeps none."""

    def __init__(self, path: Path, replay: int | None) -> None:
        self._journal = Journal(path)
        self._replay = replay
        self._done = {} if replay is not None else self._journal.done()

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that were not done yet."""
        return [number for number in numbers if number not in self._done]

    def wanted(self, numbers: Iterable[int]) -> list[int]:
        """What is to be done now: those that were not done yet, or the one that is replayed."""
        return self.missing(numbers) if self._replay is None else [self._replay]

    def blocks(self, trials: int, size: int) -> Iterator[range]:
        """The same where `size` trials follow on each other: blocks with any that is missing, whole.

        A replay takes what came before it in its block, and is the last.
        """
        numbers = range(trials) if self._replay is None else range(self._replay + 1)
        begin = 0 if self._replay is None else self._replay - self._replay % size
        for first in range(begin, len(numbers), size):
            if self.missing(block := numbers[first : first + size]):
                yield block

    def note(self, trial: Trial) -> None:
        """Remember one, and tell of a violation at once, or of whatever is replayed.

        What could not be run is not kept: the next run may be where it can.
        """
        self._done[trial.number] = trial
        if self._replay is None and trial.verdict != "not run":
            self._journal.add(trial)
        if trial.is_violation or self._replay is not None:
            sys.stderr.write(f"{trial}\n")

    def result(self, numbers: Container[int]) -> list[Trial]:
        """What those came to that were done, by number; all that a replay did."""
        return [trial for number, trial in sorted(self._done.items()) if number in numbers or self._replay is not None]


def ended_by(error: Exception, numbers: Sequence[int], done: list[Trial], *, promise: str, seconds: float) -> Trial:
    """The trial that is blamed for what ended a session of these numbers, `seconds` long in all.

    It is the one that was under way; where all were done, the last of them, which is taken out of `done`.
    """
    what = done.pop().what if len(done) == len(numbers) else "see the note"
    return Trial(
        number=numbers[len(done)],
        promise=promise,
        what=what,
        verdict=type(error).__name__.lower(),
        seconds=round(seconds - sum(trial.seconds for trial in done), 3),
        note=f"{error} (after {'; '.join(trial.what for trial in done)})",
    )


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
