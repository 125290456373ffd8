"""The catalogue: which indexes an account has. Only service processes write it.

Every request looks its index up, so what was looked up is remembered until any process commits to the catalogue.

The rows of an index have a checksum: a flipped bit must not make another index of it, or a deleted one, whose folder
would be thrown away. What differs is refused; an index that is not found may be one whose name was changed, so then
all are compared, now and then (`Comparison`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress

from storage.backends.sqlite.database import Database, Reader, Row, Transaction
from storage.backends.sqlite.driver import IntegrityError
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.sums import values_sum
from storage.errors import IndexDeleted, IndexExists, IndexLimitReached, IndexNotFound, StateDamaged, StorageError
from storage.limits import Limits
from storage.records import DEFAULT_SLOT, AccountId, IndexConfig, IndexId, IndexSpec, Metric
from storage.tokens import TokenId

REMEMBERED_MAX = 10_000
WAL_BYTES_MAX = 1024 * 1024
COMPARE_AGAIN_S = 10.0
"""How long what was compared is believed by those who look for what is not there."""
INLINE_ROWS_MAX = 1_000
"""More are compared in a thread: twenty thousand took half a second, in which nothing else would be answered."""
PIECE_ROWS = 1_000
BUSY_SHARE = 10
"""Comparing takes no more than this part of the time, however many rows there are."""
SUM_SQL = "INSERT OR REPLACE INTO index_sums VALUES (?, ?)"
SELECT = (
    "SELECT id, account, indexes.name, description, dimensions, metric, preset, created_us, modified_us, "
    "(SELECT checksum FROM index_sums WHERE index_sums.id = indexes.id), deleted_us "
    "FROM indexes JOIN slots ON slots.index_id = indexes.id AND slots.name = ''"
)


class Catalogue:
    """`control.db` as one process uses it."""

    def __init__(self, database: Database, reader: Reader) -> None:
        self._database = database
        self._reader = reader
        self._seen_version = -1
        self._remembered: dict[tuple[AccountId, str], IndexSpec] = {}
        self._comparison = Comparison(reader)

    @classmethod
    async def open(cls, data: DataFolder) -> Catalogue:
        """Open the catalogue of a prepared data folder."""
        return cls(await Database.open(data.control), Reader(data.control))

    def get(self, account: AccountId, name: str) -> IndexSpec:
        """One live index now. Raises IndexNotFound, IndexDeleted."""
        version = self._reader.version()
        if version != self._seen_version or len(self._remembered) > REMEMBERED_MAX:
            self._remembered.clear()
            self._seen_version = version
        spec = self._remembered.get((account, name))
        if spec is None:
            spec = self._remembered[account, name] = self._look_up(account, name)
        return spec

    def _look_up(self, account: AccountId, name: str) -> IndexSpec:
        rows = self._reader.rows(
            f"{SELECT} WHERE account = ? AND indexes.name = ? ORDER BY deleted_us > 0, created_us DESC LIMIT 1",
            (account, name),
        )
        if not rows:
            self._comparison.check()
            raise IndexNotFound(f'Index name "{name}"')
        check_row(rows[0])
        if rows[0][-1]:
            raise IndexDeleted(f'Index name "{name}" was deleted')
        return _spec(rows[0])

    def check_lives(self, spec: IndexSpec) -> None:
        """Raise IndexDeleted unless this very index still lives, whatever has its name now."""
        if self.get(spec.account, spec.name).id != spec.id:
            raise IndexDeleted(f'Index name "{spec.name}" was deleted')

    def of_account(self, account: AccountId) -> tuple[IndexSpec, ...]:
        """The live indexes of an account by name. Raises StateDamaged where one may be missing."""
        self._comparison.check()
        rows = self._reader.rows(f"{SELECT} WHERE account = ? AND deleted_us = 0 ORDER BY indexes.name", (account,))
        return tuple(_spec(row) for row in checked(rows))

    def some(self, count: int) -> tuple[IndexSpec, ...]:
        """Up to `count` live indexes of all accounts, oldest first: for figures, so damaged ones are left out."""
        rows = self._reader.rows(f"{SELECT} WHERE deleted_us = 0 ORDER BY created_us LIMIT ?", (count,))
        return tuple(_spec(row) for row in rows if is_as_written(row))

    def by_id(self, id: IndexId) -> tuple[IndexSpec, bool] | None:
        """An index, and whether it lives; None when there is none. Raises StateDamaged."""
        rows = checked(self._reader.rows(f"{SELECT} WHERE indexes.id = ?", (id,)))
        return (_spec(rows[0]), not rows[0][-1]) if rows else None

    def ids(self) -> dict[IndexId, bool]:
        """Every index there ever was, and whether it lives."""
        return {IndexId(id): not deleted for id, deleted in self._reader.rows("SELECT id, deleted_us FROM indexes")}

    def version(self) -> int:
        """Differs after any commit by another connection."""
        return self._reader.version()

    def check_free(self, account: AccountId, name: str, limits: Limits) -> None:
        """Raise IndexExists or IndexLimitReached where an index of that name could not be made now."""
        self._check(
            self._reader.rows(
                "SELECT 1 FROM indexes WHERE account = ? AND name = ? AND deleted_us = 0", (account, name)
            ),
            self._reader.rows("SELECT count(*) FROM indexes WHERE account = ? AND deleted_us = 0", (account,)),
            name,
            limits,
        )

    @staticmethod
    def _check(same: list[Row], counted: list[Row], name: str, limits: Limits) -> None:
        if same:
            raise IndexExists(f'Index name "{name}"')
        if counted[0][0] >= limits.indexes_per_account_max:
            raise IndexLimitReached(
                f"the account has {counted[0][0]} indexes and may have {limits.indexes_per_account_max}; "
                "delete one that is not needed"
            )

    async def add(
        self,
        id: IndexId,
        account: AccountId,
        name: str,
        description: str,
        config: IndexConfig,
        limits: Limits,
    ) -> IndexSpec:
        """Make an index known; its folder is there already. Raises IndexExists, IndexLimitReached."""
        now_us = time.time_ns() // 1_000
        values = (id, account, name, description, config.preset, now_us, now_us)
        try:
            async with self._database.writing() as transaction:
                counted = await transaction.rows(
                    "SELECT count(*) FROM indexes WHERE account = ? AND deleted_us = 0", (account,)
                )
                self._check([], counted, name, limits)
                await transaction.rows("INSERT INTO indexes VALUES (?, ?, ?, ?, ?, ?, ?, 0)", values)
                await transaction.rows(
                    "INSERT INTO slots VALUES (?, ?, ?, ?)",
                    (id, DEFAULT_SLOT, config.dimensions, config.metric),
                )
                await _sum_up(transaction, id)
        except IntegrityError as error:
            raise IndexExists(f'Index name "{name}"') from error
        await self._database.keep_wal_short(WAL_BYTES_MAX)
        return IndexSpec(
            id=id,
            account=account,
            name=name,
            description=description,
            config=config,
            created_us=now_us,
            modified_us=now_us,
        )

    async def remove(self, spec: IndexSpec) -> None:
        """Mark an index deleted. Raises IndexDeleted when it was already."""
        async with self._database.writing() as transaction:
            marked = await transaction.rows(
                "UPDATE indexes SET deleted_us = ? WHERE id = ? AND deleted_us = 0 RETURNING id",
                (time.time_ns() // 1_000, spec.id),
            )
            if marked:
                await _sum_up(transaction, spec.id)
        if not marked:
            raise IndexDeleted(f'Index name "{spec.name}" was deleted')

    async def secret(self, name: str) -> bytes:
        """Random bytes that every process on this data shares, made at the first call."""
        async with self._database.writing() as transaction:
            await transaction.rows("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, secrets.token_bytes(32)))
            [(value,)] = await transaction.rows("SELECT value FROM secrets WHERE name = ?", (name,))
        return bytes(value)

    async def note_uses(self, used: Mapping[TokenId, int]) -> None:
        """Remember when tokens were last let in; a later moment that is known stays."""
        async with self._database.writing() as transaction:
            await transaction.many(
                "INSERT INTO token_uses VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET used_ms = max(used_ms, excluded.used_ms)",
                used.items(),
            )
        await self._database.keep_wal_short(WAL_BYTES_MAX)

    async def prove_writable(self) -> None:
        """Commit something of no consequence. Raises StoreFull, StoreBusy."""
        async with self._database.writing() as transaction:
            await transaction.rows("INSERT OR REPLACE INTO secrets VALUES ('probe', randomblob(8))")
        await self._database.keep_wal_short(WAL_BYTES_MAX)

    async def close(self) -> None:
        """Let go of the file."""
        await self._comparison.close()
        self._reader.close()
        await self._database.close()


class Comparison:
    """Whether all rows of the catalogue are what was written, as somebody who misses one may ask at any time.

    Of many rows the answer is that of the last comparison, and of none before the first has ended.
    """

    def __init__(self, reader: Reader) -> None:
        """`reader` is the one of the event loop, and is closed later."""
        self._reader = reader
        self._not_before = 0.0
        self._damage = ""
        self._under_way: asyncio.Task[None] | None = None
        self._is_closed = False

    def check(self) -> None:
        """Raise StateDamaged when a row is not what was written. Never waits."""
        if time.monotonic() >= self._not_before:
            self._compare_again()
        if self._damage:
            raise StateDamaged(self._damage)

    def _compare_again(self) -> None:
        # No row ever goes, so this is how many there are, and is found at once.
        [(rows,)] = self._reader.rows("SELECT coalesce(max(rowid), 0) FROM indexes")
        if rows <= INLINE_ROWS_MAX:
            self._damage = self._compare(self._reader)
            self._not_before = time.monotonic() + COMPARE_AGAIN_S
        elif self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._compare_aside(), name="catalogue-compare")

    async def _compare_aside(self) -> None:
        started = time.monotonic()
        with suppress(StorageError):  # What cannot be read now is tried again by who asks next.
            self._damage = await asyncio.to_thread(self._compare_anew)
        now = time.monotonic()
        self._not_before = now + max(COMPARE_AGAIN_S, BUSY_SHARE * (now - started))

    def _compare_anew(self) -> str:
        with closing(Reader(self._reader.path)) as reader:
            return self._compare(reader)

    def _compare(self, reader: Reader) -> str:
        """What is wrong with the first row that is not what was written; empty when all are."""
        last = ""
        while not self._is_closed:
            rows = reader.rows(f"{SELECT} WHERE indexes.id > ? ORDER BY indexes.id LIMIT ?", (last, PIECE_ROWS))
            if not rows:
                break
            try:
                checked(rows)
            except StateDamaged as error:
                return str(error)
            last = rows[-1][0]
        return ""

    async def close(self) -> None:
        """Stop comparing."""
        self._is_closed = True
        if self._under_way is not None:
            await asyncio.gather(self._under_way, return_exceptions=True)


def row_sum(row: Row) -> int:
    """The checksum of what `SELECT` finds of an index, but for the checksum itself."""
    return values_sum((*row[:-2], row[-1]))


def is_as_written(row: Row) -> bool:
    """Whether a row of `SELECT` is what was written, as far as anybody can know: old programs wrote no checksum."""
    return row[-2] is None or row[-2] == row_sum(row)


def check_row(row: Row) -> None:
    """Raise StateDamaged when a row of `SELECT` is not what was written."""
    if not is_as_written(row):
        raise StateDamaged(
            # Whose it is, and its name, are not for everybody who hears of it.
            f"control.db is damaged in the row of index {row[0]}; nothing of that index is changed meanwhile; "
            "restore control.db from a backup"
        )


def checked(rows: Iterable[Row]) -> list[Row]:
    """Rows of `SELECT` that are what was written. Raises StateDamaged."""
    found = list(rows)
    for row in found:
        check_row(row)
    return found


async def _sum_up(transaction: Transaction, id: IndexId) -> None:
    [row] = await transaction.rows(f"{SELECT} WHERE indexes.id = ?", (id,))
    await transaction.rows(SUM_SQL, (id, row_sum(row)))


def _spec(row: Row) -> IndexSpec:
    return IndexSpec(
        id=IndexId(row[0]),
        account=AccountId(row[1]),
        name=row[2],
        description=row[3],
        config=IndexConfig(dimensions=row[4], metric=Metric(row[5]), preset=row[6]),
        created_us=row[7],
        modified_us=row[8],
    )
