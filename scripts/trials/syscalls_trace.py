"""Runs something in a process of its own and sees every system call with which it changes files, before it is done.

strace can kill at the Nth call, but counts for each thread by itself; here all threads and processes of what runs are
counted together, so that every call there is can be the last one. It takes neither root nor strace: a process may
always trace those it starts. A filter in the kernel stops only the calls in question, so the rest runs at full speed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts.trials.forked import become

OF_DESCRIPTOR = {
    "write": 1, "pwrite64": 18, "writev": 20, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "fchmod": 91,
    "fallocate": 285, "pwritev": 296, "copy_file_range": 326, "sync_file_range": 277,
}  # fmt: skip
OF_PATH = {
    "open": 2, "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "chmod": 90,
}  # fmt: skip
AT_FOLDER = {
    "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "renameat2": 316, "fchmodat": 268,
    "utimensat": 280,
}  # fmt: skip
NAMES = {number: name for some in (OF_DESCRIPTOR, OF_PATH, AT_FOLDER) for name, number in some.items()}
_FLAGS_AT = {2: 1, 257: 2}
"""Which argument of these has the flags: only opening to create or to truncate changes anything."""
_CHANGING = os.O_CREAT | os.O_TRUNC

_ARCHITECTURE = 0xC000003E
_TRACE, _ALLOW = 0x7FF00000, 0x7FFF0000
_SEIZE, _CONT, _LISTEN = 0x4206, 7, 0x4208
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # Forks, threads, programs, filtered calls; and die with us.
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL = 0x40000000
LINGER_S = 0.02
AT_CWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """What tracing lacks here; "" for nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    done = run(lambda: None, Path("/nowhere"), kill_at=0, timeout_s=20)
    return "" if done.exit_code == 0 else f"needs leave to trace its own processes: {done.error[-200:]}"


@dataclass(slots=True)
class Traced:
    """What was seen: each call as `name file`; how it ended, negative for a signal; what went wrong here."""

    calls: list[str] = field(default_factory=list)
    exit_code: int | None = None
    error: str = ""


def run(
    work: Callable[[], object],
    root: Path,
    *,
    kill_at: int,
    timeout_s: float,
    counts: Callable[[str], bool] = lambda _: True,
) -> Traced:
    """Run `work` in a process, and kill it and all it started before call number `kill_at` (0: never) below `root`.

    `counts` says of a file which calls are meant. No other child of this process may end meanwhile. Raises nothing of
    `work`.
    """
    begin_read, begin_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        become(lambda: _begin(work, begin_read))
    os.close(begin_read)
    traced = Traced()
    seized = _libc.ptrace(_SEIZE, pid, None, ctypes.c_void_p(_OPTIONS))
    if seized != 0:
        traced.error = os.strerror(ctypes.get_errno())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(begin_write)
        return traced
    os.write(begin_write, b"go")
    os.close(begin_write)
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        _Tracer(pid, os.fsencode(root), kill_at, counts, traced).follow()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return traced


class _Late(Exception):
    pass


def _ring(*_: object) -> None:
    raise _Late


class _Tracer:
    def __init__(self, pid: int, root: bytes, kill_at: int, counts: Callable[[str], bool], traced: Traced) -> None:
        self._pid, self._root, self._kill_at, self._counts, self._traced = pid, root, kill_at, counts, traced
        self._known = {pid}
        self._ends_at: float | None = None

    def follow(self) -> None:
        """Until all of them are gone."""
        while True:
            try:
                task, status = os.waitpid(-1, _WALL if self._ends_at is None else _WALL | os.WNOHANG)
            except ChildProcessError:
                return
            except _Late:
                self._traced.error = "it did not end"
                self._kill()
                continue
            if task == 0:
                self._linger()
            elif os.WIFSTOPPED(status):
                self._known.add(task)
                self._stopped(task, status)
            else:
                self._known.discard(task)  # Its number may be another's from now on.
                if task == self._pid:
                    self._traced.exit_code = os.waitstatus_to_exitcode(status)

    def _linger(self) -> None:
        """The call hangs while the others go on for a moment: what is promised too early is heard. Then all die."""
        assert self._ends_at is not None, "one call is the last"
        if time.monotonic() < self._ends_at:
            time.sleep(0.001)
        else:
            self._kill()
            self._ends_at = None

    def _stopped(self, task: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP and self._is_fatal(task):
            self._ends_at = time.monotonic() + LINGER_S
            return  # It stays where it is.
        if event == _EVENT_STOP and number != signal.SIGTRAP:
            _libc.ptrace(_LISTEN, task, None, None)
            return
        passed = 0 if event else number
        _libc.ptrace(_CONT, task, None, ctypes.c_void_p(passed))

    def _is_fatal(self, task: int) -> bool:
        if self._kill_at and len(self._traced.calls) >= self._kill_at:
            return False
        with suppress(OSError):  # It was killed meanwhile.
            call = _call(task)
            if call and call[1].startswith(self._root + b"/"):
                where = os.fsdecode(os.path.relpath(call[1], self._root))
                if not self._counts(where):
                    return False
                self._traced.calls.append(f"{call[0]} {where}")
                return len(self._traced.calls) == self._kill_at
        return False

    def _kill(self) -> None:
        for task in self._known:
            with suppress(ProcessLookupError):
                os.kill(task, signal.SIGKILL)


def _call(task: int) -> tuple[str, bytes] | None:
    """The name of the call in which a task is stopped, and the path of what it changes."""
    number, *rest = Path(f"/proc/{task}/syscall").read_text().split()
    name, arguments = NAMES[int(number)], [int(one, 16) for one in rest[:6]]
    if name in OF_DESCRIPTOR:
        return name, _folder(task, arguments[0])
    if name in OF_PATH:
        return name, _at(_folder(task, AT_CWD), _text(task, arguments[0]))
    if not arguments[1]:  # utimensat of a descriptor.
        return name, _folder(task, arguments[0])
    return name, _at(_folder(task, arguments[0]), _text(task, arguments[1]))


def _at(folder: bytes, path: bytes) -> bytes:
    return path if path.startswith(b"/") else folder + b"/" + path


def _folder(task: int, descriptor: int) -> bytes:
    number = ctypes.c_int(descriptor & 0xFFFFFFFF).value
    process = Path(f"/proc/{task}")
    return os.fsencode((process / "cwd" if number == AT_CWD else process / "fd" / str(number)).readlink())


def _text(task: int, address: int) -> bytes:
    with Path(f"/proc/{task}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        # No further than the page: what is behind it may not be there.
        text = memory.read(4096 - address % 4096)
        if b"\0" not in text:
            text += memory.read(4096)
    return text.split(b"\0", 1)[0]


def _begin(work: Callable[[], object], begin: int) -> None:
    """The work, once somebody watches."""
    if os.read(begin, 2) != b"go":
        raise EOFError("nobody watches")
    os.close(begin)
    _filter()
    work()


def _filter() -> None:
    """Have the kernel stop this process, and all that it starts, at the calls in question."""
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, _ARCHITECTURE), (0x06, 0, 0, _ALLOW), (0x20, 0, 0, 0)]
    for number in sorted(NAMES):
        if number in _FLAGS_AT:
            program += [
                (0x15, 0, 4, number),
                (0x20, 0, 0, 16 + 8 * _FLAGS_AT[number]),
                (0x45, 0, 1, _CHANGING),
                (0x06, 0, 0, _TRACE),
                (0x06, 0, 0, _ALLOW),
            ]
        else:
            program += [(0x15, 0, 1, number), (0x06, 0, 0, _TRACE)]
    program.append((0x06, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    if _libc.prctl(no_new_privileges, 1, 0, 0, 0) or _libc.prctl(seccomp, filter_mode, head, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls")
