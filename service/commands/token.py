"""`headrace token`: make, list, rotate and revoke tokens, beside a running service or before the first start.

A change is known to every service process within half a second. The text of a token is printed once, alone on standard
output, and kept nowhere.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import orjson

from service.audit import Audit
from service.commands.failure import EXIT_USAGE, CommandFailed
from storage.access import has_catalogue, open_tokens
from storage.backends.sqlite.tokens import TOKENS_MAX, TokenEditor
from storage.errors import StorageError
from storage.settings import Settings
from storage.tokens import (
    GRANTS_MAX,
    NAME_CHARS_MAX,
    Grant,
    Standing,
    Token,
    TokenId,
    grant_text,
    new_id,
    new_text,
    parse_grant,
    rotated,
    token_hash,
    token_id,
)

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NEVER = "never"

Work = Callable[[TokenEditor, int], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new token: its text, which nobody keeps, and what is kept of it."""

    text: str
    token: Token


def create(settings: Settings, *, name: str, grants: Sequence[str], expires: str) -> int:
    """Make a token and print its text; returns 0. Raises CommandFailed."""

    async def work(editor: TokenEditor, now_ms: int) -> int:
        made = make(name=checked_name(name), grants=_grants(grants), now_ms=now_ms, expires_ms=time_ms(expires, now_ms))
        is_first = not await editor.all()
        if not await editor.add(made.token):
            raise CommandFailed(f"there are {TOKENS_MAX} tokens already; revoked ones make room after 90 days")
        first = "; it is the first, so from now on every request needs one" if is_first else ""
        _audit(settings, made.token, "created")
        _show(made, f"token {made.token.id} may {_allowed(made.token)}, {_until(made.token)}{first}")
        return 0

    return _run(settings, work, makes_folder=True)


def show_all(settings: Settings, *, as_json: bool) -> int:
    """Print every token without its secret; returns 0. Raises CommandFailed."""

    async def work(editor: TokenEditor, now_ms: int) -> int:
        tokens = await editor.all()
        write = _document if as_json else _table
        sys.stdout.write(write(tokens, await editor.uses(), now_ms))
        return 0

    return _run(settings, work)


def rotate(settings: Settings, *, id: str, overlap: str, expires: str) -> int:
    """Give a token a new secret and print its new text; returns 0. Raises CommandFailed.

    The old text works for `overlap` more. Without `expires` the token ends when it would have ended.
    """

    async def work(editor: TokenEditor, now_ms: int) -> int:
        text = new_text(_id(id), secrets.choice)
        overlap_ms = span_ms(overlap)

        def decide(token: Token) -> Token:
            expires_ms = time_ms(expires, now_ms) if expires else token.expires_ms
            standing = replace(token, expires_ms=expires_ms).standing(now_ms)
            if standing is not Standing.VALID:
                hint = (
                    "make a new one"
                    if standing is Standing.REVOKED
                    else "say with --expires how long the new one works"
                )
                raise CommandFailed(f"token {token.id} is {standing.name.lower()}; {hint}")
            return rotated(token, hash=token_hash(text), now_ms=now_ms, overlap_ms=overlap_ms, expires_ms=expires_ms)

        token = await editor.change(_id(id), decide)
        if token is None:
            raise _no_such(id)
        _audit(settings, token, "rotated")
        old = f"works for {overlap} more" if overlap_ms else "stops within half a second"
        _show(Made(text=text, token=token), f"token {token.id} has a new secret, {_until(token)}; the old one {old}")
        return 0

    return _run(settings, work)


def revoke(settings: Settings, *, ids: Sequence[str]) -> int:
    """End tokens for good; returns 0. Raises CommandFailed for the first that there is not."""

    async def work(editor: TokenEditor, now_ms: int) -> int:
        for id in ids:
            token = await editor.change(_id(id), lambda one: replace(one, revoked_ms=one.revoked_ms or now_ms))
            if token is None:
                raise _no_such(id)
            _audit(settings, token, "revoked")
            sys.stderr.write(f"token {token.id} ({token.name}) opens nothing more, at the latest in half a second\n")
        return 0

    return _run(settings, work)


def make(*, name: str, grants: tuple[Grant, ...], now_ms: int, expires_ms: int) -> Made:
    """A token with a new id and secret."""
    id = new_id(secrets.choice)
    text = new_text(id, secrets.choice)
    token = Token(id=id, name=name, hash=token_hash(text), grants=grants, created_ms=now_ms, expires_ms=expires_ms)
    return Made(text=text, token=token)


def time_ms(text: str, now_ms: int) -> int:
    """A moment: a span from now, a day in UTC (from its beginning), or `never`, which is 0. Raises CommandFailed."""
    if text == _NEVER:
        return 0
    try:
        moment = int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        moment = now_ms + span_ms(text)
    if moment <= now_ms:
        raise CommandFailed(f"{text} is over already; name a later time, or `never`", exit_code=EXIT_USAGE)
    return moment


def span_ms(text: str) -> int:
    """A length of time: `90d`, `12h`, `30m`, `45s` or `0`. Raises CommandFailed."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None and text != "0":
        raise CommandFailed(
            f"{text!r} is no time; write 90d, 12h, 30m or 45s, a day such as 2031-12-31, or never",
            exit_code=EXIT_USAGE,
        )
    return int(found[1]) * _UNITS_MS[found[2]] if found else 0


def _run(settings: Settings, work: Work, *, makes_folder: bool = False) -> int:
    if not makes_folder and not has_catalogue(settings):
        raise CommandFailed(f"there are no tokens in {settings.data}; name the data folder with --data")

    async def opened() -> int:
        editor = await open_tokens(settings)
        try:
            return await work(editor, time.time_ns() // 1_000_000)
        finally:
            await editor.close()

    try:
        return asyncio.run(opened())
    except StorageError as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or settings.data} cannot be used: {error.strerror}") from error


def _audit(settings: Settings, token: Token, change: str) -> None:
    """Write a change that was made into the file of the audit; without one, the terminal has seen it."""
    if settings.audit_file:
        audit = Audit(settings.audit_file)
        audit.record_token(token, change=change, grants=_allowed(token))
        audit.close()


def _grants(texts: Sequence[str]) -> tuple[Grant, ...]:
    if not 0 < len(texts) <= GRANTS_MAX:
        raise CommandFailed(f"a token has 1 to {GRANTS_MAX} grants", exit_code=EXIT_USAGE)
    try:
        return tuple(parse_grant(text) for text in texts)
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=EXIT_USAGE) from error


def checked_name(name: str) -> str:
    """A name for a token: a few printable characters. Raises CommandFailed."""
    if not name.isprintable() or not 0 < len(name) <= NAME_CHARS_MAX:
        raise CommandFailed(
            f"{name!r:.100} is no name for a token; use 1 to {NAME_CHARS_MAX} printable characters",
            exit_code=EXIT_USAGE,
        )
    return name


def _id(text: str) -> TokenId:
    """The id as it is listed, or of a whole token that somebody pasted."""
    return token_id(text) or TokenId(text)


def _no_such(id: str) -> CommandFailed:
    # Not what was given: it may be a secret.
    return CommandFailed(f"there is no token {_id(id):.12}; `headrace token list` shows them all")


def _show(made: Made, explanation: str) -> None:
    sys.stderr.write(f"{explanation}. It is shown this once:\n")
    sys.stderr.flush()
    sys.stdout.write(f"{made.text}\n")


def _allowed(token: Token) -> str:
    return ", ".join(grant_text(grant) for grant in token.grants)


def _until(token: Token) -> str:
    return f"until {_moment(token.expires_ms)}" if token.expires_ms else "without an end"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if ms else ""


def _table(tokens: Sequence[Token], uses: Mapping[TokenId, int], now_ms: int) -> str:
    rows = [("ID", "NAME", "STATE", "GRANTS", "CREATED", "EXPIRES", "USED")]
    for one in tokens:
        times = (_moment(one.created_ms), _moment(one.expires_ms) or _NEVER, _moment(uses.get(one.id, 0)) or _NEVER)
        rows.append((one.id, one.name, one.standing(now_ms).name.lower(), _allowed(one), *times))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def _document(tokens: Sequence[Token], uses: Mapping[TokenId, int], now_ms: int) -> str:
    documents = [
        {
            "id": one.id,
            "name": one.name,
            "state": one.standing(now_ms).name.lower(),
            "grants": [grant_text(grant) for grant in one.grants],
            "created": _moment(one.created_ms),
            "rotated": _moment(one.rotated_ms),
            "expires": _moment(one.expires_ms),
            "revoked": _moment(one.revoked_ms),
            "used": _moment(uses.get(one.id, 0)),
            "oldSecretUntil": _moment(one.previous_until_ms),
        }
        for one in tokens
    ]
    return orjson.dumps(documents, option=orjson.OPT_INDENT_2).decode() + "\n"
