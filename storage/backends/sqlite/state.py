"""The state of one index as it is read; what the worker that holds the index writes is in `publishing`.

What was damaged on disk is not answered: the row of progress carries a checksum, and a manifest is compared with its
sums whenever it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import orjson

from storage.apply import signed
from storage.backends.sqlite.database import Reader, Row
from storage.backends.sqlite.sums import (
    MANIFEST_TABLES,
    MODULUS,
    TOMBSTONES_SQL,
    Sums,
    checksum,
    compare_rows,
    index_of,
    text_sum,
    tombstones_sum,
)
from storage.errors import StateDamaged
from storage.records import MetadataIndex, MetadataType, MutationId, Progress, Sequence

PROGRESS_SQL = (
    "SELECT epoch, owner, layout, applied, applied_id, applied_ms, applied_chain, applied_bytes, sealed_through, "
    "next_label, progress.vectors, digest, list_horizon, collected_layout, "
    "versions, tombstones, manifest, rest, checksum, (SELECT reason FROM log_damage) "
    "FROM progress LEFT JOIN sums USING (one)"
)
PROGRESS_KINDS = (int, str, int, int, str, int, bytes, int, int, int, int, int, int, int)
"""What a row of progress holds. A damaged page can make it anything, and take the sums away that would show it."""
PROGRESS_COLUMNS = len(PROGRESS_KINDS)


class LeaseLost(Exception):
    """Another worker took the index; whoever sees this lets go of it and does nothing more."""


class ManifestMoved(Exception):
    """What a publish was decided on is no longer there; decide again."""


@dataclass(frozen=True, slots=True)
class State:
    """The progress row."""

    epoch: int
    owner: str
    layout: int
    applied: Sequence
    applied_id: MutationId
    applied_ms: int
    applied_chain: bytes
    applied_bytes: int
    sealed_through: Sequence
    next_label: int
    vectors: int
    digest: int
    list_horizon: Sequence
    collected_layout: int
    sums: Sums | None
    """None where no worker has taken the index since there are sums."""
    log_damage: str
    """What is wrong with the log, as a worker found it; nothing is appended to it then."""

    @property
    def progress(self) -> Progress:
        """What the service tells of it."""
        return Progress(
            applied=self.applied,
            applied_id=self.applied_id,
            applied_ms=self.applied_ms,
            vectors=self.vectors,
            layout=self.layout,
        )


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as the manifest names it."""

    name: str
    rows: int
    first_label: int
    last_label: int
    first_sequence: Sequence
    last_sequence: Sequence
    as_of: Sequence
    bytes: int
    checksum: str
    published_ms: int


@dataclass(frozen=True, slots=True)
class PartRow:
    """A piece of the tail as the manifest names it."""

    sequence: Sequence
    first_label: int
    rows: int
    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A back-filled column file as the manifest names it."""

    segment: str
    metadata_index: int
    file: str
    checksum: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that makes up an index at one moment, read in one transaction."""

    state: State
    segments: tuple[SegmentRow, ...]
    parts: tuple[PartRow, ...]
    columns: tuple[ColumnRow, ...]
    metadata_indexes: tuple[MetadataIndex, ...]
    tombstones: tuple[int, ...]
    killed_by: tuple[Sequence, ...]
    """By which mutation, one for each tombstone."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What happened between an applied sequence and now."""

    state: State
    parts: tuple[PartRow, ...]
    tombstones: tuple[int, ...]
    metadata_indexes: tuple[MetadataIndex, ...]


class StateReader:
    """Committed state, for one thread at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._index = index_of(reader.path)

    def version(self) -> int:
        """Differs after any commit of the worker's."""
        return self._reader.version()

    def state(self) -> State:
        """The progress row now."""
        return state_of(progress_row(self._reader.rows(PROGRESS_SQL)), self._index)

    def manifest(self) -> Manifest:
        """The whole of it."""
        with self._reader.transaction():
            return self.manifest_within()

    def manifest_within(self) -> Manifest:
        """The whole of it, within a transaction of the caller's."""
        state = self.state()
        tombstones = self._reader.rows(TOMBSTONES_SQL)
        tables = {table: self._reader.rows(f"SELECT * FROM {table}") for table in MANIFEST_TABLES}  # noqa: S608
        _check_sums(state, tombstones, tables)
        return Manifest(
            state=state,
            segments=self.manifest_segments(),
            parts=self._parts(state.sealed_through),
            columns=self._columns(),
            metadata_indexes=self.metadata_indexes(),
            tombstones=tuple(label for _, label in tombstones),
            killed_by=tuple(sequence for sequence, _ in tombstones),
        )

    def verified_manifest(self) -> Manifest:
        """The whole of it, with every row of the state compared: for what is to last. Raises StateDamaged."""
        with self._reader.transaction():
            manifest = self.manifest_within()
            self.compare_rows(manifest.state)
            return manifest

    def compare_rows(self, state: State) -> None:
        """Compare every row with its sums, within a transaction of the caller's. Raises StateDamaged."""
        compare_rows(self._reader, vectors=state.vectors, digest=state.digest, sums=state.sums)

    def advance(self, after: Sequence) -> Advance:
        """What came after an applied sequence."""
        with self._reader.transaction():
            return Advance(self.state(), self._parts(after), self._tombstones(after), self.metadata_indexes())

    def metadata_indexes(self) -> tuple[MetadataIndex, ...]:
        """The processed ones, in order of creation."""
        rows = self._reader.rows("SELECT id, property, type FROM metadata_indexes ORDER BY id")
        return tuple(MetadataIndex(id=row[0], property=row[1], type=MetadataType(row[2])) for row in rows)

    def labels(self, ids: Items[str], at: Sequence) -> dict[str, int]:
        """The labels of the versions that were live at a sequence."""
        rows = self._reader.rows(
            "SELECT id, label FROM vectors WHERE id IN (SELECT value FROM json_each(?)) "
            "AND added <= ? AND (removed = 0 OR removed > ?)",
            (orjson.dumps(list(ids)).decode(), at, at),
        )
        return labels_of(rows)

    def rows(self, sql: str, values: Items[object] = ()) -> list[Row]:
        """Read what is committed."""
        return self._reader.rows(sql, values)

    def manifest_segments(self) -> tuple[SegmentRow, ...]:
        """The segments now, oldest labels first."""
        rows = self._reader.rows(
            "SELECT name, rows, first_label, last_label, first_sequence, last_sequence, as_of, bytes, checksum, "
            "published_ms FROM segments ORDER BY first_label"
        )
        return tuple(SegmentRow(*row) for row in rows)

    def _parts(self, after: int) -> tuple[PartRow, ...]:
        rows = self._reader.rows(
            "SELECT sequence, first_label, rows, bytes, source FROM parts WHERE sequence > ? ORDER BY sequence",
            (after,),
        )
        return tuple(PartRow(*row) for row in rows)

    def _columns(self) -> tuple[ColumnRow, ...]:
        return tuple(
            ColumnRow(*row) for row in self._reader.rows("SELECT segment, metadata_index, file, checksum FROM columns")
        )

    def _tombstones(self, after: int) -> tuple[int, ...]:
        return tuple(
            label for (label,) in self._reader.rows("SELECT label FROM tombstones WHERE sequence > ?", (after,))
        )

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()


def _check_sums(state: State, tombstones: list[Row], tables: Mapping[str, list[Row]]) -> None:
    """What a manifest is made of is what was written. Raises StateDamaged."""
    if state.sums is None:
        return
    try:
        found = sum(text_sum(table, rows) for table, rows in tables.items())
        killed = tombstones_sum(tombstones)
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise StateDamaged(f"state.db has a row that was never written: {error}") from error
    if (signed(found % MODULUS), signed(killed % MODULUS)) != (state.sums.manifest, state.sums.tombstones):
        raise StateDamaged("state.db is damaged: its manifest or its tombstones are not what was written")


def labels_of(rows: Items[Row]) -> dict[str, int]:
    """Rows (id, label) as a dictionary. A damaged row can hold anything, whatever its table says of types."""
    if not all(type(id) is str and type(label) is int and label >= 0 for id, label in rows):
        raise StateDamaged("state.db is damaged: a vector has an id or a label that was never written")
    return dict(rows)


def progress_row(rows: Items[Row]) -> Row:
    """The row of progress, of which there is one. Raises StateDamaged."""
    if len(rows) != 1:
        raise StateDamaged("state.db is damaged: its row of progress is gone")
    return rows[0]


def state_of(row: Row, index: str) -> State:
    """The progress row as a value. Raises StateDamaged where it is not what was written."""
    progress, (*stored, known, log_damage) = row[:PROGRESS_COLUMNS], row[PROGRESS_COLUMNS:]
    sums = None if known is None else Sums(*stored)
    are_kinds = tuple(map(type, progress)) == PROGRESS_KINDS
    if not are_kinds or (sums is not None and checksum(index, progress, sums) != known):
        raise StateDamaged("state.db is damaged: its row of progress is not what was written")
    return State(*(*progress, sums, log_damage or ""))
