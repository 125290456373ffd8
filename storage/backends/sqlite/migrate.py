"""Numbered, checksummed, append-only SQL brings a database to the schema of this program.

Each migration is one transaction together with the note that it was done, so an interrupted one leaves the old
schema or the new. A database that knows a migration this program does not is from a newer program and is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

from storage.backends.sqlite.database import PRAGMAS, Row, translated
from storage.backends.sqlite.driver import Connection, complete_statement, connect
from storage.errors import SchemaChanged, SchemaTooNew
from storage.files import write_durably

MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations" / "sqlite"
KINDS = ("control", "log", "state", "workers")

NOTES = """CREATE TABLE IF NOT EXISTS migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_ms INTEGER NOT NULL
) STRICT"""

DONE_SQL = "SELECT number, checksum FROM migrations ORDER BY number"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of one kind of database."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What proves that a step is still the one that was applied."""
        return xxhash.xxh3_128_hexdigest(self.sql.encode())


def migrations(kind: str, root: Path = MIGRATIONS) -> tuple[Migration, ...]:
    """The steps of a kind, in order and without gaps."""
    files = sorted((root / kind).glob("[0-9][0-9][0-9][0-9]_*.sql"))
    steps = tuple(Migration(int(file.name[:4]), file.stem[5:], file.read_text()) for file in files)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1)), f"{kind} migrations have a gap"
    return steps


def migrate(path: Path, kind: str, root: Path = MIGRATIONS) -> int:
    """Bring a database up to date, making the file when there is none; say how many steps were taken.

    Raises SchemaTooNew and SchemaChanged.
    """
    with translated(path):
        connection = connect(path, isolation_level=None)
        try:
            # Only before the first table can a file learn to give space back.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL").fetchall()
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            for pragma in PRAGMAS:
                connection.execute(pragma).fetchall()
            if steps := _lay_out(connection, migrations(kind, root)):
                return steps
            return sum(_take(connection, path, kind, step, root) for step in pending(connection, path, kind, root))
        finally:
            connection.close()


_blank: dict[str, bytes] = {}
"""The file of a new database of each kind, as this process made the first of it."""


def create(path: Path, kind: str) -> None:
    """Make a new database; durable when this returns, but for its name. Raises StoreFull.

    A dozen statements, most of which wait for the disk, lead to the same bytes each time: after the first, they are
    copied. A connection that finds no WAL beside a file in WAL mode begins one, as after any last close.
    """
    content = _blank.get(kind)
    if content is not None:
        write_durably(path, content)
        return
    migrate(path, kind)
    # The last connection to close moves the WAL into the file; where it could not, the file is not all there is.
    if not path.with_name(path.name + "-wal").exists():
        _blank[kind] = path.read_bytes()


def pending(connection: Connection, path: Path, kind: str, root: Path = MIGRATIONS) -> tuple[Migration, ...]:
    """The steps a database lacks. Raises SchemaTooNew and SchemaChanged."""
    connection.execute(NOTES)
    return _missing(connection.execute(DONE_SQL).fetchall(), path, kind, migrations(kind, root))


@cache
def _released(kind: str) -> tuple[Migration, ...]:
    """The steps of this program, read once."""
    return migrations(kind)


def _missing(done: list[Row], path: Path, kind: str, known: tuple[Migration, ...]) -> tuple[Migration, ...]:
    if len(done) > len(known):
        raise SchemaTooNew(
            f"{path} has schema {len(done)} and this program knows up to {len(known)}: "
            "it was written by a newer Headrace; run that version or a newer one"
        )
    for step, (number, checksum) in zip(known, done, strict=False):
        if (step.number, step.checksum) != (number, checksum):
            raise SchemaChanged(
                f"{path} was migrated by another text of {kind} migration {number}; "
                "released migrations never change: run the program that wrote it, or restore a backup"
            )
    return known[len(done) :]


def is_current_by(rows: Callable[[str], list[Row]], path: Path, kind: str) -> bool:
    """As `is_current`, asked of a connection that is open anyway: one more costs as much as opening an index."""
    if not rows("SELECT 1 FROM sqlite_master WHERE name = 'migrations'"):
        return False
    return not _missing(rows(DONE_SQL), path, kind, _released(kind))


def is_current(path: Path, kind: str) -> bool:
    """Whether a database has every step. Raises SchemaTooNew, SchemaChanged, and StateDamaged when there is none."""
    with translated(path):
        # One that is missing must not be made here: it would be empty, and taken for all there is.
        connection = connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        try:
            return not pending(connection, path, kind)
        finally:
            connection.close()


def _lay_out(connection: Connection, steps: tuple[Migration, ...]) -> int:
    """Take all steps in one transaction where there is nothing yet, as each would wait for the disk; else none."""
    if connection.execute("SELECT 1 FROM sqlite_master").fetchall():
        return 0
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have begun with the same file while this one waited for the lock.
        is_empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        if is_empty:
            connection.execute(NOTES)
            for step in steps:
                _write(connection, step)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return len(steps) if is_empty else 0


def _write(connection: Connection, step: Migration) -> None:
    for statement in statements(step.sql):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO migrations VALUES (?, ?, ?, ?)",
        (step.number, step.name, step.checksum, time.time_ns() // 1_000_000),
    )


def _take(connection: Connection, path: Path, kind: str, step: Migration, root: Path) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have taken the step while this one waited for the lock.
        if step not in pending(connection, path, kind, root):
            connection.execute("ROLLBACK")
            return False
        _write(connection, step)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def statements(sql: str) -> Iterator[str]:
    """Split a script; `executescript` would commit before it begins."""
    text = ""
    for line in sql.splitlines(keepends=True):
        text += line
        if complete_statement(text):
            yield text
            text = ""
    assert not text.strip() or text.strip().startswith("--"), f"a migration ends inside a statement: {text!r}"
