"""Pruning one log: bodies that are sealed, rows that nobody may ask for any more, and the space they took.

Everything happens under the lock of the log and in short slices, so that an append waits for one slice at the most.
"""

from __future__ import annotations

from storage.backends.sqlite.database import Database, Transaction
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.locks import FileLock
from storage.backends.sqlite.log import IDEMPOTENCY_MS
from storage.records import Sequence

SLICE_BYTES = 2 * 1024 * 1024
"""About ten milliseconds of deleting and vacuuming."""
SLICE_ROWS = 2_000
VACUUM_PAGES = 512


class LogPruner:
    """The collector's hand on one log; opened at the first slice."""

    def __init__(self, folder: IndexFolder, lock_timeout_ms: int) -> None:
        self._folder = folder
        self._lock_timeout_ms = lock_timeout_ms
        self._open: tuple[Database, FileLock] | None = None

    async def slice(self, *, through: Sequence, older_than_ms: int, expired_ms: int) -> bool:
        """Take away some bodies up to `through` that are older, and rows from before `expired_ms`.

        True when there may be more to take, or there are free pages left to return.
        """
        if self._open is None:
            self._open = (
                await Database.open(self._folder.log),
                FileLock(self._folder.log_lock, self._lock_timeout_ms),
            )
        database, lock = self._open
        async with lock.held():
            async with database.writing() as transaction:
                pruned = await _prune(transaction, through, older_than_ms)
                expired = await _expire(transaction, expired_ms)
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


async def _prune(transaction: Transaction, through: Sequence, older_than_ms: int) -> bool:
    candidates = await transaction.rows(
        "SELECT sequence, length(body) FROM bodies JOIN mutations USING (sequence) "
        "WHERE sequence <= ? AND created_ms < ? ORDER BY sequence LIMIT ?",
        (through, older_than_ms, SLICE_ROWS),
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


async def _expire(transaction: Transaction, expired_ms: int) -> bool:
    """Rows go oldest first and only behind their bodies; the last row stays, as the anchor of the chain."""
    gone = await transaction.rows(
        "DELETE FROM mutations WHERE sequence IN (SELECT mutations.sequence FROM mutations, head "
        "WHERE mutations.sequence <= head.pruned_through AND mutations.sequence < head.sequence "
        "AND mutations.created_ms < ? ORDER BY mutations.sequence LIMIT ?) RETURNING sequence",
        (expired_ms, SLICE_ROWS),
    )
    await transaction.rows(
        "DELETE FROM idempotency WHERE created_ms < (SELECT created_ms FROM head) - ?", (IDEMPOTENCY_MS,)
    )
    return bool(gone)
