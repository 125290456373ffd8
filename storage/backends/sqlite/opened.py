"""The indexes one service process has open: bounded, and never closed while in use.

Thousands of small indexes must not cost thousands of descriptors: the ones used longest ago are closed first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from storage.backends.sqlite.catalogue import Catalogue
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.log import Log
from storage.backends.sqlite.reader import IndexReader
from storage.chain import Head
from storage.errors import Damaged, IndexDeleted
from storage.records import IndexId, IndexSpec


class OpenIndex:
    """One index in use: its reader, and its log once something is appended."""

    def __init__(self, spec: IndexSpec, folder: IndexFolder) -> None:
        self.spec = spec
        self.folder = folder
        self.reader = IndexReader(spec, folder)
        self.users = 0
        self.is_dropped = False
        self._log: asyncio.Task[Log] | None = None

    async def log(self, lock_timeout_ms: int, check: Callable[[Head], None]) -> Log:
        """The appending side, opened at the first call. Raises LogDamaged."""
        if self._log is None or (self._log.done() and self._log.exception() is not None):
            self._log = asyncio.create_task(
                Log.open(self.folder, self.reader.log, lock_timeout_ms, check), name="log-open"
            )
        return await asyncio.shield(self._log)

    async def close(self) -> None:
        """Let go of the files."""
        if self._log is not None:
            [opened] = await asyncio.gather(self._log, return_exceptions=True)
            if isinstance(opened, Log):
                await opened.close()
        await self.reader.close()


class OpenIndexes:
    """The open indexes of one process, least recently used first."""

    def __init__(self, data: DataFolder, catalogue: Catalogue, count_max: int) -> None:
        self._data = data
        self._catalogue = catalogue
        self._count_max = count_max
        self._open: OrderedDict[IndexId, OpenIndex] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def is_open(self, id: IndexId) -> bool:
        """Whether an index is in use, or was a short while ago."""
        return id in self._open

    def get(self, spec: IndexSpec) -> OpenIndex:
        """The index, opened if need be, for use before the next await. Raises IndexDeleted."""
        index = self._open.get(spec.id)
        if index is not None:
            # Who asks has looked the index up a moment ago; one that is deleted is dropped from here.
            self._open.move_to_end(spec.id)
            return index
        with self.while_it_lives(spec):
            return self._get(spec)

    @contextmanager
    def while_it_lives(self, spec: IndexSpec) -> Iterator[None]:
        """The files of a deleted index may be missing: that it is gone is the answer, not that they are."""
        self._catalogue.check_lives(spec)
        try:
            yield
        except Damaged:
            self._catalogue.check_lives(spec)
            raise

    def _get(self, spec: IndexSpec) -> OpenIndex:
        index = self._open.get(spec.id)
        if index is None:
            # The one that is about to be used is not there to be trimmed, even if all others are in use.
            self._trim(self._count_max - 1)
            index = self._open[spec.id] = OpenIndex(spec, self._data.index(spec.id))
        self._open.move_to_end(spec.id)
        return index

    @asynccontextmanager
    async def using(self, spec: IndexSpec) -> AsyncIterator[OpenIndex]:
        """The index, kept open for the block."""
        index = self.get(spec)
        index.users += 1
        try:
            yield index
        finally:
            index.users -= 1
            if index.is_dropped and not index.users:
                self._close_later(index)

    def drop(self, id: IndexId) -> None:
        """Close an index that was deleted, once nobody uses it: a file keeps its space while it is open.

        A no-op for one that is not open.
        """
        index = self._open.pop(id, None)
        if index is None:
            return
        index.is_dropped = True
        if not index.users:
            self._close_later(index)

    def drop_dead(self, id: IndexId) -> None:
        """Close an index that is open and was deleted, by whichever process."""
        index = self._open.get(id)
        if index is None:
            return
        try:
            self._catalogue.check_lives(index.spec)
        except IndexDeleted:
            self.drop(id)

    def _trim(self, count_max: int) -> None:
        idle = [id for id, index in self._open.items() if index.users == 0]
        for id in idle[: max(0, len(self._open) - count_max)]:
            self._close_later(self._open.pop(id))

    def _close_later(self, index: OpenIndex) -> None:
        task = asyncio.create_task(index.close(), name="index-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close everything."""
        while self._open:
            _, index = self._open.popitem()
            await index.close()
        await asyncio.gather(*self._closing)
