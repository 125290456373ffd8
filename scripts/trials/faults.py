"""I/O errors: system calls of a service or a worker under load are made to fail, by strace, at chosen or random points.

While they fail, an answer is right or is a refusal that says when to come back; with every sync failing, no write is
acknowledged. When they cease, everything goes on by itself, and nobody was restarted again and again. Then everything
is killed and started, and what is there is what a dictionary says: nothing acknowledged lost, nothing twice.

A block of trials shares a data folder. A block that was cut off is done again.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.trials.full_check import compare
from scripts.trials.full_load import PATIENCE_S, PAUSE_S, UP, Client, Load, fill_indexes, read_all
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from tests.contract.program import Program, running

SHORT = 6
FULL = 600
BLOCK = 10
PROMISE = "I/O errors: {call}"
SYNC = "fsync,fdatasync"
"""Which of the two SQLite calls depends on how it was built."""
READ = "pread64"
CALLS = {
    SYNC: ("EIO", "ENOSPC", "EDQUOT"),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT"),
    "write": ("EIO", "ENOSPC", "EDQUOT"),
    "ftruncate": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EDQUOT"),
    "openat": ("EIO", "ENOSPC", "EDQUOT", "EMFILE"),
    "mmap": ("ENOMEM",),
    READ: ("EIO",),
    "unlink": ("EIO",),
    "mkdir": ("EIO", "ENOSPC", "EDQUOT"),
}
DEATHS_MAX = 3
"""How often a process may die of one fault."""
KEEP = "HEADRACE_TRIALS_KEEP"
"""What the logs of the servers are kept as, for whoever looks for a cause: this, and the number of the block."""
ATTACH_S = 20.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails, where, and how often: `when` is strace's, counted in each thread."""

    process: str
    call: str
    error: str
    when: str

    @classmethod
    def at_random(cls, dice: random.Random) -> Fault:
        """Some fault."""
        call = dice.choice(list(CALLS))
        first = dice.randrange(1, 40)
        when = dice.choice([f"{first}", f"{first}", f"{first}+{dice.randrange(2, 30)}", "1+"])
        return cls(dice.choice(["service-1", "worker"]), call, dice.choice(CALLS[call]), when)

    def __str__(self) -> str:
        return f"{self.call} of {self.process} fails with {self.error} at {self.when}"


FIRST = (
    Fault("service-1", SYNC, "EIO", "1+"),
    Fault("service-1", "pwrite64", "EIO", "3"),
    Fault("worker", SYNC, "EIO", "1+"),
    Fault("worker", "openat", "EIO", "5+3"),
    Fault("service-1", SYNC, "ENOSPC", "2"),
    Fault("worker", "pwrite64", "EIO", "1+"),
)
"""What the short form tries; the long one goes on at random."""


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the blocks that were not done yet; a number stands for one fault of a seed."""
    if not can_attach():
        return [
            Trial(number=0, promise=PROMISE.format(call="any"), what="", verdict="not run", seconds=0, note=MISSING)
        ]
    done = Trials(results / f"faults-{seed}.jsonl", replay)
    for numbers in done.blocks(trials, BLOCK) if replay is None else [range(replay, replay + 1)]:
        for trial in _block(numbers, seed):
            done.note(trial)
    return done.result(range(trials))


MISSING = "strace that may attach to processes (root, or a kernel that lets it)"


def can_attach() -> bool:
    """Whether strace is here and may do what this takes."""
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as process:
        try:
            with injected(process.pid, Fault("any", "fsync", "EIO", "1+")):
                return True
        except Broken:
            return False
        finally:
            process.kill()


@contextmanager
def injected(pid: int, fault: Fault) -> Iterator[None]:
    """The fault happens in the process, and in those it starts, for the block. Raises Broken when it cannot."""
    inject = f"inject={fault.call}:error={fault.error}:when={fault.when}"
    command = ["strace", "-f", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={fault.call}", "-e", inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        os.set_blocking(strace.stderr.fileno(), False)
        said, deadline = b"", time.monotonic() + ATTACH_S
        while b"attached" not in said:
            said += strace.stderr.read() or b""
            if strace.poll() is not None or time.monotonic() > deadline:
                strace.kill()
                raise Broken(f"strace does not attach: {said.decode()}")
            time.sleep(0.01)
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            try:
                strace.wait(10)
            except subprocess.TimeoutExpired:
                strace.kill()


def _block(numbers: range, seed: int) -> Iterator[Trial]:
    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as scratch:
        folder = Path(scratch)
        try:
            with running(folder, environ=UP) as program:
                client, load = Client(program), Load(program, may_break=True)
                fill_indexes(client)
                for number in numbers:
                    trial = _trial(program, load, number, seed)
                    yield trial
                    if trial.is_violation:
                        return  # What comes after it would only say the same.
        finally:
            if keep := os.environ.get(KEEP):
                shutil.copyfile(folder / "log.jsonl", f"{keep}-{numbers[0]}.jsonl")


def _trial(program: Program, load: Load, number: int, seed: int) -> Trial:
    dice = random.Random(f"{seed} {number}")
    fault = FIRST[number] if number < len(FIRST) else Fault.at_random(dice)
    started, deaths, told = time.monotonic(), len(program.events("child.died")), len(program.complaints())
    verdict, note = "kept", ""
    try:
        with load.running(seed * 1_000_003 + number):
            time.sleep(0.2)
            load.may_be_unreadable = fault.call == READ
            with injected(program.child(fault.process), fault):
                _during(program, load, fault, dice)
            _after(program, load, dice)
            load.may_be_unreadable = False
        died = len(program.events("child.died")) - deaths
        check(died <= DEATHS_MAX, f"processes died {died} times")
        note = f"processes died {died} times" if died else ""
        program.end(signal.SIGKILL)
        program.start()
        compare(Client(program), load)
        read_all(Client(program), "started again")
        _check_events(program, fault, told)
    except (Broken, OSError, http.client.HTTPException, AssertionError) as error:
        verdict, note = "broken", f"{type(error).__name__}: {error}"[:600]
    return Trial(
        number=number,
        promise=PROMISE.format(call=fault.call),
        what=str(fault),
        verdict=verdict,
        seconds=round(time.monotonic() - started, 3),
        note=note,
    )


def _during(program: Program, load: Load, fault: Fault, dice: random.Random) -> None:
    """Ask and write while calls fail: an answer is right or a refusal, and no sync that failed is a success."""
    ends = time.monotonic() + dice.uniform(0.4, 1.2)
    client = Client(program, may_be_unreadable=fault.call == READ)
    while time.monotonic() < ends:
        try:
            read_all(client, "while calls fail", may_refuse=True)
        except (OSError, http.client.HTTPException):
            client = Client(program, may_be_unreadable=fault.call == READ)  # A process may die of it.
        number = load.number()
        write = load.upsert_some(dice, number)
        is_acknowledged = _write(load, client, write, f"write-{number}")
        if fault.process == "service-1" and fault.call == SYNC and fault.when == "1+":
            check(not is_acknowledged, "a write whose sync failed is not acknowledged")
        load.check_alive()


def _write(load: Load, client: Client, write, key: str) -> bool:  # type: ignore[no-untyped-def]
    """Try a write of ours; one that is refused is left to be repeated, for it may have come into the log."""
    is_acknowledged = load.once(client, -1, write, f"/docs/{write.action}", write.body(), key)
    if not is_acknowledged:
        load.unfinished.append((write, key))
    return is_acknowledged


def _after(program: Program, load: Load, dice: random.Random) -> None:
    """Everything goes on by itself: writes, applying and reads."""
    client, deadline = Client(program, may_be_unreadable=load.may_be_unreadable), time.monotonic() + 2 * PATIENCE_S
    number = load.number()
    load.unfinished.append((load.upsert_some(dice, number), f"write-{number}"))
    while load.unfinished:
        write, key = load.unfinished[0]
        if load.once(client, -1, write, f"/docs/{write.action}", write.body(), key):
            load.unfinished.pop(0)
            continue
        check(time.monotonic() < deadline, "writes resume when calls no longer fail")
        time.sleep(PAUSE_S)
    newest = load.acknowledged[-1][-1][0]
    while str(client.call("GET", "/docs/info?latest=true")["processedUpToMutation"]) < newest:  # type: ignore[index]
        check(time.monotonic() < deadline, "what was written is applied")
        time.sleep(PAUSE_S)
    while True:
        try:
            read_all(client, "after calls failed")
        except (OSError, http.client.HTTPException):
            check(time.monotonic() < deadline, "reads resume when calls no longer fail")
            time.sleep(PAUSE_S)
        else:
            return


def _check_events(program: Program, fault: Fault, told: int) -> None:
    expected = LOUD_EVENTS - {"index.halted"} if fault.call == READ else LOUD_EVENTS
    loud = [one for one in program.complaints()[told:] if one["event"] in expected and not _is_put_off(one)]
    check(not loud, f"nothing is called damaged, poison or unforeseen: {[_brief(one) for one in loud[:2]]}")


def _is_put_off(event: dict[str, object]) -> bool:
    """Whether a proof only did not come to its end: its builder inherits the fault, and may not even start."""
    return event["event"] == "segment.unproved" and "Damaged" not in str(event["reason"])


LOUD_EVENTS = {"index.halted", "mutation.set_aside", "request.failed", "index.failed", "segment.unproved"}


def _brief(event: dict[str, object]) -> dict[str, object]:
    return {name: str(value)[-400:] for name, value in event.items() if name not in ("timestamp", "level")}
