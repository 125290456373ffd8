"""The state of one index: reading it, and the transactions of the worker that holds it.

Every writing transaction compares the epoch and the progress it was decided on with what is there, and sets all of it
at once, in one visit to the thread of the connection; a worker that lost the index finds out here and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

import orjson

from storage.apply import Applied, Effects, signed
from storage.backends.sqlite.database import Database, Reader, Row, Statements
from storage.errors import StateDamaged
from storage.records import MetadataIndex, MetadataType, MutationId, MutationState, Progress, Sequence

PROGRESS_SQL = (
    "SELECT epoch, owner, layout, applied, applied_id, applied_ms, applied_chain, applied_bytes, sealed_through, "
    "next_label, vectors, digest, list_horizon, collected_layout FROM progress"
)


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

    def version(self) -> int:
        """Differs after any commit of the worker's."""
        return self._reader.version()

    def state(self) -> State:
        """The progress row now."""
        [row] = self._reader.rows(PROGRESS_SQL)
        return state_of(row)

    def manifest(self) -> Manifest:
        """The whole of it."""
        with self._reader.transaction():
            return self.manifest_within()

    def manifest_within(self) -> Manifest:
        """The whole of it, within a transaction of the caller's."""
        state = self.state()
        return Manifest(
            state=state,
            segments=self.manifest_segments(),
            parts=self._parts(state.sealed_through),
            columns=self._columns(),
            metadata_indexes=self.metadata_indexes(),
            tombstones=self._tombstones(0),
        )

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
        return dict(rows)

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


class StateWriter:
    """The transactions of the worker that holds the index."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def take(self, worker: str, expected_epoch: int) -> int:
        """Raise the epoch and own the index. Raises LeaseLost when somebody else was quicker."""

        def work(statements: Statements) -> None:
            _compare(statements, expected_epoch)
            statements.rows("UPDATE progress SET epoch = epoch + 1, owner = ?", (worker,))

        await self.database.at_once(work)
        return expected_epoch + 1

    async def release(self, epoch: int) -> None:
        """Own the index no longer. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            statements.rows("UPDATE progress SET owner = ''")

        await self.database.at_once(work)

    async def live_labels(self, ids: Items[str]) -> dict[str, int]:
        """The labels of the live versions of these ids."""
        rows = await self.database.rows(
            "SELECT id, label FROM vectors WHERE removed = 0 AND id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(ids)).decode(),),
        )
        return dict(rows)

    async def count_try(self, epoch: int, sequence: Sequence) -> int:
        """Remember, before it is tried, that applying a mutation alone is begun; say how often it was."""

        def work(statements: Statements) -> int:
            _compare(statements, epoch)
            [(tries,)] = statements.rows(
                "INSERT INTO attempts VALUES (?, 1) ON CONFLICT DO UPDATE SET tries = tries + 1 RETURNING tries",
                (sequence,),
            )
            return int(tries)

        return await self.database.at_once(work)

    async def apply(self, epoch: int, expected: Sequence, effects: Effects, to: Applied) -> None:
        """Write effects and move progress, whole or not at all. Raises LeaseLost, ManifestMoved."""
        now_ms = time.time_ns() // 1_000_000

        def work(statements: Statements) -> None:
            state = _compare(statements, epoch)
            if state.applied != expected:
                raise ManifestMoved(f"progress is {state.applied}, not {expected}")
            _write_rows(statements, effects, now_ms)
            _write_outcomes(statements, effects, now_ms)
            statements.rows(
                "UPDATE progress SET applied = ?, applied_id = ?, applied_ms = max(applied_ms, ?), applied_chain = ?, "
                "applied_bytes = ?, next_label = ?, vectors = vectors + ?, digest = ?",
                (
                    to.sequence,
                    to.id,
                    now_ms,
                    to.chain,
                    to.bytes_through,
                    effects.next_label,
                    effects.vectors,
                    signed((state.digest + effects.digest) % (1 << 64)),
                ),
            )

        await self.database.at_once(work)

    async def publish(
        self, epoch: int, *, inputs: Items[str], segment: SegmentRow | None, sealed_through: Sequence | None
    ) -> None:
        """Put a segment (none when no row was live) in the place of its inputs. Raises LeaseLost, ManifestMoved."""
        now_ms = time.time_ns() // 1_000_000

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            for name in inputs:
                if not statements.rows("DELETE FROM segments WHERE name = ? RETURNING name", (name,)):
                    raise ManifestMoved(f"segment {name} is gone from the manifest")
                statements.rows("DELETE FROM columns WHERE segment = ?", (name,))
                statements.rows("INSERT INTO garbage VALUES (?, ?, ?)", (name, epoch, now_ms))
            if segment is not None:
                statements.rows(
                    "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        segment.name,
                        segment.rows,
                        segment.first_label,
                        segment.last_label,
                        segment.first_sequence,
                        segment.last_sequence,
                        segment.as_of,
                        segment.bytes,
                        segment.checksum,
                        now_ms,
                    ),
                )
            if sealed_through is not None:
                statements.rows("UPDATE progress SET sealed_through = max(sealed_through, ?)", (sealed_through,))
            statements.rows("UPDATE progress SET layout = layout + 1")

        await self.database.at_once(work)

    async def publish_column(self, epoch: int, column: ColumnRow) -> None:
        """Add a back-filled column file. Raises LeaseLost, ManifestMoved."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            if not statements.rows("SELECT 1 FROM segments WHERE name = ?", (column.segment,)):
                raise ManifestMoved(f"segment {column.segment} is gone from the manifest")
            statements.rows(
                "INSERT OR REPLACE INTO columns VALUES (?, ?, ?, ?)",
                (column.segment, column.metadata_index, column.file, column.checksum),
            )
            statements.rows("UPDATE progress SET layout = layout + 1")

        await self.database.at_once(work)

    async def forget(self, epoch: int, *, removed_before_ms: int, outcomes_through: int) -> None:
        """Drop versions that no cursor can see any more, and outcomes too old to be asked for. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            [(horizon,)] = statements.rows(
                "SELECT coalesce(max(removed), 0) FROM vectors WHERE removed > 0 AND removed_ms < ?",
                (removed_before_ms,),
            )
            if horizon:
                statements.rows("UPDATE progress SET list_horizon = max(list_horizon, ?)", (horizon,))
                statements.rows("DELETE FROM vectors WHERE removed > 0 AND removed_ms < ?", (removed_before_ms,))
            statements.rows("DELETE FROM outcomes WHERE sequence <= ?", (outcomes_through,))

        await self.database.at_once(work)

    async def forget_sealed(
        self, epoch: int, *, layout: int, through: Sequence, tombstones: Items[tuple[int, int]]
    ) -> None:
        """Drop parts that are sealed, and tombstones (sequence, label) of rows that are gone, as of a layout.

        Who follows an older layout could miss them, and finds out by `collected_layout`. Raises LeaseLost,
        ManifestMoved.
        """

        def work(statements: Statements) -> None:
            state = _compare(statements, epoch)
            if state.layout != layout:
                raise ManifestMoved(f"layout is {state.layout}, not {layout}")
            statements.rows("UPDATE progress SET collected_layout = layout")
            statements.rows("DELETE FROM parts WHERE sequence <= ?", (through,))
            statements.many("DELETE FROM tombstones WHERE sequence = ? AND label = ?", tombstones)

        await self.database.at_once(work)

    async def forget_garbage(self, epoch: int, names: Items[str]) -> None:
        """Drop the notes of folders that are unlinked. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            statements.many("DELETE FROM garbage WHERE name = ?", [(name,) for name in names])

        await self.database.at_once(work)

    async def vacuum(self, pages: int) -> None:
        """Give free pages back to the file system."""
        await self.database.rows(f"PRAGMA incremental_vacuum({pages:d})")

    async def close(self) -> None:
        """Let go of the file."""
        await self.database.close()


def _compare(statements: Statements, epoch: int) -> State:
    [row] = statements.rows(PROGRESS_SQL)
    state = state_of(row)
    if state.epoch != epoch:
        raise LeaseLost(f"epoch is {state.epoch}, not {epoch}")
    return state


def _write_rows(statements: Statements, effects: Effects, now_ms: int) -> None:
    statements.many(
        "UPDATE vectors SET removed = ?, removed_ms = ? WHERE id = ? AND label = ? AND removed = 0",
        [(one.sequence, now_ms, one.id, one.label) for one in effects.removed],
    )
    statements.many(
        "INSERT INTO vectors VALUES (?, ?, ?, ?, ?)",
        [
            *((one.id, one.label, one.sequence, 0, 0) for one in effects.added.values()),
            *((one.id, one.label, one.sequence, removed, now_ms) for one, removed in effects.passing),
        ],
    )
    statements.many("INSERT INTO tombstones VALUES (?, ?)", tombstones(effects))
    statements.many(
        "INSERT INTO parts VALUES (?, ?, ?, ?, ?)",
        [(part.sequence, part.first_label, part.rows, part.bytes, part.source) for part in effects.parts],
    )
    statements.many("INSERT OR IGNORE INTO namespaces VALUES (?)", [(name,) for name in effects.namespaces])


def tombstones(effects: Effects) -> list[tuple[int, int]]:
    """(sequence, label) of everything that is not live after the effects."""
    killed = [(one.sequence, one.label) for one in effects.removed]
    passed = [(removed, one.label) for one, removed in effects.passing]
    return [*killed, *passed, *effects.stillborn]


def _write_outcomes(statements: Statements, effects: Effects, now_ms: int) -> None:
    statements.many(
        "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                one.sequence,
                one.state,
                now_ms,
                one.counts.inserted,
                one.counts.replaced,
                one.counts.ignored,
                one.counts.deleted,
                one.counts.missing,
                one.error,
            )
            for one in effects.outcomes
        ],
    )
    statements.many(
        "DELETE FROM attempts WHERE sequence = ?",
        [(one.sequence,) for one in effects.outcomes if one.state is not MutationState.QUEUED],
    )
    statements.many(
        "INSERT INTO metadata_indexes VALUES (?, ?, ?)",
        [(one.id, one.property, one.type) for one in effects.created],
    )
    statements.many("DELETE FROM metadata_indexes WHERE id = ?", [(id,) for id in effects.dropped])


def state_of(row: Row) -> State:
    """The progress row as a value."""
    if len(row) != 14:
        raise StateDamaged(f"the progress row has {len(row)} columns, not 14")
    epoch, owner, layout, applied, applied_id, applied_ms, chain, *rest = row
    return State(epoch, owner, layout, applied, applied_id, applied_ms, bytes(chain), *rest)
