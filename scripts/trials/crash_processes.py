"""The processes of one data folder, to be killed and started again quickly.

They are what `headrace up` has below it, a service process and a worker, forked from a server that has imported
everything, so that a start takes a tenth of a second. There is no supervisor: who kills a process starts the next.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scripts.trials import preloaded
from scripts.trials.crash_load import Line
from scripts.trials.promises import Broken
from scripts.trials.subject import PRELOAD
from storage.logs import configure_logs
from storage.process import raise_open_files_limit
from storage.settings import Settings
from tests.contract.program import children_of

SETTINGS = Settings(
    # Builds, merges and collecting go on all the time, so that they are killed as well.
    seal_bytes=20_000,
    seal_mutations=20,
    seal_idle_ms=200,
    segments_max=2,
    merge_idle_ms=500,
    grace_ms=300,
    sweep_ms=1_000,
    graph_rows_min=200,
    builder_threads=1,
    reserve_bytes=65_536,
    log_format="json",
    log_level="info",
)
WORKER = "worker"
START_S = 60.0
END_S = 20.0
_PR_SET_PDEATHSIG = 1

forkserver = multiprocessing.get_context("forkserver")
BROKEN = os.environ.get(PRELOAD, "")
forkserver.set_forkserver_preload(
    [*([f"scripts.trials.{BROKEN}"] if BROKEN else []), __name__, "service.process", "worker.process"]
)


class Crew:
    """A worker and some service processes. `line` says where they listen: the same port all the time."""

    def __init__(self, data: Path, log: Path, *, services: int = 1, settings: Settings = SETTINGS) -> None:
        self.names = (WORKER, *(f"service-{number + 1}" for number in range(services)))
        self._settings = replace(settings, data=data)
        self._log = log
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.line = Line(self._listener.getsockname()[1])
        self._processes: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(*self.names)
        self._listener.close()

    def start(self, *names: str) -> None:
        """Start those, or all, and wait until they are ready. Raises Broken when one ends instead."""
        heard = {}
        for name in names or self.names:
            hear, say = forkserver.Pipe(duplex=False)
            process = forkserver.Process(
                target=_live, args=(name, self._settings, self._listener, say, str(self._log), BROKEN), daemon=True
            )
            process.start()
            say.close()
            self._processes[name] = process
            heard[name] = hear
        for name, hear in heard.items():
            self._wait_ready(name, hear)

    def _wait_ready(self, name: str, hear: Connection) -> None:
        try:
            if hear.poll(START_S) and hear.recv_bytes() == b"ready":
                return
        except EOFError:
            pass
        finally:
            hear.close()
        raise Broken(f"{name} does not start: {self._log.read_text()[-1500:]}")

    def kill(self, *names: str) -> None:
        """Kill those without a warning, and wait until they are gone."""
        gone = [self._processes.pop(name) for name in names if name in self._processes]
        for process in gone:
            process.kill()
        for process in gone:
            process.join(END_S)

    def stop(self) -> None:
        """Stop everything as an operator does. Raises Broken when something does not end well."""
        for name in reversed(self.names):
            process = self._processes.pop(name, None)
            if process is not None:
                process.terminate()
                process.join(END_S * 2)
                if process.exitcode != 0:
                    process.kill()
                    raise Broken(f"{name} ended with {process.exitcode}: {self._log.read_text()[-1500:]}")

    def children(self, name: str) -> list[int]:
        """What a process has started: the builders of a worker."""
        process = self._processes.get(name)
        if process is None or process.pid is None:
            return []
        return children_of(process.pid)

    def fallen(self) -> list[str]:
        """Those that ended without having been asked to."""
        return [name for name, process in self._processes.items() if process.exitcode is not None]


def _live(name: str, settings: Settings, listener: socket.socket, say: Connection, log: str, broken: str) -> None:
    # Nobody is left behind by a trial that was itself killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    say_to(log)
    if broken:
        preloaded.preload(broken)
    configure_logs(settings, process=name)
    raise_open_files_limit()
    asyncio.run(_run(name, settings, listener, lambda: say.send_bytes(b"ready")))


def say_to(log: str) -> None:
    """Have what this process says go to the end of a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


async def _run(name: str, settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    from service.process import run as serve
    from worker.process import run as work

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if name == WORKER:
        await work(settings, ready, stop)
    else:
        listener.setblocking(False)
        await serve(settings, sockets=[listener], ready=ready, stop=stop)


def wait_gone(what: str, is_gone: Callable[[], bool], *, patience_s: float = END_S) -> None:
    """Wait for the end of something that dies by itself, as builders do whose worker is gone. Raises Broken."""
    deadline = time.monotonic() + patience_s
    while not is_gone():
        if time.monotonic() > deadline:
            raise Broken(f"{what} is not gone after {patience_s:g} s")
        time.sleep(0.01)
