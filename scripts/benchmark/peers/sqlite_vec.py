"""sqlite-vec: an extension of SQLite in our own process. It scans: every answer is exact, and costs all rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmark.peers.contract import Data, Floats, Limited, Loaded, Where

FIELDS = tuple(f"{kind}_{number}" for kind in ("random", "region") for number in (2, 10, 100, 1_000))
BATCH = 10_000
INSERT = f"INSERT INTO vectors (rowid, embedding, {', '.join(FIELDS)}) VALUES (?, ?{', ?' * len(FIELDS)})"


class SqliteVec(Limited):
    """A virtual table with a metadata column for each field, by which it filters while it scans."""

    package = "sqlite_vec"
    note = "in process, no HTTP to pay; exact, there is no index"
    efforts = (0,)
    abilities = frozenset({"filters", "get", "scan", "write"})

    def __init__(self, folder: Path) -> None:
        self._file = folder / "vectors.db"
        self._kept = threading.local()
        # Of vectors of length one, the order by L2 is the order by cosine; only its L2 uses the wide instructions.
        self.settings = {"distance": "L2", "journal_mode": "WAL", "load": f"transactions of {BATCH}"}

    def create(self, data: Data) -> None:
        """An empty table."""
        columns = ", ".join(f"{name} text" for name in FIELDS)
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"CREATE VIRTUAL TABLE vectors USING vec0(embedding float[{data.dimensions}], {columns})")
        [(library,)] = connection.execute("SELECT sqlite_version()")
        self.settings["SQLite"] = library
        connection.close()

    def load(self, data: Data) -> Loaded:
        """In large transactions."""
        columns = [data.fields[name] for name in FIELDS]
        connection = self._connect()
        begun = time.perf_counter()
        for start, end in data.batches(BATCH):
            texts = zip(*(column[start:end] for column in columns), strict=True)
            with connection:
                connection.executemany(
                    INSERT,
                    (
                        (row, vector.tobytes(), *values)
                        for row, vector, values in zip(range(start, end), data.vectors[start:end], texts, strict=True)
                    ),
                )
        seconds = time.perf_counter() - begun
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return Loaded(searchable_s=seconds, indexed_s=seconds)

    def open(self) -> None:
        """Connections open the file."""

    def session(self, effort: int) -> SqliteVecSession:
        """A connection of its own: SQLite lets the interpreter go while it works."""
        del effort
        return SqliteVecSession(self._connect())

    def close(self) -> None:
        """There is nothing to stop."""

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        query = f"SELECT rowid, embedding, {', '.join(FIELDS)} FROM vectors WHERE rowid = ?"
        # A virtual table finds one row by its id at once; a list of ids it does not take.
        return sum(len(self._connection().execute(query, (row,)).fetchall()) for row in set(rows))

    def scan(self) -> Iterator[int]:
        """One pass over the table, ids alone."""
        cursor = self._connection().execute("SELECT rowid FROM vectors")
        while page := cursor.fetchmany(1_000):
            yield len(page)

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """One row, committed. A virtual table has no upsert."""
        connection = self._connection()
        with connection:
            connection.execute("DELETE FROM vectors WHERE rowid = ?", (row,))
            connection.execute(INSERT, (row, vector.tobytes(), *(metadata[name] for name in FIELDS)))

    def _connect(self) -> Any:
        import pysqlite3
        import sqlite_vec

        connection = pysqlite3.connect(str(self._file), timeout=60, check_same_thread=False)
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.execute("PRAGMA mmap_size = 8000000000")
        return connection

    def _connection(self) -> Any:
        if not hasattr(self._kept, "connection"):
            self._kept.connection = self._connect()
        return self._kept.connection


class SqliteVecSession:
    """A connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """SQL and its arguments."""
        condition, arguments = ("", []) if where is None else (f"AND {where.field} = ?", [where.value])
        text = f"SELECT rowid, distance FROM vectors WHERE embedding MATCH ? AND k = ? {condition}"
        return text, (query.tobytes(), count, *arguments)

    def ask(self, request: Any) -> Any:
        """Run it and take all rows."""
        return self._connection.execute(*request).fetchall()

    def rows(self, answer: Any) -> list[int]:
        """Row ids are row numbers."""
        return [row[0] for row in answer]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
