"""What an operator should know of an index that works: mutations that were set aside, and builds that do not fit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import closing

from storage.backends.sqlite.builds import read_note
from storage.backends.sqlite.database import Row
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.reader import IndexReader
from storage.interfaces import SetAside, Trouble
from storage.records import MutationId, MutationState, Sequence

NEWEST_MAX = 10
"""How many of those that were set aside are named."""
INLINE_MAX = 1_000
"""A look through more outcomes than this is taken in a thread."""
FAILED_SQL = "SELECT sequence, error FROM outcomes WHERE sequence > ? AND sequence <= ? AND state = ? ORDER BY sequence"


class Troubles:
    """The trouble of one index as one process knows it: it looks at what was applied since it looked last."""

    def __init__(self, folder: IndexFolder) -> None:
        self._folder = folder
        self._through = Sequence(0)
        self._count = 0
        self._newest: deque[SetAside] = deque(maxlen=NEWEST_MAX)
        self._looking = asyncio.Lock()

    async def now(self, reader: IndexReader) -> Trouble:
        """What there is now."""
        applied = reader.progress().applied
        if applied > self._through:
            async with self._looking:
                await self._look(reader, applied)
        bounds = read_note(self._folder.path).bytes_max
        return Trouble(set_aside=tuple(reversed(self._newest)), set_aside_count=self._count, bounded_builds=bounds)

    async def _look(self, reader: IndexReader, applied: Sequence) -> None:
        if applied - self._through > INLINE_MAX:
            rows = await asyncio.to_thread(self._rows_aside, reader, applied)
        else:
            rows = self._rows(reader.state_reader.rows, applied)
        # All that may fail is read before any of it is remembered: else what was read twice would count twice.
        newest = [SetAside(_id_of(reader, sequence), error) for sequence, error in rows[-NEWEST_MAX:]]
        self._newest.extend(newest)
        self._count += len(rows)
        self._through = max(self._through, applied)

    def _rows_aside(self, reader: IndexReader, applied: Sequence) -> list[Row]:
        with closing(reader.another_state_reader()) as state:
            return self._rows(state.rows, applied)

    def _rows(self, rows: Callable[..., list[Row]], applied: Sequence) -> list[Row]:
        return rows(FAILED_SQL, (self._through, applied, MutationState.FAILED))


def _id_of(reader: IndexReader, sequence: Sequence) -> MutationId:
    """The id of a mutation; empty where its row is gone."""
    named = reader.log.rows("SELECT mutation_id FROM mutations WHERE sequence = ?", (sequence,))
    return MutationId(named[0][0] if named else "")
