"""Pruning one log: bodies that are sealed, rows that nobody may ask for any more, and the space they took.

Everything happens under the lock of the log and in short slices, so that an append waits for one slice at the most.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.backends.sqlite.database import Database, Transaction
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.locks import FileLock
from storage.backends.sqlite.log import IDEMPOTENCY_MS
from storage.records import Sequence

SLICE_BYTES = 2 * 1024 * 1024
"""About ten milliseconds of deleting and vacuuming."""
SLICE_ROWS = 2_000
VACUUM_PAGES = 512
EVER_MS = 1 << 62
"""Later than any clock shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to go. Times are those of the clock at the append, and a clock may have been wrong: a time that is
    ahead of ours says nothing, and as mutation ids ascend so do the times of all that follow. Then the order counts:
    what is no newer than a mutation whose outcome was forgotten, by the worker's clock, is as old as that."""

    through: Sequence
    """Bodies up to here are in segments."""
    bodies_before_ms: int
    rows_before_ms: int
    ahead_ms: int = EVER_MS
    bodies_forgotten: Sequence = Sequence(0)
    rows_forgotten: Sequence = Sequence(0)

    def takes_body(self, sequence: int, created_ms: int) -> bool:
        """Whether a body that is sealed goes."""
        return created_ms < self.bodies_before_ms or (created_ms > self.ahead_ms and sequence <= self.bodies_forgotten)

    def takes_row(self, sequence: int, created_ms: int) -> bool:
        """Whether the row of a body that is gone goes as well."""
        return created_ms < self.rows_before_ms or (created_ms > self.ahead_ms and sequence <= self.rows_forgotten)


class LogPruner:
    """The collector's hand on one log; opened at the first slice."""

    def __init__(self, folder: IndexFolder, lock_timeout_ms: int) -> None:
        self._folder = folder
        self._lock_timeout_ms = lock_timeout_ms
        self._open: tuple[Database, FileLock] | None = None

    async def slice(self, due: Due) -> bool:
        """Take away some of what is due.

        True when there may be more to take, or there are free pages left to return.
        """
        if self._open is None:
            lock = FileLock(self._folder.log_lock, self._lock_timeout_ms)
            try:
                self._open = await Database.open(self._folder.log), lock
            except BaseException:
                lock.close()
                raise
        database, lock = self._open
        async with lock.held():
            async with database.writing() as transaction:
                pruned = await _prune(transaction, due)
                expired = await _expire(transaction, due)
            await database.rows(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            [(free,)] = await database.rows("PRAGMA freelist_count")
            await database.checkpoint()
        return pruned or expired or bool(free)

    async def close(self) -> None:
        """Let go of the file."""
        if self._open is not None:
            database, lock = self._open
            await database.close()
            lock.close()
            self._open = None


async def _prune(transaction: Transaction, due: Due) -> bool:
    candidates = await transaction.rows(
        "SELECT sequence, length(body) FROM bodies JOIN mutations USING (sequence) "
        "WHERE sequence <= ? AND (created_ms < ? OR (created_ms > ? AND sequence <= ?)) ORDER BY sequence LIMIT ?",
        (due.through, due.bodies_before_ms, due.ahead_ms, due.bodies_forgotten, SLICE_ROWS),
    )
    last, size = 0, 0
    for sequence, length in candidates:
        last, size = sequence, size + (length or 0)
        if size >= SLICE_BYTES:
            break
    if not last:
        return False
    await transaction.rows("UPDATE head SET pruned_through = max(pruned_through, ?)", (last,))
    await transaction.rows("DELETE FROM bodies WHERE sequence <= ?", (last,))
    return True


async def _expire(transaction: Transaction, due: Due) -> bool:
    """Rows go oldest first and only behind their bodies; the last row stays, as the anchor of the chain."""
    gone = await transaction.rows(
        "DELETE FROM mutations WHERE sequence IN (SELECT mutations.sequence FROM mutations, head "
        "WHERE mutations.sequence <= head.pruned_through AND mutations.sequence < head.sequence "
        "AND (mutations.created_ms < ? OR (mutations.created_ms > ? AND mutations.sequence <= ?)) "
        "ORDER BY mutations.sequence LIMIT ?) RETURNING sequence, created_ms",
        (due.rows_before_ms, due.ahead_ms, due.rows_forgotten, SLICE_ROWS),
    )
    await transaction.rows(
        "DELETE FROM idempotency WHERE created_ms < (SELECT created_ms FROM head) - ?", (IDEMPOTENCY_MS,)
    )
    if gone:
        # Where the head's time stands still, ahead of ours, keys go with the rows of their mutations.
        sequence, created_ms = max(gone)
        await transaction.rows(
            "DELETE FROM idempotency WHERE created_ms > ? AND created_ms <= ? AND sequence <= ?",
            (due.ahead_ms, created_ms, sequence),
        )
    return bool(gone)
