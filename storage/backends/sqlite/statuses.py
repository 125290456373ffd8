"""The status of mutations: their rows in the log together with their outcomes in the state."""

from __future__ import annotations

from collections.abc import Sequence as Items

import orjson

from storage.backends.sqlite.database import Row
from storage.backends.sqlite.reader import IndexReader
from storage.chain import NO_CHAIN, link
from storage.errors import LogDamaged
from storage.records import Action, Counts, MutationId, MutationState, MutationStatus, Sequence

MUTATION_SQL = (
    "SELECT sequence, mutation_id, action, created_ms, rows, body_hash, chain, "
    "(SELECT before.chain FROM mutations AS before WHERE before.sequence = mutations.sequence - 1) FROM mutations"
)
OUTCOME_SQL = (
    "SELECT sequence, state, applied_ms, inserted, replaced, ignored, deleted, missing, error FROM outcomes "
    "WHERE sequence IN (SELECT value FROM json_each(?))"
)


def status_of(reader: IndexReader, rows: Items[Row]) -> tuple[MutationStatus, ...]:
    """The statuses of some rows of the log, in their order. Raises LogDamaged where one is not what was written."""
    if rows:
        reader.check_log()
        for row in rows:
            _verify(row)
    sequences = orjson.dumps([row[0] for row in rows]).decode()
    applied = reader.progress().applied
    outcomes = {row[0]: row for row in reader.state_reader.rows(OUTCOME_SQL, (sequences,))}
    return tuple(_status(row, outcomes.get(row[0]), applied) for row in rows)


def _verify(row: Row) -> None:
    """Follow the chain from the row before, which is gone for the oldest one that is left."""
    sequence, id, action, created_ms, count, body_hash, chain, before = row
    previous = NO_CHAIN if sequence == 1 else before
    if previous is None:
        return
    try:
        linked = link(
            previous,
            sequence=sequence,
            mutation_id=id,
            action=Action(action),
            created_ms=created_ms,
            rows=count,
            body_hash=body_hash,
        )
    except (ValueError, TypeError) as error:
        raise LogDamaged(f"mutation {sequence} is not what was written: {error}") from error
    if linked != chain:
        raise LogDamaged(f"mutation {sequence} is not what was written, or the one before it; see `headrace doctor`")


def _status(row: Row, outcome: Row | None, applied: Sequence) -> MutationStatus:
    sequence, id, action, created_ms, count = row[:5]
    # An outcome that was forgotten is one of long ago: the mutation is as applied as progress says.
    state = MutationState.APPLIED if sequence <= applied else MutationState.QUEUED
    applied_ms, counts, error = 0, Counts(), ""
    if outcome is not None:
        state, applied_ms, error = MutationState(outcome[1]), outcome[2], outcome[8]
        counts = Counts(
            inserted=outcome[3],
            replaced=outcome[4],
            ignored=outcome[5],
            deleted=outcome[6],
            missing=outcome[7],
        )
    return MutationStatus(
        sequence=Sequence(sequence),
        id=MutationId(id),
        action=Action(action),
        state=state,
        created_ms=created_ms,
        applied_ms=applied_ms,
        rows=count,
        counts=counts,
        error=error,
    )
