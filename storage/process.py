"""The life of a child process: what it is handed, when it says it is ready, when it stops.

A supervisor starts every child with one end of a socket pair and never writes to it. The child writes one
line there when it can do its work. When the supervisor goes away, whatever killed it, the operating system
closes the other end, and the child stops by itself: no orphan keeps the port or the lease. What a child is
told travels in one environment variable, never on the command line, where every user of the machine could
read the token.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from storage import deadlines
from storage.configuration import CHILD_VARIABLE, from_json, to_json
from storage.errors import Damaged
from storage.logs import configure_logs
from storage.memory import give_back_at_rest, keep_freed_memory
from storage.settings import Settings

READY = b"ready\n"
EXIT_REFUSED = 78
"""The exit code of a child that will not start on this data (EX_CONFIG): starting it again would not help."""
END_S = 2.0
"""How long a process that is done waits for its threads."""
ORPHAN_GRACE_S = 5
"""How much longer than its drain an orphan lives before it ends whatever is still running."""

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from the others: a tenth of what Python has, so that the event loop of a
service comes back soon from what it left to a thread."""
OPEN_FILES_MAX = 65_536
"""More than the open indexes of a process can need."""

Main = Callable[[Settings, Callable[[], None], asyncio.Event], Awaitable[None]]
"""A child's work: call `ready` once it can be used, and return soon after `stop` is set."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What a supervisor hands to one child. `listen_fd` is -1 for a child that listens on nothing."""

    name: str
    settings: Settings
    parent_fd: int
    listen_fd: int = -1

    def to_text(self) -> str:
        """The one environment variable; `inheritance` reads it back."""
        return json.dumps(
            {
                "name": self.name,
                "settings": to_json(self.settings),
                "parent_fd": self.parent_fd,
                "listen_fd": self.listen_fd,
            }
        )


def inheritance(environ: Mapping[str, str]) -> Inheritance | None:
    """What this process was handed, or None when no supervisor started it."""
    text = environ.get(CHILD_VARIABLE)
    if text is None:
        return None
    fields = json.loads(text)
    return Inheritance(**fields | {"settings": from_json(fields["settings"])})


def inherited_sockets() -> tuple[socket.socket, ...]:
    """The listening sockets this process was handed. The caller owns them; ask once."""
    handed = inheritance(os.environ)
    if handed is None or handed.listen_fd < 0:
        return ()
    listener = socket.socket(fileno=handed.listen_fd)
    listener.set_inheritable(False)
    listener.setblocking(False)
    return (listener,)


def run_child(main: Main) -> int:
    """Live as a supervised child until told to stop; returns the exit code.

    Stops on SIGTERM, SIGINT, and when the supervisor is gone. Data that this program must not touch
    (`Damaged`) before it was ready gives EXIT_REFUSED; any other failure is logged and gives 1.
    """
    handed = inheritance(os.environ)
    if handed is None:
        sys.stderr.write("this is a child of `headrace up`, `serve` or `work`; start one of those instead\n")
        return 2
    configure_logs(handed.settings, process=handed.name)
    raise_open_files_limit()
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
    return _ended(asyncio.run(_live(handed, main)))


def raise_open_files_limit() -> None:
    """Allow this process as many open files as it may allow itself.

    What it is started with is often 1,024, for the sake of programs that use select(2); an index takes ten and more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # Some systems have a lower limit of their own; then it stays as it is.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _ended(code: int) -> int:
    """The exit code, for Python to end with, or the end itself.

    Python waits for threads, and a database that a failure left open has one, for ever: the supervisor would never hear
    that its child is to be started again.
    """
    deadlines.end()
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    for one in others:
        one.join(END_S / len(others))
    left = [one.name for one in others if one.is_alive()]
    if left:
        log.warning("process.left_open", threads=left)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


async def _live(handed: Inheritance, main: Main) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    parent = socket.socket(fileno=handed.parent_fd)
    parent.set_inheritable(False)
    drain_s = handed.settings.drain_timeout_ms / 1000
    watch = threading.Thread(target=_stop_with_parent, args=(parent, loop, stop, drain_s), daemon=True)
    watch.start()
    resting = asyncio.create_task(give_back_at_rest(), name="give-back-at-rest")
    said_ready = False

    def ready() -> None:
        nonlocal said_ready
        said_ready = True
        _tell(parent)

    try:
        await main(handed.settings, ready, stop)
    except Damaged as error:
        log.critical("process.refused", reason=str(error))
        return 1 if said_ready else EXIT_REFUSED
    except Exception:
        log.exception("process.failed")
        return 1
    finally:
        resting.cancel()
    return 0


def _tell(parent: socket.socket) -> None:
    try:
        parent.sendall(READY)
    except OSError:
        # The supervisor is gone; the watching thread sees the same and stops us.
        log.warning("supervisor.gone")


def _stop_with_parent(
    parent: socket.socket, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, drain_s: float
) -> None:
    """Stop when the supervisor ends. A thread: a child whose loop hangs must not outlive it either."""
    try:
        while parent.recv(64):
            pass
    except OSError:
        pass
    with suppress(RuntimeError):  # The loop is closed already.
        loop.call_soon_threadsafe(stop.set)
    time.sleep(drain_s + ORPHAN_GRACE_S)
    os._exit(1)
