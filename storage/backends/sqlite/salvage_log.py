"""What is left of a log, row by row, and a new log with it.

A row whose header can be followed in the chain is kept, and its body where it is what was written. In the place of
what is lost stands a mutation without a body: it is set aside as failed when its turn comes, so numbers and order stay,
and its id goes on saying what became of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from storage.backends.sqlite.database import Reader, Row, translated
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.migrate import migrate
from storage.chain import NO_CHAIN, hash_body, link, next_mutation_id
from storage.errors import StorageError
from storage.records import Action

COLUMNS = "sequence, mutation_id, action, created_ms, rows, caller, metadata_index, bytes_through, body_hash, chain"
_TYPES = (int, str, str, int, int, bytes, int, int, bytes, bytes)
NO_BODY = b""
"""The body of a mutation that is lost: it cannot be unpacked, so it fails, and stands in the chain."""


@dataclass(frozen=True, slots=True)
class KeptMutation:
    """One row of the new log. `is_lost` says that it stands for one that cannot be applied any more."""

    sequence: int
    mutation_id: str
    action: str
    created_ms: int
    rows: int
    caller: bytes
    metadata_index: int
    body_hash: bytes
    chain: bytes
    has_body: bool = False
    is_lost: bool = False
    bytes_through: int = 0


@dataclass(slots=True)
class LogRemains:
    """What could be read of a log."""

    path: Path
    mutations: dict[int, KeptMutation] = field(default_factory=dict)
    bodies: set[int] = field(default_factory=set)
    """The sequences whose bodies are what was written."""
    pruned_through: int = 0
    metadata_indexes: list[Row] = field(default_factory=list)
    idempotency: list[Row] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The newest mutation that can be read."""
        return max(self.mutations, default=0)

    def bodies_from(self, newest: int) -> int:
        """The first of the bodies that are there without a gap up to the end."""
        first = newest + 1
        while first - 1 in self.bodies:
            first -= 1
        return first


def read_remains(path: Path, newest: int) -> LogRemains:
    """Read what can be read, up to a mutation that is known to have been."""
    remains = LogRemains(path)
    try:
        with closing(Reader(path)) as reader:
            for (value,) in _rows(reader, "SELECT pruned_through FROM head"):
                remains.pruned_through = value if isinstance(value, int) and value >= 0 else 0
            found = _mutations(reader, newest)
            _keep_what_follows(remains, found)
            for sequence, mutation in remains.mutations.items():
                bodies = _rows(reader, "SELECT body FROM bodies WHERE sequence = ?", (sequence,))
                if bodies and isinstance(bodies[0][0], bytes) and hash_body(bodies[0][0]) == mutation.body_hash:
                    remains.bodies.add(sequence)
            remains.metadata_indexes = [
                row
                for row in _rows(reader, "SELECT id, property, type, deleted FROM metadata_indexes")
                if _has_types(row, (int, str, str, int))
            ]
            remains.idempotency = [
                row
                for row in _rows(reader, "SELECT key, sequence, mutation_id, created_ms, request_hash FROM idempotency")
                if _has_types(row, (str, int, str, int, bytes))
                and row[1] in remains.mutations
                and remains.mutations[row[1]].mutation_id == row[2]
            ]
    except StorageError:
        pass  # Nothing more can be read; what there is was kept.
    return remains


def _rows(reader: Reader, sql: str, values: tuple[object, ...] = ()) -> list[Row]:
    try:
        return reader.rows(sql, values)
    except (StorageError, ValueError, OverflowError):
        return []


def _has_types(row: Row, types: tuple[type, ...]) -> bool:
    return len(row) == len(types) and all(type(value) is kind for value, kind in zip(row, types, strict=True))


def _mutations(reader: Reader, newest: int) -> dict[int, Row]:
    """All rows at once, and where that fails one by one."""
    sql = f"SELECT {COLUMNS} FROM mutations"  # noqa: S608
    rows = _rows(reader, sql)
    if not rows:
        rows = [
            row for sequence in range(1, newest + 1) for row in _rows(reader, f"{sql} WHERE sequence = ?", (sequence,))
        ]
    known = {action.value for action in Action}
    return {row[0]: row for row in rows if _has_types(row, _TYPES) and row[2] in known and row[0] >= 1}


def _keep_what_follows(remains: LogRemains, found: dict[int, Row]) -> None:
    """Keep rows that the chain vouches for: what a row is linked from, or the next one from it."""
    previous: bytes | None = NO_CHAIN if 1 in found else None
    for sequence in sorted(found):
        row = found[sequence]
        if sequence - 1 not in found and sequence != 1:
            previous = None
        linked = bytes(row[9]) if previous is None else _linked(previous, row)
        after = found.get(sequence + 1)
        if linked == row[9] or (after is not None and _linked(linked, after) == after[9]):
            remains.mutations[sequence] = KeptMutation(
                sequence, row[1], row[2], row[3], row[4], row[5], row[6], row[8], linked
            )
            previous = linked
        else:
            previous = row[9]


def _linked(previous: bytes, row: Row) -> bytes:
    return link(
        previous,
        sequence=row[0],
        mutation_id=row[1],
        action=Action(row[2]),
        created_ms=row[3],
        rows=row[4],
        body_hash=row[8],
    )


def renewed(remains: LogRemains, *, sealed_through: int, newest: int, known_ids: dict[int, str]) -> list[KeptMutation]:
    """The rows of the new log, from its oldest to `newest`: relinked, with something for what is lost."""
    first = min([*remains.mutations, sealed_through + 1])
    mutations: list[KeptMutation] = []
    last_id, created_ms = "", 0
    chain = remains.mutations[first].chain if first in remains.mutations and first > 1 else NO_CHAIN
    for sequence in range(first, newest + 1):
        kept = remains.mutations.get(sequence)
        needs_body = sequence > sealed_through
        if kept is None or (needs_body and sequence not in remains.bodies):
            id = kept.mutation_id if kept is not None else known_ids.get(sequence) or _between(last_id, created_ms)
            created_ms = kept.created_ms if kept is not None else created_ms
            # The row of one that is sealed is only missed by whoever asks for its status.
            kept = KeptMutation(
                sequence,
                id,
                Action.DELETE,
                created_ms,
                0,
                b"",
                0,
                hash_body(NO_BODY),
                b"",
                has_body=needs_body,
                is_lost=needs_body,
            )
        else:
            kept = replace(kept, has_body=needs_body)
        if sequence > first or first == 1 or sequence > sealed_through:
            row = (kept.sequence, kept.mutation_id, kept.action, kept.created_ms, kept.rows, b"", 0, 0, kept.body_hash)
            chain = _linked(chain, row)
        kept = replace(kept, chain=chain)
        mutations.append(kept)
        last_id, created_ms = kept.mutation_id, kept.created_ms
    return mutations


def _between(last_id: str, created_ms: int) -> str:
    """An id just behind another, so that it stays before the next one."""
    return str(UUID(int=UUID(last_id).int + 1)) if last_id else next_mutation_id("", max(created_ms, 1))[0]


def write_log(path: Path, remains: LogRemains, mutations: Iterable[KeptMutation], *, sealed_through: int) -> None:
    """Write the new log, with the bodies of the old one that are not sealed."""
    migrate(path, "log")
    with translated(path), closing(connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        through, last = 0, None
        with closing(Reader(remains.path)) if remains.bodies else closing(_Nothing()) as reader:
            for mutation in mutations:
                body = NO_BODY
                if mutation.has_body and not mutation.is_lost:
                    assert isinstance(reader, Reader)
                    [(body,)] = reader.rows("SELECT body FROM bodies WHERE sequence = ?", (mutation.sequence,))
                through += len(body)
                last = replace(mutation, bytes_through=through)
                connection.execute("INSERT INTO mutations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(last))
                if mutation.has_body:
                    connection.execute("INSERT INTO bodies (sequence, body) VALUES (?, ?)", (mutation.sequence, body))
        connection.executemany(
            "INSERT INTO metadata_indexes (id, property, type, deleted) VALUES (?, ?, ?, ?)", remains.metadata_indexes
        )
        connection.executemany("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)", remains.idempotency)
        if last is not None:
            connection.execute(
                "UPDATE head SET sequence = ?, mutation_id = ?, created_ms = ?, chain = ?, bytes_through = ?, "
                "pruned_through = ?",
                (last.sequence, last.mutation_id, last.created_ms, last.chain, through, sealed_through),
            )
        connection.execute("COMMIT")


class _Nothing:
    """Where there is no log to read from."""

    def close(self) -> None:
        """Do nothing."""


def _row(one: KeptMutation) -> Row:
    return (
        one.sequence,
        one.mutation_id,
        str(one.action),
        one.created_ms,
        one.rows,
        one.caller,
        one.metadata_index,
        one.bytes_through,
        one.body_hash,
        one.chain,
    )
