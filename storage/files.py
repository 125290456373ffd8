"""Files that survive a power cut: whole, checked and never changed after they have a name.

A file gets its final name only when its bytes are on disk, and the name is on disk before anybody is told
of it. So a reader finds a file whole or not at all. Published files are read-only and are only ever
unlinked: whoever has one mapped keeps it.

A full or read-only disk is `StoreFull`: the same call may work once there is room.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from storage.errors import StoreFull

TEMPORARY_PREFIX = ".tmp-"
"""Files and folders with this prefix are unfinished; whoever may collect may unlink them."""
BLOCK_BYTES = 1024 * 1024
"""The size of the blocks that have a checksum of their own, so that damage can be told from its
neighbours."""
READ_ONLY = 0o444
_READ_BYTES = 1024 * 1024
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSum:
    """What a file must be: its size, the xxh3-128 of all of it, and the xxh3-64 of each block, in hex.

    `blocks` is empty for a file that can be made again from others.
    """

    bytes: int
    checksum: str
    blocks: tuple[str, ...] = ()


def write_whole(path: Path, content: bytes | memoryview) -> FileSum:
    """Put a read-only file in place: it is on disk under its name when this returns.

    A crash before the rename leaves a file with the temporary prefix; after it, the whole file. A file that
    already has the name is replaced by the rename and stays readable to whoever has it open. Raises
    StoreFull.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with FileWriter(temporary) as writer:
            writer.write(content)
        with full_disk_told(path):
            temporary.rename(path)
        fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return writer.sum()


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file that may be written to later; it is on disk, but for its name. Raises StoreFull."""
    with full_disk_told(path), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises StoreFull."""
    with full_disk_told(path):
        _fsync(path)


def finish(path: Path) -> None:
    """Make a file that somebody else wrote durable and read-only. Raises StoreFull."""
    with full_disk_told(path):
        path.chmod(READ_ONLY)
        _fsync(path)


def lock_at_once(descriptor: int) -> bool:
    """Lock an open file or folder for us alone; False where somebody has it. The lock ends with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_file(path: Path) -> str:
    """The xxh3-128 of a file, in hex. Raises OSError when it cannot be read."""
    return sum_file(path).checksum


def sum_file(path: Path, *, blocks: bool = False) -> FileSum:
    """What a file is now; with a checksum per block when `blocks` is set. Raises OSError."""
    digest = _Digest(blocks=blocks)
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.sum()


@contextlib.contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn what the system says of a full or read-only disk into StoreFull; any other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreFull(
            f"{path} could not be written: {os.strerror(error.errno or 0)}; free some space, then try again"
        ) from error


class FileWriter:
    """Writes a new file from front to back and knows its checksums. Leaving the block puts it on disk,
    read-only.

    Only one process may know the path: the file must not exist, and has no readers before it is whole.
    """

    def __init__(self, path: Path, *, blocks: bool = False) -> None:
        self._path = path
        self._digest = _Digest(blocks=blocks)
        with full_disk_told(path):
            self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing writes what is buffered, so it can find the disk full as any write can.
        with full_disk_told(self._path), self._file:
            if kind is None:
                self._file.flush()
                os.fchmod(self._file.fileno(), READ_ONLY)
                os.fsync(self._file.fileno())

    def write(self, content: bytes | memoryview) -> None:
        """Add to the end. Raises StoreFull."""
        view = memoryview(content)
        if not view.nbytes:
            return
        flat = view.cast("B")
        with full_disk_told(self._path):
            self._file.write(flat)
        self._digest.update(flat)

    def sum(self) -> FileSum:
        """The size and checksums of what was written so far."""
        return self._digest.sum()


class _Digest:
    """Checksums of bytes as they pass: of all of them, and of each full or last block if asked for."""

    def __init__(self, *, blocks: bool) -> None:
        self._whole = xxhash.xxh3_128()
        self._bytes = 0
        self._wants_blocks = blocks
        self._blocks: list[str] = []
        self._block = xxhash.xxh3_64()
        self._in_block = 0

    def update(self, content: memoryview) -> None:
        self._whole.update(content)
        self._bytes += content.nbytes
        while self._wants_blocks and content.nbytes:
            piece = content[: BLOCK_BYTES - self._in_block]
            self._block.update(piece)
            self._in_block += piece.nbytes
            content = content[piece.nbytes :]
            if self._in_block == BLOCK_BYTES:
                self._blocks.append(self._block.hexdigest())
                self._block.reset()
                self._in_block = 0

    def sum(self) -> FileSum:
        last = (self._block.hexdigest(),) if self._in_block else ()
        return FileSum(bytes=self._bytes, checksum=self._whole.hexdigest(), blocks=(*self._blocks, *last))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
