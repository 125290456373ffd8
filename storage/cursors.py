"""List cursors: opaque, signed, and short-lived.

A cursor carries the sequence that the walk is pinned to, the last id shown, and a digest of what must be the same on
every page. It is signed, so that nobody can make one or carry one to another index.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

import orjson

from storage.errors import CursorExpired, CursorInvalid
from storage.records import IndexId, Sequence

MAC_BYTES = 16
START_AGAIN = "start again without a cursor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a walk is. `about` is a digest of the parameters that every page must share."""

    index: IndexId
    at: Sequence
    last_id: str
    total: int
    expires_ms: int
    about: str


def seal(cursor: Cursor, secret: bytes) -> str:
    """The cursor as the caller holds it: URL-safe text."""
    fields = [cursor.index, cursor.at, cursor.last_id, cursor.total, cursor.expires_ms, cursor.about]
    content = orjson.dumps(fields)
    return base64.urlsafe_b64encode(_mac(content, secret) + content).rstrip(b"=").decode()


def unseal(text: str, secret: bytes, *, index: IndexId, about: str, now_ms: int, horizon: Sequence) -> Cursor:
    """Read a cursor back. Raises CursorInvalid, and CursorExpired when what it shows may be gone."""
    try:
        sealed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise CursorInvalid(f"the cursor is not one that this service made; {START_AGAIN}") from error
    mac, content = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(content, secret)):
        raise CursorInvalid(f"the cursor is not one that this service made; {START_AGAIN}")
    fields = orjson.loads(content)
    cursor = Cursor(
        index=fields[0],
        at=fields[1],
        last_id=fields[2],
        total=fields[3],
        expires_ms=fields[4],
        about=fields[5],
    )
    if cursor.index != index:
        raise CursorInvalid(f"the cursor belongs to another index; {START_AGAIN}")
    if cursor.about != about:
        raise CursorInvalid(
            "the cursor belongs to a listing with another prefix, namespace or filter; "
            f"pass the same ones on every page, or {START_AGAIN}"
        )
    if now_ms >= cursor.expires_ms or cursor.at < horizon:
        raise CursorExpired(f"the cursor has expired; {START_AGAIN}")
    return cursor


def digest(*parameters: object) -> str:
    """A short digest of the parameters of a walk."""
    return hashlib.blake2b(orjson.dumps(parameters), digest_size=8).hexdigest()


def _mac(content: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(content, key=secret, digest_size=MAC_BYTES).digest()
