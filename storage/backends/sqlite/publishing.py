"""The state of one index as it is written: the transactions of the worker that holds it.

Every one compares the epoch and the progress it was decided on with what is there, and sets all of it at once, in one
visit to the thread of the connection; a worker that lost the index finds out here and changes nothing. Each moves the
sums with what it writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import astuple
from pathlib import Path

import orjson

from storage.apply import Applied, Effects, signed
from storage.backends.sqlite.database import Database, Row, Statements
from storage.backends.sqlite.state import (
    PROGRESS_COLUMNS,
    PROGRESS_SQL,
    ColumnRow,
    LeaseLost,
    ManifestMoved,
    SegmentRow,
    State,
    labels_of,
    progress_row,
    state_of,
)
from storage.backends.sqlite.sums import Change, Sums, checksum, index_of, sums_of
from storage.records import MutationState, Sequence

EXPIRED = "removed > 0 AND removed_ms < ?"
OVERTAKEN = "removed > 0 AND removed_ms > ? AND removed <= ?"
"""Removed by a clock that was ahead of ours, before something that is old by ours."""


class StateWriter:
    """The transactions of the worker that holds the index."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def take(self, worker: str, expected_epoch: int) -> int:
        """Raise the epoch and own the index. Raises LeaseLost when somebody else was quicker."""

        def work(statements: Statements) -> None:
            state = _compare(statements, expected_epoch)
            statements.rows("UPDATE progress SET epoch = epoch + 1, owner = ?", (worker,))
            if state.sums is None:
                sum_up(statements)
            _settle(statements, Change())

        await self.database.at_once(work)
        return expected_epoch + 1

    async def release(self, epoch: int) -> None:
        """Own the index no longer. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            statements.rows("UPDATE progress SET owner = ''")
            _settle(statements, Change())

        await self.database.at_once(work)

    async def live_labels(self, ids: Items[str]) -> dict[str, int]:
        """The labels of the live versions of these ids."""
        rows = await self.database.rows(
            "SELECT id, label FROM vectors WHERE removed = 0 AND id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(ids)).decode(),),
        )
        return labels_of(rows)

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
            change = Change()
            _write_rows(statements, effects, now_ms, change)
            _write_outcomes(statements, effects, now_ms, change)
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
            _settle(statements, change)

        await self.database.at_once(work)

    async def publish(
        self, epoch: int, *, inputs: Items[str], segment: SegmentRow | None, sealed_through: Sequence | None
    ) -> None:
        """Put a segment (none when no row was live) in the place of its inputs. Raises LeaseLost, ManifestMoved."""
        now_ms = time.time_ns() // 1_000_000

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            change = Change()
            for name in inputs:
                gone = statements.rows("DELETE FROM segments WHERE name = ? RETURNING *", (name,))
                if not gone:
                    raise ManifestMoved(f"segment {name} is gone from the manifest")
                change.drop("segments", gone)
                change.drop("columns", statements.rows("DELETE FROM columns WHERE segment = ? RETURNING *", (name,)))
                _put(statements, change, "garbage", [(name, epoch, now_ms)])
            if segment is not None:
                _put(statements, change, "segments", [(*astuple(segment)[:-1], now_ms)])
            if sealed_through is not None:
                statements.rows("UPDATE progress SET sealed_through = max(sealed_through, ?)", (sealed_through,))
            statements.rows("UPDATE progress SET layout = layout + 1")
            _settle(statements, change)

        await self.database.at_once(work)

    async def publish_again(self, epoch: int, names: Items[str]) -> None:
        """Have everybody open and verify some segments anew. Raises LeaseLost."""
        now_ms = time.time_ns() // 1_000_000

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            change = Change()
            for name in names:
                gone = statements.rows("DELETE FROM segments WHERE name = ? RETURNING *", (name,))
                change.drop("segments", gone)
                _put(statements, change, "segments", [(*row[:-1], max(now_ms, row[-1] + 1)) for row in gone])
            statements.rows("UPDATE progress SET layout = layout + 1")
            _settle(statements, change)

        await self.database.at_once(work)

    async def note_log_damage(self, epoch: int, reason: str) -> None:
        """Have nothing appended to the log from now on. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            statements.rows("INSERT OR REPLACE INTO log_damage VALUES (1, ?)", (reason,))

        await self.database.at_once(work)

    async def condemn(self) -> None:
        """Have every reader refuse the state from now on: a scrub found that it is not what was written."""
        await self.database.at_once(condemn)

    async def publish_column(self, epoch: int, column: ColumnRow) -> None:
        """Add a back-filled column file. Raises LeaseLost, ManifestMoved."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            if not statements.rows("SELECT 1 FROM segments WHERE name = ?", (column.segment,)):
                raise ManifestMoved(f"segment {column.segment} is gone from the manifest")
            change = Change()
            key = (column.segment, column.metadata_index)
            change.drop(
                "columns",
                statements.rows("DELETE FROM columns WHERE segment = ? AND metadata_index = ? RETURNING *", key),
            )
            _put(statements, change, "columns", [(*key, column.file, column.checksum)])
            statements.rows("UPDATE progress SET layout = layout + 1")
            _settle(statements, change)

        await self.database.at_once(work)

    async def forget(self, epoch: int, *, removed_before_ms: int, outcomes_through: int, ahead_ms: int) -> None:
        """Drop versions that no cursor can see any more, and outcomes too old to be asked for. Raises LeaseLost.

        A version that was removed after `ahead_ms`, by a clock that was wrong, goes with those removed after it.
        """

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            change = Change()
            [(horizon,)] = statements.rows(
                "SELECT coalesce(max(removed), 0) FROM vectors WHERE removed > 0 AND removed_ms < ?",
                (removed_before_ms,),
            )
            if horizon:
                statements.rows("UPDATE progress SET list_horizon = max(list_horizon, ?)", (horizon,))
                _forget_versions(statements, change, EXPIRED, (removed_before_ms,))
                _forget_versions(statements, change, OVERTAKEN, (ahead_ms, horizon))
            gone = statements.rows("DELETE FROM outcomes WHERE sequence <= ? RETURNING *", (outcomes_through,))
            change.drop("outcomes", gone)
            _settle(statements, change)

        await self.database.at_once(work)

    async def forget_sealed(
        self, epoch: int, *, newest: int, layout: int, through: Sequence, tombstones: Items[tuple[int, int]]
    ) -> None:
        """Drop parts that are sealed, and tombstones (sequence, label) of rows that are gone, as of a layout.

        Who follows an older layout could miss them, and finds out by `collected_layout`. Raises LeaseLost, and
        ManifestMoved where `newest` is not the newest layout.
        """

        def work(statements: Statements) -> None:
            state = _compare(statements, epoch)
            if state.layout != newest:
                raise ManifestMoved(f"layout is {state.layout}, not {newest}")
            statements.rows("UPDATE progress SET collected_layout = max(collected_layout, ?)", (layout,))
            change = Change()
            change.drop("parts", statements.rows("DELETE FROM parts WHERE sequence <= ? RETURNING *", (through,)))
            statements.many("DELETE FROM tombstones WHERE sequence = ? AND label = ?", tombstones)
            change.forget_tombstones(tombstones)
            _settle(statements, change)

        await self.database.at_once(work)

    async def forget_garbage(self, epoch: int, names: Items[str]) -> None:
        """Drop the notes of folders that are unlinked. Raises LeaseLost."""

        def work(statements: Statements) -> None:
            _compare(statements, epoch)
            change = Change()
            for name in names:
                change.drop("garbage", statements.rows("DELETE FROM garbage WHERE name = ? RETURNING *", (name,)))
            _settle(statements, change)

        await self.database.at_once(work)

    async def vacuum(self, pages: int) -> None:
        """Give free pages back to the file system."""
        await self.database.rows(f"PRAGMA incremental_vacuum({pages:d})")

    async def close(self) -> None:
        """Let go of the file."""
        await self.database.close()


def begin_anew(statements: Statements) -> None:
    """Make a state that was copied nobody's, with graphs and columns to be built, in a transaction of the caller's."""
    _state(statements)
    change = Change()
    change.drop("columns", statements.rows("DELETE FROM columns RETURNING *"))
    change.drop("garbage", statements.rows("DELETE FROM garbage RETURNING *"))
    # A layout of its own: the worker sees that there is something to do.
    statements.rows("UPDATE progress SET owner = '', epoch = epoch + 1, layout = layout + 1")
    _settle(statements, change)


def condemn(statements: Statements) -> None:
    """Have every reader of a state refuse it from now on: what is in it is not what was written."""
    statements.rows("UPDATE sums SET checksum = 0")


def _state(statements: Statements) -> State:
    return state_of(progress_row(statements.rows(PROGRESS_SQL)), _index_of(statements))


def _compare(statements: Statements, epoch: int) -> State:
    state = _state(statements)
    if state.epoch != epoch:
        raise LeaseLost(f"epoch is {state.epoch}, not {epoch}")
    return state


def _put(statements: Statements, change: Change, table: str, rows: list[Row]) -> None:
    """Write whole rows to a small table."""
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        statements.many(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608
        change.add(table, rows)


def _index_of(statements: Statements) -> str:
    [(_, _, path), *_] = statements.rows("PRAGMA database_list")
    return index_of(Path(path))


def sum_up(statements: Statements) -> None:
    """Begin with sums in a state that has none: of what is there, in a transaction of the caller's."""
    sums = sums_of(statements)
    statements.rows(
        "INSERT INTO sums VALUES (1, ?, ?, ?, ?, 0)", (sums.versions, sums.tombstones, sums.manifest, sums.rest)
    )
    _settle(statements, Change())


def _settle(statements: Statements, change: Change) -> None:
    """Move the sums with what the transaction wrote; the last thing it does."""
    row = progress_row(statements.rows(PROGRESS_SQL))
    if row[PROGRESS_COLUMNS] is None:
        return
    sums = change.moved(Sums(*row[PROGRESS_COLUMNS:-2]))
    statements.rows(
        "UPDATE sums SET versions = ?, tombstones = ?, manifest = ?, rest = ?, checksum = ?",
        (
            sums.versions,
            sums.tombstones,
            sums.manifest,
            sums.rest,
            checksum(_index_of(statements), row[:PROGRESS_COLUMNS], sums),
        ),
    )


def _forget_versions(statements: Statements, change: Change, condition: str, values: tuple[int, ...]) -> None:
    last: Row = (-1, 0, "", 0)
    while rows := statements.rows(
        f"SELECT id, label, added, removed, removed_ms FROM vectors WHERE {condition} "  # noqa: S608
        "AND (removed_ms, removed, id, label) > (?, ?, ?, ?) ORDER BY removed_ms, removed, id, label LIMIT 10000",
        (*values, *last),
    ):
        change.forget_versions(rows)
        id, label, _, removed, removed_ms = rows[-1]
        last = (removed_ms, removed, id, label)
    statements.rows(f"DELETE FROM vectors WHERE {condition}", values)  # noqa: S608


def _write_rows(statements: Statements, effects: Effects, now_ms: int, change: Change) -> None:
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
    killed = tombstones(effects)
    statements.many("INSERT INTO tombstones VALUES (?, ?)", killed)
    change.effects(effects, killed, now_ms)
    _put(
        statements,
        change,
        "parts",
        [(part.sequence, part.first_label, part.rows, part.bytes, part.source) for part in effects.parts],
    )
    for name in effects.namespaces:
        new = statements.rows("INSERT OR IGNORE INTO namespaces VALUES (?) RETURNING name", (name,))
        change.add("namespaces", new)


def tombstones(effects: Effects) -> list[tuple[int, int]]:
    """(sequence, label) of everything that is not live after the effects."""
    killed = [(one.sequence, one.label) for one in effects.removed]
    passed = [(removed, one.label) for one, removed in effects.passing]
    return [*killed, *passed, *effects.stillborn]


def _write_outcomes(statements: Statements, effects: Effects, now_ms: int, change: Change) -> None:
    _put(
        statements,
        change,
        "outcomes",
        [
            (
                one.sequence,
                str(one.state),
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
    _put(statements, change, "metadata_indexes", [(one.id, one.property, str(one.type)) for one in effects.created])
    for id in effects.dropped:
        gone = statements.rows("DELETE FROM metadata_indexes WHERE id = ? RETURNING *", (id,))
        change.drop("metadata_indexes", gone)
