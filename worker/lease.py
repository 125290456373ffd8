"""Which worker is alive: a lock that the kernel frees when a process dies, and a heartbeat for one that hangs.

A worker holds the lock of a file named after it for as long as it lives, so a peer that can take that lock knows at
once. A worker that is stopped keeps its lock: if its counter has not moved for ten seconds of the observer's own
clock, it is taken for dead as well, and the epoch of every index it held stops whatever it does later.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import structlog

from storage.backends.sqlite.database import Database
from storage.backends.sqlite.folder import DataFolder
from storage.errors import Damaged, Unavailable
from storage.files import lock_at_once

log = structlog.get_logger()

BEAT_S = 2.0
SILENCE_S = 10.0


class Registration:
    """This worker among its peers. Make it with `join`."""

    def __init__(self, id: str, data: DataFolder, database: Database, descriptor: int) -> None:
        self.id = id
        self._data = data
        self._database = database
        self._descriptor = descriptor
        self._heard: dict[str, tuple[int, float]] = {}
        self._dead: set[str] = set()

    @classmethod
    async def join(cls, data: DataFolder) -> Registration:
        """Become known to the other workers."""
        id = uuid.uuid4().hex
        descriptor = os.open(_lock_path(data, id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            database = await Database.open(data.workers)
        except BaseException:
            os.close(descriptor)
            raise
        registration = cls(id, data, database, descriptor)
        try:
            async with database.writing() as transaction:
                await transaction.rows("INSERT INTO workers VALUES (?, ?, 0)", (id, os.getpid()))
            await registration.beat()
        except BaseException:
            await registration._close()
            raise
        return registration

    async def beat(self) -> None:
        """Say that this worker lives, and see who else does."""
        async with self._database.writing() as transaction:
            await transaction.rows("UPDATE workers SET beats = beats + 1 WHERE id = ?", (self.id,))
            peers = await transaction.rows("SELECT id, beats FROM workers WHERE id <> ?", (self.id,))
        self._listen({str(peer): int(beats) for peer, beats in peers}, time.monotonic())
        await self._bury()
        if self._database.wal_bytes():
            await self._database.checkpoint()

    def _listen(self, peers: Mapping[str, int], now: float) -> None:
        """Remember since when each peer's counter stands still."""
        earlier = self._heard
        self._heard = {
            peer: earlier[peer] if peer in earlier and earlier[peer][0] == beats else (beats, now)
            for peer, beats in peers.items()
        }
        self._dead = {peer for peer, (_, since) in self._heard.items() if now - since > SILENCE_S}

    async def _bury(self) -> None:
        """Forget peers whose lock is free: they are gone for certain."""
        for peer in list(self._heard):
            if _is_free(_lock_path(self._data, peer)):
                async with self._database.writing() as transaction:
                    await transaction.rows("DELETE FROM workers WHERE id = ?", (peer,))
                _lock_path(self._data, peer).unlink(missing_ok=True)
                del self._heard[peer]

    def is_dead(self, worker: str) -> bool:
        """Whether the indexes of this worker are free to take."""
        if worker == self.id:
            return False
        return worker in self._dead or _is_free(_lock_path(self._data, worker))

    async def leave(self) -> None:
        """Be known no longer; what this worker held is free at once."""
        try:
            async with self._database.writing() as transaction:
                await transaction.rows("DELETE FROM workers WHERE id = ?", (self.id,))
        except (Unavailable, Damaged) as error:
            # Whoever is left finds the lock free.
            log.warning("worker.not_signed_off", reason=str(error))
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            await self._database.close()
        finally:
            _lock_path(self._data, self.id).unlink(missing_ok=True)
            os.close(self._descriptor)


def _lock_path(data: DataFolder, worker: str) -> Path:
    return data.worker_locks / f"{worker}.lock"


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock; True as well when there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return lock_at_once(descriptor)
    finally:
        os.close(descriptor)
