"""The log of one index: appends that share commits, and reading in order.

`Log` is for service processes, which append; `LogReader` is for everybody. The order within an append is: check under
the lock, one transaction, the witness, and only then the answers; the checkpoint that may be due comes behind them. A
crash before the commit leaves nothing; a crash after it leaves a mutation that nobody was told of, which is applied
like any other.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import structlog

from storage.backends.sqlite.database import Database, Reader, Row, Statements
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.locks import FileLock
from storage.chain import Head, Witness, hash_body, hash_request, link, next_mutation_id, read_witness, write_witness
from storage.errors import (
    Damaged,
    IdempotencyConflict,
    LogDamaged,
    MetadataIndexConflict,
    MetadataIndexLimitReached,
    MetadataIndexNotFound,
    Refused,
    StoreBusy,
    StoreFailed,
)
from storage.limits import Limits
from storage.records import Action, Appended, Change, MetadataIndex, MetadataType, MutationId, Sequence

log = structlog.get_logger()

IDEMPOTENCY_MS = 24 * 3_600_000
COMMIT_BYTES_MAX = 64 * 1024 * 1024
"""Appends that arrive together share a commit up to this many bytes."""
COMMIT_CHANGES_MAX = 1_000

HEAD_SQL = "SELECT sequence, mutation_id, created_ms, chain, bytes_through, pruned_through FROM head"


@dataclass(frozen=True, slots=True)
class LoggedMutation:
    """One row of the log. `body` is None when it was not asked for or was pruned."""

    sequence: Sequence
    id: MutationId
    action: Action
    created_ms: int
    rows: int
    metadata_index: int
    bytes_through: int
    body_hash: bytes
    chain: bytes
    body: bytes | None


@dataclass(slots=True)
class _Pending:
    change: Change
    limits: Limits
    body_hash: bytes
    answer: asyncio.Future[Appended]


class Log:
    """The appending side of one log, one per index and process."""

    def __init__(
        self,
        folder: IndexFolder,
        database: Database,
        reader: LogReader,
        lock_timeout_ms: int,
        check: Callable[[Head], None],
    ) -> None:
        self._folder = folder
        self._database = database
        self._reader = reader
        self._check = check
        self._is_suspect = False
        """Whether a write or a sync failed, so that nobody knows what of it is on disk."""
        self._lock = FileLock(folder.log_lock, lock_timeout_ms)
        try:
            self._witness = os.open(folder.witness, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            # For want of descriptors, perhaps: whoever tries again must not have fewer of them each time.
            self._lock.close()
            raise
        self._pending: list[_Pending] = []
        self._committing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, folder: IndexFolder, reader: LogReader, lock_timeout_ms: int, check: Callable[[Head], None]
    ) -> Log:
        """Open the log for appending. Raises LogDamaged when it ends before its witness.

        `reader` is for this event loop and is closed later than the log. `check` runs under the lock of every commit,
        and may refuse all of it on the strength of the head.
        """
        database = await Database.open(folder.log)
        try:
            # The witness first: another process may append at any moment, and writes its witness after the commit.
            witness = read_witness(folder.witness)
            head, _ = head_of(await database.rows(HEAD_SQL))
            await check_witness(folder, database, witness, head)
            return cls(folder, database, reader, lock_timeout_ms, check)
        except BaseException:
            await database.close()
            raise

    async def append(self, change: Change, limits: Limits) -> Appended:
        """Give a change its place.

        Raises IdempotencyConflict, the errors of metadata indexes, StoreBusy, StoreFull, and what `check` raises.
        """
        answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(change, limits, hash_body(change.body), answer))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_all(), name="log-commit")
        # A caller that goes away must not take the others' commit with it.
        return await asyncio.shield(answer)

    async def _commit_all(self) -> None:
        while self._pending:
            group = _group(self._pending)
            del self._pending[: len(group)]
            try:
                await self._commit(group)
            except BaseException as error:
                for pending in group:
                    if not pending.answer.done():
                        pending.answer.set_exception(error)
                        pending.answer.exception()  # Its caller may be gone; then nobody else will look.
                if not isinstance(error, Exception):
                    raise

    async def _commit(self, group: Items[_Pending]) -> None:
        """Commit and answer; then, still under the lock, see to the WAL, which nobody has to wait for."""
        async with self._lock.held():
            if self._is_suspect:
                await self._prove()
            # The check looks into other databases, on the event loop; under the lock the head stays where it is.
            head, _ = self._reader.head()
            self._check(head)
            now_ms = time.time_ns() // 1_000_000
            try:
                head, answers = await self._database.at_once(
                    lambda statements: _Append(statements, head, now_ms).all(group)
                )
            except StoreFailed:
                self._is_suspect = True
                raise
            self._remember(head)
            for pending, answer in zip(group, answers, strict=True):
                _settle(pending.answer, answer)
            try:
                if await self._database.keep_wal_short():
                    os.fsync(self._witness)
            except (Damaged, OSError) as error:
                # What was committed is committed, and was answered; the next append meets what is wrong.
                log.error("checkpoint.failed", database=self._database.path.name, reason=str(error))

    def _remember(self, head: Head) -> None:
        try:
            write_witness(self._witness, head)
        except OSError as error:
            # What was committed is committed. The witness is behind now, as it may be; the next append moves it on.
            log.error("witness.failed", index=self._folder.path.name, reason=str(error))

    async def _prove(self) -> None:
        """Open the database anew and have all of it written to disk again, before anything more is acknowledged.

        After a sync that failed the system takes what it could not write for written, so a second sync would succeed
        and mean nothing. A checkpoint writes every page of the WAL into the database itself and syncs that. Raises
        StoreFailed, LogDamaged, StoreBusy; then the log stays suspect.
        """
        database = await Database.open(self._folder.log)
        # In this order: what cannot be closed must not be what is closed again at the next try.
        suspect, self._database = self._database, database
        await suspect.close()
        head, _ = head_of(await database.rows(HEAD_SQL))
        await check_witness(self._folder, database, read_witness(self._folder.witness), head)
        if not await database.checkpoint():
            raise StoreBusy(f"the log of index {self._folder.path.name} is being read while it is proved; try again")
        os.fsync(self._witness)
        self._is_suspect = False
        log.warning("log.proved", index=self._folder.path.name, head=head.sequence)

    async def rows(self, sql: str, values: Items[object] = ()) -> list[Row]:
        """Read what is committed."""
        return await self._database.rows(sql, values)

    async def close(self) -> None:
        """Finish the commit under way, then let go."""
        if self._committing is not None:
            await asyncio.gather(self._committing, return_exceptions=True)
        await self._database.close()
        self._lock.close()
        os.close(self._witness)


class _Append:
    """One transaction's walk over a group of changes."""

    def __init__(self, statements: Statements, head: Head, now_ms: int) -> None:
        self._statements = statements
        self._head = head
        self._now_ms = now_ms
        self._mutations: list[tuple[object, ...]] = []
        self._bodies: list[tuple[object, ...]] = []
        self._keys: dict[str, tuple[Appended, bytes]] = {}

    def all(self, group: Items[_Pending]) -> tuple[Head, list[Appended | Refused]]:
        """Place every change that is not refused; a refusal is one caller's answer, not the group's end."""
        head, _ = head_of(self._statements.rows(HEAD_SQL))
        assert head == self._head, "only who holds the lock appends"
        answers: list[Appended | Refused] = []
        for pending in group:
            try:
                answers.append(self._one(pending))
            except Refused as refusal:
                answers.append(refusal)
        self._statements.many("INSERT INTO mutations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._mutations)
        self._statements.many("INSERT INTO bodies (sequence, body) VALUES (?, ?)", self._bodies)
        head = self._head
        self._statements.rows(
            "UPDATE head SET sequence = ?, mutation_id = ?, created_ms = ?, chain = ?, bytes_through = ?",
            (head.sequence, head.mutation_id, head.created_ms, head.chain, head.bytes_through),
        )
        return head, answers

    def _one(self, pending: _Pending) -> Appended:
        change = pending.change
        request_hash = hash_request(change.action, pending.body_hash)
        if change.idempotency_key and (earlier := self._replayed(change, request_hash)):
            return earlier
        metadata_index = self._metadata_index(change, pending.limits)
        appended = self._place(change, pending.body_hash, metadata_index)
        if change.idempotency_key:
            self._statements.rows(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)",
                (
                    change.idempotency_key,
                    appended.sequence,
                    appended.id,
                    appended.created_ms,
                    request_hash,
                ),
            )
        return appended

    def _place(self, change: Change, body_hash: bytes, metadata_index: int) -> Appended:
        id, created_ms = next_mutation_id(self._head.mutation_id, self._now_ms)
        sequence = Sequence(self._head.sequence + 1)
        chain = link(
            self._head.chain,
            sequence=sequence,
            mutation_id=id,
            action=change.action,
            created_ms=created_ms,
            rows=change.rows,
            body_hash=body_hash,
        )
        through = self._head.bytes_through + len(change.body)
        self._mutations.append(
            (
                sequence,
                id,
                change.action,
                created_ms,
                change.rows,
                change.caller,
                metadata_index,
                through,
                body_hash,
                chain,
            )
        )
        self._bodies.append((sequence, change.body))
        self._head = Head(sequence, id, created_ms, chain, through)
        return Appended(sequence=sequence, id=id, created_ms=created_ms)

    def _replayed(self, change: Change, request_hash: bytes) -> Appended | None:
        row = self._statements.row(
            "SELECT sequence, mutation_id, created_ms, request_hash FROM idempotency WHERE key = ? AND created_ms > ?",
            (change.idempotency_key, self._now_ms - IDEMPOTENCY_MS),
        )
        if row is None:
            return None
        if row[3] != request_hash:
            raise IdempotencyConflict(
                f"Idempotency-Key {change.idempotency_key!r} was used for another request, mutation {row[1]}; "
                "use a new key for a new request"
            )
        return Appended(sequence=Sequence(row[0]), id=MutationId(row[1]), created_ms=row[2], replayed=True)

    def _metadata_index(self, change: Change, limits: Limits) -> int:
        """Decide on the accepted metadata indexes; 0 when nothing is to change."""
        if change.metadata_index is None:
            return 0
        wanted = change.metadata_index
        row = self._statements.row(
            "SELECT id, type FROM metadata_indexes WHERE property = ? AND deleted = 0", (wanted.property,)
        )
        if change.action is Action.DELETE_METADATA_INDEX:
            return self._drop_metadata_index(wanted, row)
        if row is not None:
            if row[1] != wanted.type:
                raise MetadataIndexConflict(
                    f'property "{wanted.property}" has a metadata index of type {row[1]}, not {wanted.type}; '
                    "delete that one first"
                )
            return 0
        self._check_metadata_index_limit(limits)
        [(id,)] = self._statements.rows(
            "INSERT INTO metadata_indexes (property, type) VALUES (?, ?) RETURNING id",
            (wanted.property, wanted.type),
        )
        return int(id)

    def _check_metadata_index_limit(self, limits: Limits) -> None:
        [(count,)] = self._statements.rows("SELECT count(*) FROM metadata_indexes WHERE deleted = 0")
        if count >= limits.metadata_indexes_max:
            raise MetadataIndexLimitReached(
                f"the index has {count} metadata indexes and may have {limits.metadata_indexes_max}; "
                "delete one that is not needed"
            )

    def _drop_metadata_index(self, wanted: MetadataIndex, row: Row | None) -> int:
        if row is None:
            raise MetadataIndexNotFound(f'property "{wanted.property}" has no metadata index')
        self._statements.rows("UPDATE metadata_indexes SET deleted = 1 WHERE id = ?", (row[0],))
        return int(row[0])


class LogReader:
    """The reading side of one log."""

    COLUMNS = "sequence, mutation_id, action, created_ms, rows, metadata_index, bytes_through, body_hash, chain"

    def __init__(self, folder: IndexFolder) -> None:
        self._folder = folder
        self._reader = Reader(folder.log)

    def head(self) -> tuple[Head, Sequence]:
        """The newest mutation, and the sequence through which bodies are pruned. Raises LogDamaged."""
        return head_of(self._reader.rows(HEAD_SQL))

    def bodies(self, sequences: Items[int]) -> dict[int, bytes]:
        """The bodies of some mutations; those that are pruned are absent."""
        found: dict[int, bytes] = {}
        for sequence in sequences:
            for (body,) in self._reader.rows("SELECT body FROM bodies WHERE sequence = ?", (sequence,)):
                found[sequence] = body
        return found

    def read(self, after: int, *, mutations_max: int, bytes_max: int, bytes_before: int) -> list[LoggedMutation]:
        """The mutations behind `after`, oldest first, with bodies: at least one if there is one."""
        rows = self._reader.rows(
            f"SELECT {self.COLUMNS}, body FROM mutations LEFT JOIN bodies USING (sequence) "  # noqa: S608
            "WHERE sequence > ? AND sequence <= ? + ? AND (bytes_through <= ? OR sequence = ? + 1) ORDER BY sequence",
            (after, after, mutations_max, bytes_before + bytes_max, after),
        )
        return [_logged(row) for row in rows]

    def metadata_index(self, id: int) -> MetadataIndex | None:
        """An accepted metadata index, deleted or not; None when there is none that can be read."""
        rows = self._reader.rows("SELECT property, type FROM metadata_indexes WHERE id = ?", (id,))
        if not rows or rows[0][1] not in {*MetadataType}:
            return None
        return MetadataIndex(id=id, property=rows[0][0], type=MetadataType(rows[0][1]))

    def rows(self, sql: str, values: Items[object] = ()) -> list[Row]:
        """Read what is committed."""
        return self._reader.rows(sql, values)

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()


async def check_witness(folder: IndexFolder, database: Database, witness: Witness | None, head: Head) -> None:
    """Refuse a log that ends before its witness, or whose history is another than the witness saw.

    The witness must have been read before the head: in the other order, an append in between looks like a loss.
    """
    if witness is None or witness.sequence == 0:
        return
    if head.sequence < witness.sequence:
        raise LogDamaged(
            f"the log of index {folder.path.name} ends at mutation {head.sequence}, but mutation {witness.sequence} "
            "had been acknowledged: a part of its database was lost; restore a backup, or keep what is left by "
            f"removing {folder.witness.name} from the folder of the index"
        )
    rows = await database.rows("SELECT chain FROM mutations WHERE sequence = ?", (witness.sequence,))
    if rows and rows[0][0] != witness.chain:
        raise LogDamaged(
            f"mutation {witness.sequence} in the log of index {folder.path.name} is not the one that was acknowledged"
        )


def _group(pending: Items[_Pending]) -> list[_Pending]:
    """The first changes that fit one commit; at least one."""
    group: list[_Pending] = []
    size = 0
    for one in pending[:COMMIT_CHANGES_MAX]:
        size += len(one.change.body)
        if group and size > COMMIT_BYTES_MAX:
            break
        group.append(one)
    return group


def _settle(answer: asyncio.Future[Appended], result: Appended | Refused) -> None:
    if answer.done():
        return
    if isinstance(result, Refused):
        answer.set_exception(result)
        answer.exception()
    else:
        answer.set_result(result)


def head_of(rows: Items[Row]) -> tuple[Head, Sequence]:
    """The head, and the sequence through which bodies are pruned. Raises LogDamaged.

    A damaged row can be missing, or hold anything, whatever its table says of types.
    """
    if [tuple(map(type, row)) for row in rows] != [(int, str, int, bytes, int, int)]:
        raise LogDamaged("log.db has no head that was ever written; `headrace doctor` says what is left")
    [(sequence, id, created_ms, chain, through, pruned_through)] = rows
    return Head(Sequence(sequence), MutationId(id), created_ms, chain, through), Sequence(pruned_through)


def _logged(row: Row) -> LoggedMutation:
    return LoggedMutation(
        Sequence(row[0]),
        MutationId(row[1]),
        Action(row[2]),
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
    )
