"""Tokens in the catalogue: read by every service process, changed by the `headrace token` commands.

A service process keeps all of them in memory and looks every 250 ms at most whether any was changed: what was revoked
opens nothing half a second later, and a request pays for a look-up in a dict. When the catalogue cannot be read, nobody
is let in.

The row of a token has a checksum: a flipped bit must not widen what it may do, or for how long. A token that differs
opens nothing, and is told of; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import orjson
import structlog

from storage.backends.sqlite.database import Database, Reader, Row, Transaction
from storage.backends.sqlite.sums import values_sum
from storage.errors import StateDamaged
from storage.tokens import Grant, Scope, Token, TokenId

LOOK_EVERY_S = 0.25
TOKENS_MAX = 10_000
"""What every process can hold in memory, and read again in milliseconds."""

FORGET_AFTER_MS = 90 * 24 * 3_600_000
"""How long ago a token was revoked or expired when the next one that is made takes its row away, if room gets short:
a clock that is years ahead for a moment makes every token look so, and a row that is gone never comes back."""

_FORGET_BESIDE = (
    "DELETE FROM token_uses WHERE id NOT IN (SELECT id FROM tokens)",
    "DELETE FROM token_sums WHERE id NOT IN (SELECT id FROM tokens)",
)
_FORGET = "DELETE FROM tokens WHERE revoked_ms BETWEEN 1 AND ?1 OR expires_ms BETWEEN 1 AND ?2"
SELECT = (
    "SELECT id, name, hash, previous_hash, previous_until_ms, grants, created_ms, rotated_ms, expires_ms, revoked_ms, "
    "(SELECT checksum FROM token_sums WHERE token_sums.id = tokens.id) FROM tokens"
)

log = structlog.get_logger()


class KnownTokens:
    """The tokens as one process knows them, for one thread. Fulfils `storage.interfaces.Tokens`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = Reader(path)
        self._clock = clock
        self._look_at = float("-inf")
        self._version = -1
        self._changes = -1
        self._tokens: dict[TokenId, Token] = {}

    def find(self, id: TokenId) -> Token | None:
        """One token as it was 250 ms ago or later; one that was just made is known at once."""
        if self._clock() >= self._look_at or (id and id not in self._tokens):
            self._look()
        return self._tokens.get(id)

    def is_locked(self) -> bool:
        """Whether a token was ever made: from then on, one is needed."""
        if self._clock() >= self._look_at:
            self._look()
        return bool(self._tokens)

    def _look(self) -> None:
        now = self._clock()
        version = self._reader.version()
        if version != self._version:
            self._read_changed()
            self._version = version
        # Last: after a failure the next request looks again, and fails as well, until the catalogue can be read.
        self._look_at = now + LOOK_EVERY_S

    def _read_changed(self) -> None:
        with self._reader.transaction():
            [(changes,)] = self._reader.rows("SELECT count FROM token_changes")
            if changes == self._changes:
                return
            rows = self._reader.rows(SELECT)
        self._tokens = {token.id: token for token in map(_token, rows)}
        for token in self._tokens.values():
            if not token.hash:
                log.error("token.damaged", token=token.id)
        self._changes = changes

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()


class TokenEditor:
    """Changes tokens. Each change is on disk when it returns, and known everywhere within half a second."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> TokenEditor:
        """Open the catalogue of a prepared data folder."""
        return cls(await Database.open(path))

    async def all(self) -> tuple[Token, ...]:
        """Every token there is, revoked, expired and damaged ones included, oldest first."""
        return tuple(_token(row) for row in await self._database.rows(f"{SELECT} ORDER BY rowid"))

    async def uses(self) -> dict[TokenId, int]:
        """When each token was last let in, in milliseconds since 1970; those that never were are not there."""
        return {TokenId(id): used_ms for id, used_ms in await self._database.rows("SELECT id, used_ms FROM token_uses")}

    async def add(self, token: Token) -> bool:
        """Make a token known, if need be in the room of those that ended long ago; False where there is none."""
        grants = [[grant.scope.name.lower(), grant.account, grant.indexes] for grant in token.grants]
        values = (token.id, token.name, token.hash, orjson.dumps(grants).decode(), token.created_ms, token.expires_ms)
        async with self._database.writing() as transaction:
            if await _count(transaction) >= TOKENS_MAX // 2:
                await transaction.rows(_FORGET, (token.created_ms - FORGET_AFTER_MS,) * 2)
            for statement in _FORGET_BESIDE:
                await transaction.rows(statement)
            if await _count(transaction) >= TOKENS_MAX:
                return False
            await transaction.rows("INSERT INTO tokens VALUES (?, ?, ?, x'', 0, ?, ?, 0, ?, 0)", values)
            await _count_change(transaction, token.id)
        return True

    async def change(self, id: TokenId, decide: Callable[[Token], Token]) -> Token | None:
        """Replace the times and hashes of a token by what `decide` makes of it; None where there is no such token.

        Raises StateDamaged.
        """
        async with self._database.writing() as transaction:
            row = await transaction.row(f"{SELECT} WHERE id = ?", (id,))
            if row is None:
                return None
            if not _is_as_written(row):
                raise StateDamaged(f"{_damage(row)}; make another with `headrace token create`")
            token = decide(_token(row))
            await transaction.rows(
                "UPDATE tokens SET hash = ?, previous_hash = ?, previous_until_ms = ?, rotated_ms = ?, "
                "expires_ms = ?, revoked_ms = ? WHERE id = ?",
                (
                    token.hash,
                    token.previous_hash,
                    token.previous_until_ms,
                    token.rotated_ms,
                    token.expires_ms,
                    token.revoked_ms,
                    id,
                ),
            )
            await _count_change(transaction, id)
        return token

    async def remove(self, id: TokenId) -> None:
        """Forget a token, so that it is as if it had never been made."""
        async with self._database.writing() as transaction:
            await transaction.rows("DELETE FROM tokens WHERE id = ?", (id,))
            for statement in _FORGET_BESIDE:
                await transaction.rows(statement)
            await _count_change(transaction)

    async def close(self) -> None:
        """Let go of the file."""
        await self._database.close()


async def _count(transaction: Transaction) -> int:
    [(count,)] = await transaction.rows("SELECT count(*) FROM tokens")
    return int(count)


async def _count_change(transaction: Transaction, written: str | None = None) -> None:
    """Tell of a change, and note what the row of a token is now where one was written."""
    if written is not None:
        [row] = await transaction.rows(f"{SELECT} WHERE id = ?", (written,))
        await transaction.rows("INSERT OR REPLACE INTO token_sums VALUES (?, ?)", (written, _row_sum(row)))
    await transaction.rows("UPDATE token_changes SET count = count + 1")


def damaged_tokens(reader: Reader) -> list[str]:
    """What is wrong with the rows of tokens."""
    return [_damage(row) for row in reader.rows(SELECT) if not _is_as_written(row)]


def _damage(row: Row) -> str:
    return f"control.db is damaged in the row of token {row[0]}, which opens nothing"


def _row_sum(row: Row) -> int:
    """The checksum of what `SELECT` finds of a token, but for the checksum itself."""
    return values_sum(row[:-1])


def _is_as_written(row: Row) -> bool:
    """Whether a row of `SELECT` is what was written, as far as anybody can know: old programs wrote no checksum."""
    return row[-1] is None or row[-1] == _row_sum(row)


def _token(row: Row) -> Token:
    """The token of a row of `SELECT`. A damaged one has no hash, so that no credential is of it, and no grant."""
    if not _is_as_written(row):
        return Token(id=TokenId(row[0]), name="(damaged)", hash=b"", grants=())
    return Token(
        id=TokenId(row[0]),
        name=row[1],
        hash=row[2],
        previous_hash=row[3],
        previous_until_ms=row[4],
        grants=tuple(Grant(Scope[scope.upper()], account, indexes) for scope, account, indexes in orjson.loads(row[5])),
        created_ms=row[6],
        rotated_ms=row[7],
        expires_ms=row[8],
        revoked_ms=row[9],
    )
