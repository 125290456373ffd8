"""Room that is kept for the day the disk is full: a file of nothing, given back in halves.

A full disk stops more than writes. SQLite needs a few pages beside a database before it can so much as read it, and a
delete, which is how somebody makes room, has to be logged first. So a part of the disk is taken while there is plenty.
When something that must go on meets a full disk, half of the file is given back and the thing is tried again; whatever
else wants to be written is refused from then on, until there is room for a whole file again. That is read off the file
system and the file each time, so every process on the data folder sees the same, and nothing has to be told.

The worker makes the file and makes it whole again; everybody may give of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from storage.errors import StoreFailed, StoreFull
from storage.files import TEMPORARY_PREFIX, lock_at_once

log = structlog.get_logger()

FILE = "reserve"
SHARE_MAX = 32
"""The reserve is never more than this part of the file system: a small one is for data."""
LOW_SHARE = 4
"""Writes that take room are refused while less than this part of the reserve is free beside it."""
WHOLE_SHARE = 0.75
"""A file with this much of its size counts as whole: some file systems tell another size every time."""
LOOKED_S = 0.02
"""How long a look at the disk holds: thousands of writes a second need not look each."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Room:
    """What there is. `wanted_bytes` is the size of a whole reserve, 0 where none is kept."""

    free_bytes: int
    kept_bytes: int
    wanted_bytes: int

    @property
    def low_bytes(self) -> int:
        """The least that must be free beside the reserve for writes that take room."""
        return self.wanted_bytes // LOW_SHARE

    @property
    def is_low(self) -> bool:
        """Whether less is free than that."""
        return self.free_bytes < self.low_bytes

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the reserve was given away."""
        return self.kept_bytes >= self.wanted_bytes * WHOLE_SHARE

    @property
    def can_be_whole(self) -> bool:
        """Whether there is room for what is missing of the reserve, and beside it."""
        # Twice the least, or it would be short again with the next write.
        return self.free_bytes - (self.wanted_bytes - self.kept_bytes) >= 2 * self.low_bytes

    @property
    def is_short(self) -> bool:
        """Whether only what frees room may be written: never while there is room, whatever the file is like."""
        return self.is_low if self.is_whole else not self.can_be_whole


class Reserve:
    """The reserve of one data folder, as one process uses it."""

    def __init__(self, folder: Path, wanted_bytes: int) -> None:
        self._folder = folder
        self._file = folder / FILE
        self._wanted_bytes = wanted_bytes
        self._looked_at = -LOOKED_S
        self._room = Room(0, 0, 0)

    def room(self) -> Room:
        """What there is now, or was a moment ago."""
        now = time.monotonic()
        if now - self._looked_at >= LOOKED_S:
            self._room = self._look()
            self._looked_at = now
        return self._room

    def _look(self) -> Room:
        found = os.statvfs(self._folder)
        wanted = min(self._wanted_bytes, found.f_blocks * found.f_frsize // SHARE_MAX)
        kept = self._kept_bytes()
        # Before the worker has made it, there is nothing that could have been given away.
        return Room(found.f_bavail * found.f_frsize, wanted if kept is None else kept, wanted)

    def _kept_bytes(self) -> int | None:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return None

    def check(self) -> None:
        """Refuse what takes room while there is too little. Raises StoreFull."""
        room = self.room()
        if room.is_short:
            raise StoreFull(
                f"the disk of the data folder is full: {room.free_bytes} bytes are free, and {room.kept_bytes} of "
                f"{room.wanted_bytes} are kept for reads and deletes, which go on; free some space, then try again"
            )

    def give(self) -> bool:
        """Give half of the file back; False when that cannot help: there is room, or nothing left to give."""
        self._looked_at = -LOOKED_S
        kept = self._kept_bytes()
        if not kept or self._look().free_bytes >= kept:
            return False
        left = kept // 2 if kept > os.sysconf("SC_PAGE_SIZE") else 0
        with contextlib.suppress(OSError):
            os.truncate(self._file, left)
            log.warning("disk.full", given_bytes=kept - left, left_bytes=left)
            return True
        return False

    async def spend_on(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do what must go on, with room that is given for it. Raises what it raises, StoreFull at the very end."""
        while True:
            try:
                return await work()
            except (StoreFull, StoreFailed):
                if not self.give():
                    raise

    def spend_at_once(self, work: Callable[[], Result]) -> Result:
        """The same for what does not wait."""
        while True:
            try:
                return work()
            except (StoreFull, StoreFailed):
                if not self.give():
                    raise

    def keep(self) -> bool:
        """Make the file, or make it whole again where there is room beside it; True when that was done.

        It may take as long as the file system takes to find the space, so not on an event loop.
        """
        kept = self._kept_bytes()
        room = replace(self._look(), kept_bytes=kept or 0)
        if not room.wanted_bytes or (kept is not None and room.is_whole) or not room.can_be_whole:
            return False
        # A new one has its name when it is whole: what was made of it so far is not what was left of it.
        path = self._file if kept is not None else self._folder / f"{TEMPORARY_PREFIX}{FILE}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self._is_ours(descriptor, path) or not _take(descriptor, room.wanted_bytes, kept or 0):
                return False
            if kept is None:
                path.rename(self._file)
        finally:
            os.close(descriptor)
        self._looked_at = -LOOKED_S
        if kept is not None:
            log.info("disk.has_room", kept_bytes=room.wanted_bytes)
        return True

    def _is_ours(self, descriptor: int, path: Path) -> bool:
        """Whether this process alone makes the file that has this name; the lock ends with the descriptor."""
        if not lock_at_once(descriptor):
            return False
        # Another worker may have made it, and given it its name, between the look and the lock.
        try:
            is_named = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            return False
        if is_named and path != self._file and self._file.exists():
            path.unlink()
            return False
        return is_named


def _take(descriptor: int, size: int, before: int) -> bool:
    """Make a file so large, of space that is there; False when somebody was quicker with the space."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # What was taken is given back, or it would count as kept; and what was given meanwhile stays given.
        os.ftruncate(descriptor, min(before, os.fstat(descriptor).st_size))
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINTR}:
            raise
        return False
    return True


def make_room_to_start(folder: Path) -> None:
    """Give of the reserve before anything is opened: a process that starts on a full disk could not even read."""
    reserve = Reserve(folder, 0)
    room = reserve.room()
    if room.free_bytes < room.kept_bytes // 2:
        reserve.give()
