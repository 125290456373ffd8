"""One supervised child: start it, hear when it is ready, stop it, know how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.configuration import CHILD_VARIABLE
from storage.process import READY, Inheritance
from storage.settings import Settings

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds service, storage and worker: the repository, or `headrace/` inside the wheel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """How to start a child. `module` runs as `python -P -m`; `listener` is kept by the supervisor."""

    name: str
    module: tuple[str, ...]
    listener: socket.socket | None = None


class Child:
    """A running child. Made by `start`; `ended` is awaited exactly once to reap it."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: socket.socket) -> None:
        self._process = process
        self._lifeline = lifeline

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @classmethod
    async def start(cls, plan: ChildPlan, settings: Settings, metrics: Path) -> Child:
        """Start a process that keeps nothing of ours but its lifeline and its listener."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        handed = [theirs.fileno()] + ([plan.listener.fileno()] if plan.listener else [])
        inheritance = Inheritance(
            name=plan.name,
            settings=settings,
            parent_fd=theirs.fileno(),
            listen_fd=plan.listener.fileno() if plan.listener else -1,
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                *plan.module,
                env=_environment(inheritance, metrics),
                pass_fds=handed,
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C reaches the whole foreground group; the order of stopping is the supervisor's to
                # give.
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours)

    async def heard_ready(self) -> bool:
        """Wait until the child says that it is ready; False when it ends without having said so."""
        loop = asyncio.get_running_loop()
        heard = b""
        while heard != READY:
            try:
                more = await loop.sock_recv(self._lifeline, len(READY) - len(heard))
            except ConnectionError:
                return False
            if not more:
                return False
            heard += more
        return True

    async def ended(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        code = await self._process.wait()
        self._lifeline.close()
        return code

    def terminate(self) -> None:
        """Ask the child to finish what it is doing and go."""
        self._send(signal.SIGTERM)

    def reload(self) -> None:
        """Ask the child to look at its certificate and audit file again."""
        self._send(signal.SIGHUP)

    def kill(self) -> None:
        """End the child now."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def _environment(inheritance: Inheritance, metrics: Path) -> dict[str, str]:
    # PYTHONPATH comes before site-packages, where other packages called `worker` and `storage` may lie.
    paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        CHILD_VARIABLE: inheritance.to_text(),
    }
