"""Full disks: `headrace up` on a small file system that something else fills at random moments, and gives back.

While it is full, every read is answered and right, deletes are acknowledged, and other writes are refused with a time
to come back. When space returns everything goes on with no restart; nothing acknowledged is lost, nothing comes twice,
and what is there is what a dictionary says. A process that starts on the full disk answers reads as well.

A block of cycles shares a start of the server, and a cycle is a trial. A block that was cut off is done again.
"""

from __future__ import annotations

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
from pathlib import Path

from scripts.trials.full_check import compare
from scripts.trials.full_load import PATIENCE_S, PAUSE_S, UP, Client, Load, fill_indexes, read_all
from scripts.trials.promises import Broken, check
from scripts.trials.report import Trial, Trials
from scripts.trials.writes import Write
from storage.reserve import FILE as RESERVE
from tests.contract.program import Program, running

SHORT = 6
FULL = 1_000
BLOCK = 25
"""Cycles of one start of the server."""
DISK_BYTES = 320 * 1024 * 1024
RESERVE_BYTES = 8 * 1024 * 1024
"""Enough for half a second of deletes as fast as they come: deletes go on for as long as some of it is left."""
PROMISE = "a full disk: reads and deletes go on, writes resume by themselves"
START = 1_000_000
"""What is added to the number of a cycle for the start on a full disk that follows it."""
START_PROMISE = "a start on a full disk: reads are answered"
KEEP = "HEADRACE_TRIALS_KEEP"
"""What the logs of the servers are kept as, for whoever looks for a cause: this, and the number of the block."""
INSIDE = "HEADRACE_TRIALS_INSIDE"
"""Set where this runs in a name space of its own."""


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the blocks that were not done yet. A replay does the cycles of its block up to it, and the start after it."""
    if not _can_mount():
        return _run_inside(trials, seed, results, replay)
    done = Trials(results / f"full-{seed}.jsonl", replay if replay is None else replay % START)
    for numbers in done.blocks(trials, BLOCK):
        for trial in _block(numbers, seed):
            done.note(trial)
    return done.result(_with_starts(trials))


def _with_starts(trials: int) -> set[int]:
    """Numbers of so many cycles, and of the starts that follow them."""
    return {*range(trials), *range(START, START + trials)}


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory(prefix="headrace-full-") as folder:
        if not _mount(Path(folder)):
            return False
        _unmount(Path(folder))
    return True


def _mount(folder: Path) -> bool:
    mount = shutil.which("mount")
    if mount is None:
        return False
    command = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "headrace-full", str(folder)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while subprocess.run(["umount", str(folder)], stderr=subprocess.DEVNULL, check=False).returncode:
        if time.monotonic() > deadline:
            subprocess.run(["umount", "-l", str(folder)], check=False)
            return
        time.sleep(0.1)


def _run_inside(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """The same in a user name space, where anybody may mount; said to be left out where that is not allowed."""
    unshare = shutil.which("unshare")
    inside = [unshare or "unshare", "-Urm", "true"]
    if os.environ.get(INSIDE) or unshare is None or subprocess.run(inside, check=False).returncode:
        missing = "to mount a tmpfs (root, or user name spaces)"
        return [Trial(number=0, promise=PROMISE, what="", verdict="not run", seconds=0, note=missing)]
    command = [unshare, "-Urm", sys.executable, "-P", "-m", "scripts.trials", "full", "--trials", str(trials)]
    command += ["--seed", str(seed), "--results", str(results.absolute())]
    command += ["--replay", str(replay)] if replay is not None else []
    ran = subprocess.run(command, env=os.environ | {INSIDE: "1"}, stdout=subprocess.DEVNULL, check=False)
    if replay is not None:  # What it came to was told, and is not kept.
        verdict = "broken" if ran.returncode else "kept"
        return [Trial(number=replay, promise=PROMISE, what="in a name space", verdict=verdict, seconds=0, note="")]
    done = Trials(results / f"full-{seed}.jsonl", None).result(_with_starts(trials))
    if ran.returncode and not any(trial.is_violation for trial in done):
        note = f"what ran in a name space of its own ended with {ran.returncode}"
        done.append(Trial(number=trials, promise=PROMISE, what="", verdict="broken", seconds=0, note=note))
    return done


def _block(numbers: range, seed: int) -> Iterator[Trial]:
    """The cycles of one server; the last of them restarts it while the disk is full, and compares everything."""
    with tempfile.TemporaryDirectory(prefix="headrace-full-") as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        check(_mount(folder / "data"), "the file system is mounted")
        try:
            # On top of the mount: what a service does not find is made by it.
            with running(folder, environ=UP | {"HEADRACE_RESERVE_BYTES": str(RESERVE_BYTES)}) as program:
                yield from _cycles(program, Disk(folder / "data"), numbers, seed)
        finally:
            if keep := os.environ.get(KEEP):
                shutil.copyfile(folder / "log.jsonl", f"{keep}-{numbers[0]}.jsonl")
            _unmount(folder / "data")


def _cycles(program: Program, disk: Disk, numbers: range, seed: int) -> Iterator[Trial]:
    client, load = Client(program), Load(program)
    fill_indexes(client)
    for number in numbers:
        dice = random.Random(f"{seed} {number}")
        is_last = number == numbers[-1]
        cycle = Cycle(program, disk, client, load, dice)
        started = time.monotonic()
        verdict, note = "kept", ""
        try:
            with load.running(seed * 1_000_003 + number):
                cycle.run()
            if is_last:
                cycle.start_on_full_disk()
                cycle.compare()
        except (Broken, OSError, AssertionError) as error:
            verdict, note = "broken", f"{type(error).__name__}: {error}"[:500]
        seconds = round(time.monotonic() - started, 3)
        yield Trial(number=number, promise=PROMISE, what=cycle.what, verdict=verdict, seconds=seconds, note=note)
        if verdict == "broken":
            return  # What comes after it would only say the same.
        if is_last:
            what, note = "killed and started while full", f"{load.count} writes compared, refused: {load.refused}"
            yield Trial(number=number + START, promise=START_PROMISE, what=what, verdict="kept", seconds=0, note=note)


class Disk:
    """A small file system, and the file that fills it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "somebody-elses-file"
        self._reserve = folder / RESERVE

    def fill(self, leave_bytes: int) -> None:
        """Take everything but so many bytes."""
        with self._file.open("ab") as file:
            piece = DISK_BYTES
            while piece >= 4096:
                free = _free_bytes(self._file.parent) - leave_bytes
                piece = min(piece, max(free, 0) // 4096 * 4096)
                if piece < 4096:
                    return
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                except OSError:
                    piece //= 2  # Somebody wrote meanwhile.

    def wait_for_reserve(self) -> None:
        """Until a worker has made the reserve, or made it whole: deletes go on for as long as there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._reserve.exists() or self._reserve.stat().st_size < RESERVE_BYTES:
            check(time.monotonic() < deadline, "the reserve is whole when there is space")
            time.sleep(PAUSE_S)

    def free(self) -> None:
        """Give everything back."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def full(self, leave_bytes: int = 0) -> Iterator[None]:
        """Full for the block."""
        self.fill(leave_bytes)
        try:
            yield
        finally:
            self.free()


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Cycle:
    """Full once, and free again."""

    def __init__(self, program: Program, disk: Disk, client: Client, load: Load, dice: random.Random) -> None:
        self._program, self._disk, self._client, self._load, self._dice = program, disk, client, load, dice
        self._pages_left = dice.choice([0, 0, 0, 1, 2, 5, 12, 40])
        self._held_s = dice.uniform(0.05, 0.5)
        self._unwritten: tuple[Write, bytes, str] | None = None
        self.what = f"{self._pages_left} pages left, {self._held_s:.2f} s"

    def run(self) -> None:
        """Fill, ask, delete, write, free, and wait until writes are acknowledged again."""
        self._disk.wait_for_reserve()
        time.sleep(self._dice.uniform(0, 0.3))
        with self._disk.full(self._pages_left * 4096):
            ends = time.monotonic() + self._held_s
            while True:
                read_all(self._client, "full")
                self._delete()
                self._upsert()
                self._load.check_alive()
                if time.monotonic() > ends:
                    break
        self._until_written()

    def _delete(self) -> None:
        """A delete is acknowledged while the disk is full."""
        write = self._load.delete_some(self._dice)
        key, deadline = f"write-{self._load.number()}", time.monotonic() + 10
        while not self._load.once(self._client, -1, write, "/docs/delete_by_ids", write.body(), key):
            check(time.monotonic() < deadline, "a delete is acknowledged on a full disk")
            time.sleep(PAUSE_S)

    def _upsert(self) -> None:
        """An upsert is acknowledged or refused well; which of the two is not said."""
        number = self._load.number()
        write = self._load.upsert_some(self._dice, number)
        body, key = write.body(), f"write-{number}"
        if not self._load.once(self._client, -1, write, "/docs/upsert", body, key):
            self._unwritten = (write, body, key)

    def _until_written(self) -> None:
        """What was refused is written once there is space, by the same processes."""
        unwritten, self._unwritten = self._unwritten, None
        deadline = time.monotonic() + PATIENCE_S
        while unwritten and not self._load.once(self._client, -1, unwritten[0], "/docs/upsert", *unwritten[1:]):
            check(time.monotonic() < deadline, "writes resume when there is space")
            time.sleep(PAUSE_S)
        read_all(self._client, "free again")

    def start_on_full_disk(self) -> None:
        """Kill everything, fill the disk, start: reads are answered, and writes once there is space."""
        self._disk.wait_for_reserve()
        self._program.end(signal.SIGKILL)
        with self._disk.full():
            self._program.start()
            read_all(self._client_anew(), "started on a full disk")
            self._delete()
        self._upsert()
        self._until_written()

    def _client_anew(self) -> Client:
        self._client = Client(self._program)
        return self._client

    def compare(self) -> None:
        """Everything acknowledged is there once, and nothing else; and nobody died or halted on the way."""
        compare(self._client, self._load)
        deaths = self._program.events("child.died")
        check(not deaths, f"no process died: {deaths[:2]}")
        loud = [one for one in self._program.complaints() if one["event"] in LOUD_EVENTS]
        check(not loud, f"nothing is called damaged or unforeseen: {loud[:2]}")


LOUD_EVENTS = {"index.halted", "index.failed", "mutation.failed", "mutation.set_aside", "request.failed"}
