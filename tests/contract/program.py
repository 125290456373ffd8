"""A real `headrace up`, as its users run it: a process of its own, with its children, on a free port.

Nothing here reaches into it. What it does is read from where its operator reads it: the line it prints, its log, its
exit code.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "0123456789abcdef0123456789abcdef"
TOKEN = "local"
PATIENCE_S = 300.0
"""Not a speed limit: how long a test waits before it calls a thing that should happen stuck."""
LAUNCH = (sys.executable, "-P", "-m", "service")
LOUD = frozenset({"error", "critical"})

Found = TypeVar("Found")
Event = dict[str, Any]


def eventually(what: str, holds: Callable[[], Found]) -> Found:
    """Ask until the answer is true, and return it; another process cannot set an event of ours."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for this, in vain: {what}"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # The second when it goes while it is read.
        return False


def children_of(pid: int) -> list[int]:
    """What a process has started and not buried; nothing where it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def lasting_port() -> int:
    """A free port that stays free while what listens on it is started again.

    It is below those that systems give to connections, which may take any of theirs between an end and a start.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program:
    """`headrace up` on one data folder. It may be started again after its end, and keeps its port then."""

    def __init__(
        self, folder: Path, *arguments: str, environ: dict[str, str] | None = None, launch: Sequence[str] = LAUNCH
    ) -> None:
        self.url = ""
        self._port = lasting_port()
        self._launch = launch
        self._folder = folder
        self._arguments = arguments
        self._environ = environ or {}
        self._log = folder / "log.jsonl"
        # Sockets and metrics go to a folder that vanishes with us; its path is short, as sockets need it.
        self._scratch = tempfile.TemporaryDirectory(prefix="headrace-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """What official clients are pointed at."""
        return f"{self.url}/client/v4"

    @property
    def indexes_url(self) -> str:
        """Where the indexes of the tests' account are."""
        return f"{self.base_url}/accounts/{ACCOUNT}/vectorize/v2/indexes"

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start."""
        return int(self.url.rpartition(":")[2] or 0)

    @property
    def supervisor(self) -> int:
        """The process id of what was started."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it says where it listens. Fails with its log when it ends instead."""
        assert self._process is None
        command = [*self._launch, "up", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--data", str(self._folder / "data"), "--log-format", "json", "--log-level", "debug"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        found = re.search(r"listens on (https?://\S+)", self._first_line())
        assert found is not None, f"it did not start:\n{self._log.read_text()}"
        self.url = found[1]

    def stop(self) -> int:
        """Ask it to stop as an operator does, and return its exit code."""
        return self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        """Send the supervisor, and nobody else, a signal that ends it, and return its exit code."""
        process, self._process = self._process, None
        assert process is not None
        with process:
            process.send_signal(number)
            return process.wait(PATIENCE_S)

    def close(self) -> None:
        """Leave nothing behind, however the test went. Safe twice."""
        try:
            if self._process is not None:
                children = self.children()
                self.end(signal.SIGKILL)
                # Until then they write to what is removed here.
                eventually("children end with their supervisor", lambda: not any(map(is_alive, children)))
        finally:
            self._scratch.cleanup()

    def events(self, event: str, /, **values: Any) -> list[Event]:
        """What it logged since it was first started, oldest first: that event, with these values."""
        wanted = values | {"event": event}
        return [one for one in self._events() if wanted.items() <= one.items()]

    def complaints(self) -> list[Event]:
        """What an operator would have to look at."""
        return [event for event in self._events() if event["level"] in LOUD]

    def child(self, name: str) -> int:
        """The process id of the child that became ready last under this name."""
        return int(self.events("child.ready", name=name)[-1]["pid"])

    def has_child(self, pid: int) -> bool:
        """Whether a child runs under this number still. One that died gives it away, to any process of the machine."""
        try:
            state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z" and int(parent) == self.supervisor

    def children(self) -> list[int]:
        """The processes that the supervisor has started and not buried, ready or not."""
        return children_of(self.supervisor)

    def kill_child(self, name: str) -> None:
        """Kill a child without a warning."""
        os.kill(self.child(name), signal.SIGKILL)

    def _events(self) -> Iterator[Event]:
        # The last piece is empty, or a line that is being written. A line that is no JSON fails the test: it is a
        # message of Python or of a library that no operator's log reader would understand.
        for line in self._log.read_bytes().split(b"\n")[:-1]:
            yield orjson.loads(line)

    def _first_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE_S), f"it said nothing for {PATIENCE_S:g} s:\n{self._log.read_text()}"
        return self._process.stdout.readline().decode()

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        return inherited | {"PYTHONPATH": str(ROOT), "TMPDIR": self._scratch.name} | self._environ


@contextmanager
def running(
    folder: Path, *arguments: str, environ: dict[str, str] | None = None, launch: Sequence[str] = LAUNCH
) -> Iterator[Program]:
    """A program that is ready; gone without a trace at the end, unless it was stopped before."""
    program = Program(folder, *arguments, environ=environ, launch=launch)
    try:
        program.start()
        yield program
    finally:
        program.close()


def ndjson(*vectors: dict[str, Any]) -> bytes:
    """A batch as clients send it."""
    return "\n".join(json.dumps(vector) for vector in vectors).encode()


def axis(number: int, dimensions: int = 32) -> list[float]:
    """A vector of length 1 along one axis."""
    return [1.0 if place == number else 0.0 for place in range(dimensions)]
