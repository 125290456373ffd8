"""A real worker process beside the one in the test's own loop, to be killed or stopped in its tracks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import orjson

from storage.backends.sqlite.database import Database
from storage.backends.sqlite.folder import DataFolder
from storage.errors import StoreBusy
from storage.process import CHILD_VARIABLE, READY, Inheritance
from storage.settings import Settings
from tests.conftest import WAIT_S

ROOT = Path(__file__).resolve().parents[2]


class OtherWorker:
    """`python -m worker` on a data folder, as the supervisor starts it. Its events are read as they come."""

    def __init__(self, settings: Settings, process: asyncio.subprocess.Process) -> None:
        self._settings = settings
        self._process = process
        self.events: list[dict] = []
        self._listening = asyncio.create_task(self._listen(), name="other-worker-events")

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.events.append(orjson.loads(line))

    def named(self, event: str) -> list[dict]:
        """The events of this name so far."""
        return [one for one in self.events if one["event"] == event]

    async def kill(self) -> None:
        """End it where it is: nothing is finished, nothing is given back."""
        self._process.kill()
        await self._process.wait()
        await self._listening

    async def stop(self) -> None:
        """Stop it between two transactions; `go_on` wakes it.

        Stopped within one it would keep SQLite's own lock, which nobody but it can free.
        """
        async with asyncio.timeout(WAIT_S):
            while True:
                os.kill(self._process.pid, signal.SIGSTOP)
                if await _is_free(self._settings):
                    return
                os.kill(self._process.pid, signal.SIGCONT)
                await asyncio.sleep(0.01)

    def go_on(self) -> None:
        """Let it find out what happened meanwhile."""
        os.kill(self._process.pid, signal.SIGCONT)


@asynccontextmanager
async def other_worker(settings: Settings) -> AsyncIterator[OtherWorker]:
    """Run a worker process until the block ends."""
    ours, its = socket.socketpair()
    with closing(ours), closing(its):
        told = replace(settings, log_format="json", log_level="info")
        handed = Inheritance(name="other", settings=told, parent_fd=its.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "worker",
            env=os.environ | {"PYTHONPATH": str(ROOT), CHILD_VARIABLE: handed.to_text()},
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[its.fileno()],
        )
        its.close()
        ours.setblocking(False)
        worker = OtherWorker(settings, process)
        try:
            said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ours, 64), WAIT_S)
            assert said == READY, worker.events
            yield worker
        finally:
            if process.returncode is None:
                await worker.kill()


async def _is_free(settings: Settings) -> bool:
    """Whether every database that a worker writes can be written by somebody else."""
    data = DataFolder(settings.data)
    for path in (data.workers, *data.indexes.glob("*/state.db"), *data.indexes.glob("*/log.db")):
        database = await Database.open(path)
        try:
            await database.rows("PRAGMA busy_timeout=0")
            async with database.writing():
                pass
        except StoreBusy:
            return False
        finally:
            await database.close()
    return True
