"""The catalogue: which indexes an account has. Only service processes write it.

Every request looks its index up, so what was looked up is remembered until any process commits to the catalogue.

The rows of an index have a checksum: a flipped bit must not make another index of it, or a deleted one, whose folder
would be thrown away. What differs is refused; an index that is not found may be one whose name was changed, so then
all are compared, now and then.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

import xxhash

from storage.apply import signed
from storage.backends.sqlite.database import Database, Reader, Row, Transaction
from storage.backends.sqlite.driver import IntegrityError
from storage.backends.sqlite.folder import DataFolder
from storage.errors import IndexDeleted, IndexExists, IndexLimitReached, IndexNotFound, StateDamaged
from storage.limits import Limits
from storage.records import DEFAULT_SLOT, AccountId, IndexConfig, IndexId, IndexSpec, Metric
from storage.tokens import TokenId

REMEMBERED_MAX = 10_000
WAL_BYTES_MAX = 1024 * 1024
COMPARE_AGAIN_S = 10.0
"""How long what was compared is believed by those who look for what is not there."""
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
        self._compare_not_before = 0.0

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
            self._compare_now_and_then()
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
        self._compare_now_and_then()
        rows = self._reader.rows(f"{SELECT} WHERE account = ? AND deleted_us = 0 ORDER BY indexes.name", (account,))
        return tuple(_spec(row) for row in checked(rows))

    def some(self, count: int) -> tuple[IndexSpec, ...]:
        """Up to `count` live indexes of all accounts, oldest first: for figures, so damaged ones are left out."""
        rows = self._reader.rows(f"{SELECT} WHERE deleted_us = 0 ORDER BY created_us LIMIT ?", (count,))
        return tuple(_spec(row) for row in rows if row[-2] in (None, row_sum(row)))

    def by_id(self, id: IndexId) -> tuple[IndexSpec, bool] | None:
        """An index, and whether it lives; None when there is none. Raises StateDamaged."""
        rows = checked(self._reader.rows(f"{SELECT} WHERE indexes.id = ?", (id,)))
        return (_spec(rows[0]), not rows[0][-1]) if rows else None

    def ids(self) -> dict[IndexId, bool]:
        """Every index there ever was, and whether it lives."""
        return {IndexId(id): not deleted for id, deleted in self._reader.rows("SELECT id, deleted_us FROM indexes")}

    def _compare_now_and_then(self) -> None:
        if time.monotonic() >= self._compare_not_before:
            checked(self._reader.rows(SELECT))
            self._compare_not_before = time.monotonic() + COMPARE_AGAIN_S

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
        self._reader.close()
        await self._database.close()


def row_sum(row: Row) -> int:
    """The checksum of what `SELECT` finds of an index, but for the checksum itself."""
    return signed(xxhash.xxh3_64_intdigest(repr((*row[:-2], row[-1])).encode()))


def check_row(row: Row) -> None:
    """Raise StateDamaged when a row of `SELECT` is not what was written."""
    if row[-2] is not None and row[-2] != row_sum(row):
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
