"""A file in the form that Vectorize takes for uploads, as one end of a transfer: one vector a line."""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import xxhash

from service.commands.failure import CommandFailed
from service.commands.transfer_ends import Description, Piece, Told
from service.commands.transfer_journal import Journal, Progress

PIECE_VALUES = 1_000_000
PIECE_LINES = 1_000


class FileSource:
    """Vectors in a file. It is read twice: once to count and check it, before anything is sent.

    File work blocks the loop, which has nothing else to do then.
    """

    def __init__(self, path: Path, *, metric: str, metadata_indexes: tuple[tuple[str, str], ...]) -> None:
        self._path = path
        self._metric = metric
        self._metadata_indexes = metadata_indexes
        self._dimensions = 0
        try:
            state = path.stat()
        except OSError as error:
            raise CommandFailed(f"{path} cannot be read: {error.strerror}") from error
        self.shown = str(path)
        self.identity = f"{path.resolve()} ({state.st_size:,} bytes, changed at {state.st_mtime_ns})"

    async def describe(self) -> Description:
        """The dimensions of the first vector, and what the command line says of the rest."""
        try:
            with self._path.open("rb") as file:
                first = next(filter(bytes.strip, file), b"")
        except OSError as error:
            raise CommandFailed(f"{self._path} cannot be read: {error.strerror}") from error
        if not first:
            raise CommandFailed(f"{self._path} has no vectors")
        self._dimensions = len(self._vector(first, 1)[1])
        return Description(dimensions=self._dimensions, metric=self._metric, metadata_indexes=self._metadata_indexes)

    async def count(self, progress: Progress, _journal: Journal, told: Told, /) -> None:
        """Check every line, and count the ids: of lines with the same one, the last stays."""
        if progress.total >= 0:
            return
        hashes = array("Q")
        size, seen = self._path.stat().st_size, 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                seen += len(line)
                if number % PIECE_LINES == 0:
                    told(seen, size)
                    await asyncio.sleep(0)  # So that Ctrl-C is heard.
                if line.strip():
                    id, values = self._vector(line, number)
                    if len(values) != self._dimensions:
                        found = f"{len(values)} values, where the first vector has {self._dimensions}"
                        raise CommandFailed(f"{self._path}:{number}: {found}")
                    hashes.append(xxhash.xxh3_64_intdigest(id.encode()))
        progress.total = len(np.unique(np.frombuffer(hashes, dtype=np.uint64)))

    def _vector(self, line: bytes, number: int) -> tuple[str, list[object]]:
        try:
            vector = orjson.loads(line)
            id, values = vector["id"], vector["values"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed(
                f'{self._path}:{number}: no vector; each line is one object {{"id": ..., "values": [...]}}'
            ) from error
        if not isinstance(id, str) or not isinstance(values, list):
            raise CommandFailed(f"{self._path}:{number}: the id must be a string and the values an array")
        return id, values

    async def pieces(self, progress: Progress, _journal: Journal, /) -> AsyncIterator[Piece]:
        """The lines of the file, as they are."""
        size = max(1, min(PIECE_LINES, PIECE_VALUES // max(1, self._dimensions)))
        position = progress.position
        with self._path.open("rb") as file:
            file.seek(position)
            while lines := list(islice(file, size)):
                position += sum(map(len, lines))
                yield Piece(lines=tuple(_ended(lines)), gone=0, position=position)


class FileTarget:
    """A file of vectors. It has its name once it is whole; until then it is called `.part`."""

    def __init__(self, path: Path) -> None:
        self.shown = str(path)
        self.identity = str(path.resolve())
        self._path = path
        self._part = path.with_name(path.name + ".part")

    async def prepare(self, _wanted: Description, progress: Progress, /) -> None:
        """Refuse to replace a file, and see that what was written before a break is there."""
        if self._path.exists():
            raise CommandFailed(f"{self._path} is there already; remove it, or name another file")
        kept = int(progress.mark or 0)
        kept = self._part.stat().st_size if self._part.is_file() else 0
        if kept < int(progress.mark or 0):
            progress.write_anew()
        progress.before = 0

    async def put(self, lines: Sequence[bytes], mark: str) -> str:
        """Append and sync, in place of whatever a break has left behind the mark."""
        try:
            with self._part.open("ab") as file:
                file.truncate(int(mark or 0))
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                return str(file.tell())
        except OSError as error:
            raise CommandFailed(f"{self._part} cannot be written: {error.strerror}") from error

    async def settle(self, mark: str) -> int:
        """Count the lines, and give the file its name."""
        await self.put((), mark)
        with self._part.open("rb") as file:
            count = sum(1 for _ in file)
        self._part.replace(self._path)
        return count


def _ended(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Lines with a vector, each with its end; the last of a file may come without."""
    return (line if line.endswith(b"\n") else line + b"\n" for line in lines if line.strip())
