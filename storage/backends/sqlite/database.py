"""One SQLite file: a writer for transactions and a reader for what is committed.

A connection that coroutines share shows one the other's uncommitted rows and makes a second BEGIN fail. So there is
one writing connection behind a lock, in a thread of aiosqlite's, and one reading connection that is used from the
event loop for point reads of microseconds. Checkpoints are never automatic: see `checkpoint`.

A visit to that thread and back takes about 0.1 ms, and longer beside a busy one; most statements take less. So what is
in a hurry says all it has to say in one visit (`Database.at_once`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from storage.backends.sqlite.driver import (
    Connection,
    DatabaseError,
    IntegrityError,
    OperationalError,
    aiosqlite,
    connect,
    version_info,
)
from storage.deadlines import is_past, passed
from storage.errors import StateDamaged, StorageError, StoreBusy, StoreFailed, StoreFull, Unavailable

log = structlog.get_logger()

BUSY_TIMEOUT_MS = 5_000
WAL_BYTES_MAX = 16 * 1024 * 1024
"""A WAL with more than this in it is checkpointed by whoever appended last."""
WAL_FILE_BYTES_MAX = 4 * WAL_BYTES_MAX
"""A WAL that could not be begun anew and has grown to this is cut off: its space is given back."""
FRAME_HEAD_BYTES = 24
STEPS_BETWEEN_CHECKS = 100_000
"""After so many steps of SQLite's machine a reader asks whether its deadline has passed."""
NOOP_VERSION = (3, 51, 0)
"""Since then SQLite says how much there is in a WAL without moving any of it."""

Row = tuple[Any, ...]
Values = Sequence[Any]
Result = TypeVar("Result")

PRAGMAS = (
    # A commit is on disk when it returns: a mutation is acknowledged on the strength of it.
    "PRAGMA synchronous=FULL",
    # PASSIVE checkpoints may overlap a commit that resets the WAL (the SQLite bug that `driver` tells of).
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    # A damaged page behind a mapping is a SIGBUS; behind a read it is an error.
    "PRAGMA mmap_size=0",
)


class Transaction:
    """What can be done between BEGIN and COMMIT."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Run one statement and read everything it returns."""
        return [tuple(row) for row in await self._connection.execute_fetchall(sql, values)]

    async def row(self, sql: str, values: Values = ()) -> Row | None:
        """Run one statement that returns one row or none."""
        rows = await self.rows(sql, values)
        assert len(rows) <= 1, sql
        return rows[0] if rows else None

    async def many(self, sql: str, values: Iterable[Values]) -> None:
        """Run one statement once for each set of values; nothing at all for none."""
        rows = list(values)
        if rows:
            await self._connection.executemany(sql, rows)


class Statements:
    """What can be done between BEGIN and COMMIT, in the thread of the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Run one statement and read everything it returns."""
        return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Values = ()) -> Row | None:
        """Run one statement that returns one row or none."""
        rows = self.rows(sql, values)
        assert len(rows) <= 1, sql
        return rows[0] if rows else None

    def many(self, sql: str, values: Iterable[Values]) -> None:
        """Run one statement once for each set of values."""
        self._connection.executemany(sql, values)


class _Prepared(Connection):
    """A connection that has our pragmas from the start: one by one, each would be a visit to its thread."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        for pragma in PRAGMAS:
            self.execute(pragma).fetchall()


class Database:
    """A file that exists, opened for transactions. Close it when done, from the loop that opened it."""

    def __init__(self, path: Path, connection: aiosqlite.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Open an existing file; databases are created by `create.py` only."""
        with translated(path):
            uri = f"{path.absolute().as_uri()}?mode=rw"
            connection = await aiosqlite.connect(uri, uri=True, isolation_level=None, factory=_Prepared)
        return cls(path, connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        """One transaction, committed and on disk when the block ends; rolled back when it raises."""
        async with self._lock:
            with translated(self.path):
                try:
                    # IMMEDIATE takes the lock now. A plain BEGIN would take it at the first write and fail there at
                    # once (SQLITE_BUSY_SNAPSHOT ignores the timeout), after the reads this block has acted on.
                    await self._connection.execute_fetchall("BEGIN IMMEDIATE")
                    yield Transaction(self._connection)
                    await self._connection.execute_fetchall("COMMIT")
                except BaseException:
                    # The rollback must run even when this task is being cancelled, or the lock stays with us.
                    await asyncio.shield(self._rollback())
                    raise

    async def at_once(self, work: Callable[[Statements], Result]) -> Result:
        """One transaction in one visit to the thread: committed and on disk when it returns what `work` did.

        When `work` raises it is rolled back. A caller that is cancelled leaves it to end by itself, whole or not at
        all; whoever writes next comes after it.
        """

        def whole() -> Result:
            return _whole(self._connection._conn, work)  # noqa: SLF001

        async with self._lock:
            with translated(self.path):
                # aiosqlite has a public way for single statements only; its version is pinned.
                return await self._connection._execute(whole)  # type: ignore[no-any-return, no-untyped-call]  # noqa: SLF001

    async def _rollback(self) -> None:
        """Leave no transaction behind; the statement queues behind whatever a cancelled task left running."""
        try:
            await self._connection.execute_fetchall("ROLLBACK")
        except OperationalError as error:
            if "no transaction is active" not in str(error):
                raise

    async def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Read what is committed."""
        async with self._lock:
            with translated(self.path):
                return [tuple(row) for row in await self._connection.execute_fetchall(sql, values)]

    async def checkpoint(self) -> bool:
        """Move the WAL into the file and empty it; False when a reader was in the way.

        TRUNCATE holds the writer lock throughout, so no commit can overlap it.
        """
        async with self._lock:
            with translated(self.path):
                [(busy, _, _)] = await self._connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        return not busy

    async def keep_wal_short(self, bytes_max: int = WAL_BYTES_MAX) -> bool:
        """Checkpoint where more than this is in the WAL; True when it was.

        The file stays as long as it is and is written anew from its start: a commit of megabytes takes a third less
        time where the file does not have to grow. Never fails for want of room or a lock: what was committed before
        is committed, and must be answered so.
        """
        size = self.wal_bytes()
        if size <= bytes_max:
            return False
        try:
            if size > WAL_FILE_BYTES_MAX or version_info < NOOP_VERSION:
                return await self.checkpoint()
            return await self._begin_wal_anew(bytes_max)
        except Unavailable as error:
            log.warning("checkpoint.failed", database=self.path.name, reason=str(error))
            return False

    async def _begin_wal_anew(self, bytes_max: int) -> bool:
        """RESTART holds the writer lock throughout, as TRUNCATE does."""

        def whole() -> bool:
            connection = self._connection._conn  # noqa: SLF001
            [(page_bytes,)] = connection.execute("PRAGMA page_size").fetchall()
            [(_, frames, _)] = connection.execute("PRAGMA wal_checkpoint(NOOP)").fetchall()
            if frames * (page_bytes + FRAME_HEAD_BYTES) <= bytes_max:
                return False
            [(busy, _, _)] = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            return not busy

        async with self._lock:
            with translated(self.path):
                return await self._connection._execute(whole)  # type: ignore[no-any-return, no-untyped-call]  # noqa: SLF001

    def wal_bytes(self) -> int:
        """The size of the file of the WAL now, whatever of it is in use."""
        return file_bytes(self.path.with_name(self.path.name + "-wal"))

    async def close(self) -> None:
        """Let go of the file."""
        await self._connection.close()


class Reader:
    """A read-only connection for one thread at a time, with a cheap way to ask whether anything changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated(path):
            uri = f"{path.absolute().as_uri()}?mode=rw"
            self._connection: Connection = connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            for pragma in (*PRAGMAS, "PRAGMA query_only=ON"):
                self._connection.execute(pragma).fetchall()
            self._version = self._connection.cursor()
            # Asked by SQLite itself, every few milliseconds of a statement.
            self._connection.set_progress_handler(is_past, STEPS_BETWEEN_CHECKS)

    def version(self) -> int:
        """A number that differs after any commit by another connection; a few microseconds."""
        try:
            # Of every request: no context manager, and always the same cursor.
            [(version,)] = self._version.execute("PRAGMA data_version").fetchall()
        except DatabaseError:
            with translated(self.path):
                raise
        return int(version)

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Read what is committed. Everything is fetched: a half-read cursor would hold up checkpoints."""
        with translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Reads inside see one moment."""
        with translated(self.path):
            self._connection.execute("BEGIN").fetchall()
        try:
            yield
        finally:
            with translated(self.path):
                self._connection.execute("COMMIT").fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def _whole(connection: Connection, work: Callable[[Statements], Result]) -> Result:
    connection.execute("BEGIN IMMEDIATE").fetchall()
    try:
        result = work(Statements(connection))
        connection.execute("COMMIT").fetchall()
    except BaseException:
        # A full disk may have rolled it back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK").fetchall()
        raise
    return result


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into what storage raises, with the file in the message."""
    try:
        yield
    except OperationalError as error:
        raise _meaning(path, error) from error
    except MemoryError as error:
        raise StoreFailed(f"there is no memory to work on {path.name} now; try again") from error
    except IntegrityError:
        # A constraint that spoke is an answer; whoever wrote the statement knows what it means.
        raise
    except DatabaseError as error:
        raise StateDamaged(f"{path.name} cannot be read as a database: {error}") from error


def _meaning(path: Path, error: OperationalError) -> StorageError:
    text, name = str(error), getattr(error, "sqlite_errorname", "")
    if text == "interrupted":
        return passed()
    if "locked" in text or "busy" in text:
        return StoreBusy(f"waited {BUSY_TIMEOUT_MS} ms for {path.name} and others still held it; try again")
    # The shared memory beside a database is made by whoever opens it first: that takes room, to read as well.
    if "full" in text or "readonly" in text or name in ("SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN"):
        return StoreFull(f"{path.name} could not be written: {text}; free space or mend the disk and try again")
    if "disk I/O" in text or "memory" in text:
        return StoreFailed(f"{path.name} could not be read or written: {text} ({name}); see to the disk and try again")
    if "unable to open" in text and path.exists():
        return StoreBusy(f"{path.name} could not be opened now, perhaps for want of descriptors: {text}; try again")
    if "unable to open" in text:
        return StateDamaged(f"{path} should exist and cannot be opened: {text}")
    return StateDamaged(f"{path.name}: {text}")


def file_bytes(path: Path) -> int:
    """The size of a file, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
