"""The indexes one service process has open: bounded, and never closed while in use.

Thousands of small indexes must not cost thousands of descriptors: the ones used longest ago are closed first, and one
that nobody uses is closed after half a minute where opening it again is a matter of milliseconds. A large one stays:
its segments are verified whenever they are opened.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager

from storage.backends.sqlite.catalogue import Catalogue
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.log import Log
from storage.backends.sqlite.reader import IndexReader
from storage.backends.sqlite.trouble import Troubles
from storage.chain import Head
from storage.errors import Damaged, IndexDeleted, StoreFailed
from storage.memory import give_back_memory
from storage.records import IndexId, IndexSpec
from storage.reserve import Reserve

IDLE_S = 30.0
LOOK_S = 10.0
"""How often is looked for indexes that nobody uses, while any is open."""


class OpenIndex:
    """One index in use: its reader, and its log once something is appended."""

    def __init__(self, spec: IndexSpec, folder: IndexFolder) -> None:
        self.spec = spec
        self.folder = folder
        self.reader = IndexReader(spec, folder)
        self.troubles = Troubles(folder)
        self.users = 0
        self.used_at = time.monotonic()
        self.is_dropped = False
        self._log: asyncio.Task[Log] | None = None

    async def log(self, lock_timeout_ms: int, check: Callable[[Head], None]) -> Log:
        """The appending side, opened at the first call. Raises LogDamaged."""
        if self._log is None or (self._log.done() and self._log.exception() is not None):
            self._log = asyncio.create_task(
                Log.open(self.folder, self.reader.log, lock_timeout_ms, check), name="log-open"
            )
        return await asyncio.shield(self._log)

    async def close_log(self) -> None:
        """Let go of the appending side; the next append opens it again."""
        opening, self._log = self._log, None
        if opening is not None:
            [opened] = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(opened, Log):
                await opened.close()

    async def close(self) -> None:
        """Let go of the files."""
        await self.close_log()
        await self.reader.close()


class OpenIndexes:
    """The open indexes of one process, least recently used first."""

    def __init__(self, data: DataFolder, catalogue: Catalogue, count_max: int, reserve: Reserve) -> None:
        self._data = data
        self._catalogue = catalogue
        self._count_max = count_max
        self._reserve = reserve
        self._open: OrderedDict[IndexId, OpenIndex] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None

    def is_open(self, id: IndexId) -> bool:
        """Whether an index is in use, or was a short while ago."""
        return id in self._open

    def get(self, spec: IndexSpec) -> OpenIndex:
        """The index, opened if need be, for use before the next await. Raises IndexDeleted."""
        index = self._open.get(spec.id)
        if index is not None:
            # Who asks has looked the index up a moment ago; one that is deleted is dropped from here.
            self._open.move_to_end(spec.id)
            index.used_at = time.monotonic()
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
        except OSError as error:
            self._catalogue.check_lives(spec)
            raise _failed(spec, error) from error

    def _get(self, spec: IndexSpec) -> OpenIndex:
        index = self._open.get(spec.id)
        if index is None:
            # The one that is about to be used is not there to be trimmed, even if all others are in use.
            self._trim(self._count_max - 1)
            # Whoever is the first to open a database needs a few pages beside it, to read as well.
            index = self._reserve.spend_at_once(lambda: OpenIndex(spec, self._data.index(spec.id)))
            self._open[spec.id] = index
            self._look_later()
        self._open.move_to_end(spec.id)
        return index

    @asynccontextmanager
    async def using(self, spec: IndexSpec) -> AsyncIterator[OpenIndex]:
        """The index, kept open for the block."""
        index = self.get(spec)
        index.users += 1
        try:
            yield index
        except OSError as error:
            raise _failed(spec, error) from error
        finally:
            index.users -= 1
            if index.is_dropped and not index.users:
                self._close_later(index)

    def follow(self, id: IndexId) -> None:
        """Something was published in an index: where it is open and asked, catch up on it."""
        index = self._open.get(id)
        if index is not None:
            index.reader.follow()

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

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_S, self._close_idle)

    def _close_idle(self) -> None:
        """Close what nobody has used for a while; of what takes long to open, only the side that appends."""
        self._looking = None
        now, were_open = time.monotonic(), len(self._open)
        for id, index in list(self._open.items()):
            if now - index.used_at < IDLE_S:
                break  # The others were used later.
            if index.users:
                continue
            if index.reader.is_small:
                self._close_later(self._open.pop(id))
            else:
                self._finish_later(index.close_log())
        if len(self._open) < were_open:
            self._finish_later(self._give_back_memory())
        if self._open:
            self._look_later()

    async def _give_back_memory(self) -> None:
        await asyncio.gather(*(self._closing - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.to_thread(give_back_memory)

    def _trim(self, count_max: int) -> None:
        idle = [id for id, index in self._open.items() if index.users == 0]
        for id in idle[: max(0, len(self._open) - count_max)]:
            self._close_later(self._open.pop(id))

    def _close_later(self, index: OpenIndex) -> None:
        self._finish_later(index.close())

    def _finish_later(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(closing, name="index-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close everything."""
        if self._looking is not None:
            self._looking.cancel()
        while self._open:
            _, index = self._open.popitem()
            await index.close()
        await asyncio.gather(*self._closing)


def _failed(spec: IndexSpec, error: OSError) -> StoreFailed:
    return StoreFailed(f'a file of index "{spec.name}" could not be read or written: {error.strerror}; try again')
