"""The sums of `state.db`: what its rows come to, moved with every change, so that a damaged row shows.

SQLite itself notices next to nothing of what a flipped bit does to a row. A sum of hashes does not depend on the
order, so a transaction moves it by what it adds and takes away; whoever reads a whole table can compare.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from storage.apply import Effects, row_digest, signed
from storage.backends.sqlite.database import Reader, Row, Statements
from storage.backends.sqlite.folder import DRAFT_PREFIX
from storage.errors import StateDamaged

MODULUS = 1 << 64
INDEX_ID_LENGTH = 32
VERSIONS_SQL = (
    "SELECT id, label, added, removed, removed_ms FROM vectors WHERE (id, label) > (?, ?) "
    "ORDER BY id, label LIMIT 10000"
)
TOMBSTONES_SQL = "SELECT sequence, label FROM tombstones"
MANIFEST_TABLES = ("parts", "segments", "columns", "metadata_indexes")
REST_TABLES = ("outcomes", "garbage", "namespaces")
_PAIR = struct.Struct("<BQQ").pack
_TRIPLE = struct.Struct("<BQQQ").pack
_ADDED, _REMOVED, _TOMBSTONE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums as they are stored, each a signed 64-bit number."""

    versions: int
    tombstones: int
    manifest: int
    rest: int


def values_sum(values: tuple[object, ...]) -> int:
    """The checksum of the values of one row, as a signed 64-bit number."""
    return signed(xxhash.xxh3_64_intdigest(repr(values).encode()))


class Change:
    """What one transaction does to the sums."""

    def __init__(self) -> None:
        self.versions = self.tombstones = self.manifest = self.rest = 0

    def effects(self, effects: Effects, tombstones: Iterable[tuple[int, int]], now_ms: int) -> None:
        """The rows of `vectors` and `tombstones` that applying writes."""
        hashed = xxhash.xxh3_64_intdigest
        self.versions += sum(hashed(_PAIR(_ADDED, one.label, one.sequence)) for one in effects.added.values())
        for one, removed in effects.passing:
            self.versions += hashed(_PAIR(_ADDED, one.label, one.sequence))
            self.versions += _removed(one.id, one.label, removed, now_ms)
        self.versions += sum(_removed(one.id, one.label, one.sequence, now_ms) for one in effects.removed)
        self.tombstones += tombstones_sum(tombstones)

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Rows that are written to a small table, whole."""
        self._move(table, text_sum(table, rows))

    def drop(self, table: str, rows: Iterable[Row]) -> None:
        """Rows that are taken from a small table, as they were."""
        self._move(table, -text_sum(table, rows))

    def forget_versions(self, rows: Iterable[Row]) -> None:
        """Rows (id, label, added, removed, removed_ms) that are taken from `vectors`."""
        self.versions -= versions_sum(rows)

    def forget_tombstones(self, rows: Iterable[tuple[int, int]]) -> None:
        """Rows (sequence, label) that are taken from `tombstones`."""
        self.tombstones -= tombstones_sum(rows)

    def _move(self, table: str, by: int) -> None:
        if table in MANIFEST_TABLES:
            self.manifest += by
        else:
            assert table in REST_TABLES, table
            self.rest += by

    def moved(self, sums: Sums) -> Sums:
        """The sums after the change."""
        return Sums(
            versions=_wrapped(sums.versions + self.versions),
            tombstones=_wrapped(sums.tombstones + self.tombstones),
            manifest=_wrapped(sums.manifest + self.manifest),
            rest=_wrapped(sums.rest + self.rest),
        )


def index_of(path: Path) -> str:
    """The index that a state belongs to: its folder is named after it, also while it is a draft."""
    return path.parent.name.removeprefix(DRAFT_PREFIX)[:INDEX_ID_LENGTH]


def checksum(index: str, progress: Row, sums: Sums) -> int:
    """The checksum over the progress row and the sums of one index: the state of another is not taken for it."""
    text = repr((index, *progress, sums.versions, sums.tombstones, sums.manifest, sums.rest))
    return signed(xxhash.xxh3_64_intdigest(text.encode()))


def versions_sum(rows: Iterable[Row]) -> int:
    """Of rows (id, label, added, removed, removed_ms) of `vectors`."""
    total = 0
    for id, label, added, removed, removed_ms in rows:
        total += xxhash.xxh3_64_intdigest(_PAIR(_ADDED, label, added))
        if removed:
            total += _removed(id, label, removed, removed_ms)
    return total


def tombstones_sum(rows: Iterable[tuple[int, int]]) -> int:
    """Of rows (sequence, label) of `tombstones`."""
    return sum(xxhash.xxh3_64_intdigest(_PAIR(_TOMBSTONE, sequence, label)) for sequence, label in rows)


def text_sum(table: str, rows: Iterable[Row]) -> int:
    """Of whole rows of a small table."""
    return sum(xxhash.xxh3_64_intdigest(repr((table, *row)).encode()) for row in rows)


def sums_of(connection: Reader | Statements) -> Sums:
    """The sums, from all the rows that there are, within a transaction."""
    _, _, versions = walk_versions(connection)
    return Sums(
        versions=_wrapped(versions),
        tombstones=_wrapped(tombstones_sum(connection.rows(TOMBSTONES_SQL))),
        manifest=_wrapped(sum(_table_sum(connection, table) for table in MANIFEST_TABLES)),
        rest=_wrapped(sum(_table_sum(connection, table) for table in REST_TABLES)),
    )


def walk_versions(connection: Reader | Statements) -> tuple[int, int, int]:
    """How many live rows `vectors` has, their digest, and the sum of all its rows."""
    count = digest = total = 0
    last: tuple[Any, ...] = ("", -1)
    while rows := connection.rows(VERSIONS_SQL, last):
        live = [(id, label) for id, label, _, removed, _ in rows if not removed]
        count += len(live)
        digest += sum(row_digest(id, label) for id, label in live)
        total += versions_sum(rows)
        last = rows[-1][:2]
    return count, digest % MODULUS, total


def compare_rows(connection: Reader | Statements, *, vectors: int, digest: int, sums: Sums | None) -> None:
    """Read every row and compare, within a transaction. Raises StateDamaged, naming the tables that differ."""
    try:
        count, live, versions = walk_versions(connection)
        found = (
            sums
            if sums is None
            else Sums(
                versions=_wrapped(versions),
                tombstones=_wrapped(tombstones_sum(connection.rows(TOMBSTONES_SQL))),
                manifest=_wrapped(sum(_table_sum(connection, table) for table in MANIFEST_TABLES)),
                rest=_wrapped(sum(_table_sum(connection, table) for table in REST_TABLES)),
            )
        )
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise StateDamaged(f"state.db has a row that was never written: {error}") from error
    wrong = []
    if (count, signed(live)) != (vectors, digest):
        wrong.append(f"vectors ({count} live rows, not {vectors}, or others)")
    if sums is not None and found is not None:
        wrong += [
            name
            for name, here, known in (
                ("vectors (versions)", found.versions, sums.versions),
                ("tombstones", found.tombstones, sums.tombstones),
                (", ".join(MANIFEST_TABLES), found.manifest, sums.manifest),
                (", ".join(REST_TABLES), found.rest, sums.rest),
            )
            if here != known
        ]
    if wrong:
        raise StateDamaged(f"state.db is damaged: rows are not what was written in {'; '.join(wrong)}")


def _table_sum(connection: Reader | Statements, table: str) -> int:
    return text_sum(table, connection.rows(f"SELECT * FROM {table}"))  # noqa: S608


def _removed(id: str, label: int, removed: int, removed_ms: int) -> int:
    return xxhash.xxh3_64_intdigest(_TRIPLE(_REMOVED, label, removed, removed_ms)) + row_digest(id, label)


def _wrapped(total: int) -> int:
    return signed(total % MODULUS)
