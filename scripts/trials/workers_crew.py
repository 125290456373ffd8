"""Several services and workers on one data folder, each started as its operator would and reachable by itself.

A service that shares its port with others cannot be asked by name, so each is a `headrace serve` with a port of its
own; each worker is a `headrace work`. Their supervisors start again what is killed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.trials.subject import launch
from tests.contract.program import children_of, is_alive, lasting_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""How long something that must happen may take before it counts as stuck. Not a speed limit: on a machine that is
busy with other things, processes of the lowest priority took two minutes to start."""
CLOSE_S = 30.0
"""How long children may take to notice that their supervisor is gone, when all is over."""
RESTLESS = {
    # Builds, merges and collecting go on all the time, so that they are in the way of everything.
    "HEADRACE_SEAL_BYTES": "100000",
    "HEADRACE_SEAL_MUTATIONS": "200",
    "HEADRACE_SEAL_IDLE_MS": "300",
    "HEADRACE_SEGMENTS_MAX": "2",
    "HEADRACE_MERGE_IDLE_MS": "1000",
    "HEADRACE_GRACE_MS": "1000",
    "HEADRACE_SWEEP_MS": "1000",
    "HEADRACE_GRAPH_ROWS_MIN": "200",
    "HEADRACE_BUILDER_THREADS": "1",
}


class Stuck(Exception):
    """What must happen did not."""


class Member:
    """One supervisor with one child: `serve` or `work`. It keeps its port when it is started again."""

    def __init__(
        self, name: str, command: str, folder: Path, environ: dict[str, str], level: str, preload: str = ""
    ) -> None:
        self.name = name
        self._preload = preload
        self._level = level
        self.port = lasting_port()
        self._command = command
        self._folder = folder
        self._environ = environ
        self._log = folder / f"{name}.jsonl"
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: list[int] = []

    def start(self, environ: dict[str, str] | None = None) -> None:
        """Start it; `heard_ready` waits until it is ready. Raises Stuck."""
        assert self._process is None
        # A supervisor that was killed told its child nothing, which has the port until it notices.
        wait_until(f"the child of {self.name} ends with it", lambda: not any(map(is_alive, self._orphans)))
        started = launch("service")
        if self._preload:
            started = (*started[:3], "scripts.trials.preloaded", self._preload, *started[3:])
        command = [*started, self._command, "--data", str(self._folder / "data")]
        command += ["--log-format", "json", "--log-level", self._level]
        if self._command == "serve":
            command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environ | (environ or {}),
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def heard_ready(self) -> None:
        """Wait for the line it prints when it is ready. Raises Stuck with its log when it ends instead."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline().decode() if selector.select(PATIENCE_S) else ""
        if not line:
            raise Stuck(f"{self.name} did not start: {self._log.read_text()[-2000:]}")
        if self._command == "serve" and f":{self.port}" not in line:
            raise Stuck(f"{self.name} said {line!r}")

    @property
    def supervisor(self) -> int:
        """The process that was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def child(self) -> int:
        """The process that does the work. Waits for it where it is being started again. Raises Stuck."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = children_of(self.supervisor)
            return bool(found)

        wait_until(f"{self.name} has a child", is_there)
        return found[0]

    def children(self) -> list[int]:
        """Processes below the supervisor, if it runs."""
        return children_of(self._process.pid) if self._process is not None else []

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the supervisor by a signal; its exit code. Raises Stuck."""
        self._orphans = self.children()
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            process.send_signal(number)
            try:
                return process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise Stuck(f"{self.name} does not end") from error

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it logged since its first start, oldest first; only these events, if any are named."""
        found = []
        if not self._log.exists():
            return []
        for line in self._log.read_bytes().split(b"\n")[:-1]:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "no json", "level": "error", "text": line.decode(errors="replace")}
            if not names or event["event"] in names:
                found.append(event)
        return found


class Crew:
    """Services and workers on one data folder."""

    def __init__(
        self,
        folder: Path,
        *,
        services: int,
        workers: int,
        environ: dict[str, str] | None = None,
        level: str = "info",
        preload: str = "",
    ) -> None:
        """`preload` names a module of this package that every process imports first."""
        self.folder = folder
        # Sockets and metrics go to a folder of their own; its path is short, as sockets need it.
        self._scratch = tempfile.TemporaryDirectory(prefix="headrace-", dir="/tmp")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        # What is started here ends with us, however we end.
        ours = {"PYTHONPATH": str(ROOT), "TMPDIR": self._scratch.name, "HEADRACE_STOP_WITH_INPUT": "true"}
        everything = inherited | ours | (environ or {})
        self.services = [Member(f"service-{n}", "serve", folder, everything, level, preload) for n in range(services)]
        self.workers = [Member(f"worker-{n}", "work", folder, everything, level, preload) for n in range(workers)]

    @property
    def members(self) -> list[Member]:
        """Services first, as they are stopped first."""
        return [*self.services, *self.workers]

    @property
    def ports(self) -> list[int]:
        """Where each service listens."""
        return [service.port for service in self.services]

    def start(self, environ: dict[str, str] | None = None) -> None:
        """Start all, and wait until all are ready."""
        for member in self.members:
            member.start(environ)
        for member in self.members:
            member.heard_ready()

    def stop(self) -> None:
        """Stop all in order, as an operator does. Raises Stuck."""
        for member in self.members:
            code = member.end()
            if code:
                raise Stuck(f"{member.name} stops with code {code}: {member.events()[-1:]}")

    def close(self) -> None:
        """Leave nothing running. Safe twice."""
        children = []
        for member in self.members:
            children += member.children()
            member.end(signal.SIGKILL)
        for pid in children:
            # One that is stopped by a signal does not notice that its supervisor is gone.
            if is_alive(pid):
                send(pid, signal.SIGCONT)
        with contextlib.suppress(Stuck):
            wait_until("children end", lambda: not any(map(is_alive, children)), CLOSE_S)
        for pid in filter(is_alive, children):
            send(pid, signal.SIGKILL)
        self._scratch.cleanup()

    def complaints(self, *names: str) -> list[dict[str, Any]]:
        """These events of all members."""
        return [event for member in self.members for event in member.events(*names)]


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process that may be gone; whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(what: str, holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that must happen. Raises Stuck."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise Stuck(what)
        time.sleep(0.02)


@contextlib.contextmanager
def crew(
    folder: Path,
    *,
    services: int,
    workers: int,
    environ: dict[str, str] | None = None,
    level: str = "info",
    preload: str = "",
) -> Iterator[Crew]:
    """A crew that is ready; nothing of it runs after the block."""
    some = Crew(folder, services=services, workers=workers, environ=environ, level=level, preload=preload)
    try:
        some.start()
        yield some
    finally:
        some.close()
