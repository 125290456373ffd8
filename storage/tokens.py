"""Tokens: what a client shows to be let in, and what each may do.

A token reads `hr_<id>_<secret>`. The id is no secret: it names the token in lists, logs and audits. Only the SHA-256 of
the whole is kept; the secret has 256 random bits, so the hash needs neither salt nor stretching. What a token may do is
a list of grants, and nothing that no grant names.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from fnmatch import fnmatchcase
from typing import NewType

TokenId = NewType("TokenId", str)
"""Twelve lower-case letters and digits."""

PREFIX = "hr"
ID_CHARS = 12
SECRET_CHARS = 43
"""Of 62 letters and digits: a little over 256 bits."""
ALL = "*"
"""Every account, or every index."""
GRANTS_MAX = 64
NAME_CHARS_MAX = 80
TEXT_CHARS_MAX = 512
"""No credential is longer; a longer one is not even hashed."""

_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_PATTERN = re.compile(r"[a-z0-9_*?-]{1,64}")
_NO_HASH = bytes(32)


class Scope(IntEnum):
    """What a grant allows; each includes those before it. The names in lower case reach disk and never change."""

    METRICS = 0
    """The figures of the whole service, and nothing else."""
    READ = 1
    """Search, get, list, and how far an index is."""
    WRITE = 2
    """Insert, upsert and delete vectors."""
    ADMIN = 3
    """Create and delete indexes and metadata indexes."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope on the indexes of an account whose names match a pattern (`*` any characters, `?` one)."""

    scope: Scope
    account: str = ALL
    indexes: str = ALL

    def reaches(self, scope: Scope, account: str) -> bool:
        """Whether it allows this much on some index of the account."""
        return self.scope >= scope and self.account in (ALL, account)

    def matches(self, index: str) -> bool:
        """Whether the pattern is one of this name."""
        return self.indexes == ALL or fnmatchcase(index, self.indexes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is known of a token. A time of 0 is never."""

    id: TokenId
    name: str
    hash: bytes
    grants: tuple[Grant, ...]
    created_ms: int = 0
    rotated_ms: int = 0
    expires_ms: int = 0
    revoked_ms: int = 0
    previous_hash: bytes = b""
    previous_until_ms: int = 0

    def may(self, scope: Scope, account: str, index: str) -> bool:
        """Whether it allows this much on one index."""
        return any(grant.reaches(scope, account) and grant.matches(index) for grant in self.grants)

    def may_somewhere(self, scope: Scope, account: str) -> bool:
        """Whether it allows this much on some index of an account, there or not."""
        return any(grant.reaches(scope, account) for grant in self.grants)

    def may_everywhere(self, scope: Scope) -> bool:
        """Whether it allows this much on every index of every account."""
        return any(grant.scope >= scope and grant.account == grant.indexes == ALL for grant in self.grants)

    def standing(self, now_ms: int) -> Standing:
        """Whether it lets anybody in now."""
        if self.revoked_ms:
            return Standing.REVOKED
        return Standing.EXPIRED if 0 < self.expires_ms <= now_ms else Standing.VALID


class Standing(Enum):
    """What came of a credential."""

    VALID = auto()
    MISSING = auto()
    UNKNOWN = auto()
    EXPIRED = auto()
    REVOKED = auto()


EVERYTHING = (Grant(Scope.ADMIN),)


def token_hash(text: str) -> bytes:
    """What is stored of a token."""
    # Header bytes that are not UTF-8 reach us as surrogates and must come out as the bytes they were.
    try:
        given = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # Surrogates that stand for no byte: they come from no header and open nothing.
        given = text.encode(errors="surrogatepass")
    return hashlib.sha256(given).digest()


def token_id(text: str) -> TokenId:
    """The id in the text of a token; empty where there is none."""
    prefix, _, rest = text.partition("_")
    id, _, _ = rest.partition("_")
    return TokenId(id if prefix == PREFIX and len(id) == ID_CHARS else "")


def judge(token: Token | None, given_hash: bytes, now_ms: int) -> Standing:
    """What comes of a credential whose id belongs to `token`. An unknown id takes the same steps as a known one."""
    current, previous = (token.hash, token.previous_hash) if token else (_NO_HASH, b"")
    is_current = hmac.compare_digest(given_hash, current)
    is_previous = hmac.compare_digest(given_hash, previous or _NO_HASH)
    if token is None or not (is_current or is_previous):
        return Standing.UNKNOWN
    if not is_current and token.previous_until_ms <= now_ms:
        return Standing.EXPIRED
    return token.standing(now_ms)


def new_id(choose: Callable[[str], str]) -> TokenId:
    """A new id. `choose` picks a character: `secrets.choice`, but for tests."""
    return TokenId("".join(choose(_ID_ALPHABET) for _ in range(ID_CHARS)))


def new_text(id: TokenId, choose: Callable[[str], str]) -> str:
    """The text of a token with a new secret."""
    return f"{PREFIX}_{id}_" + "".join(choose(_SECRET_ALPHABET) for _ in range(SECRET_CHARS))


def rotated(token: Token, *, hash: bytes, now_ms: int, overlap_ms: int, expires_ms: int) -> Token:
    """The token with another secret; the one before it works for `overlap_ms` more."""
    return replace(
        token,
        hash=hash,
        previous_hash=token.hash if overlap_ms else b"",
        previous_until_ms=now_ms + overlap_ms if overlap_ms else 0,
        rotated_ms=now_ms,
        expires_ms=expires_ms,
    )


def parse_grant(text: str) -> Grant:
    """Read `scope:account/pattern`; without `/pattern` it is every index. Raises ValueError with what would work."""
    scope, colon, reach = text.partition(":")
    account, slash, indexes = reach.partition("/")
    if not colon or scope.upper() not in Scope.__members__ or not account:
        raise ValueError(
            f"{text!r} is no grant; write SCOPE:ACCOUNT or SCOPE:ACCOUNT/INDEXES, where SCOPE is read, write, admin or "
            "metrics, ACCOUNT a name or * for all, and INDEXES a pattern such as docs or docs-*"
        )
    if slash and not _PATTERN.fullmatch(indexes):
        raise ValueError(
            f"{indexes!r} matches no index: names of indexes have only a-z, 0-9, _ and -, and * and ? stand for "
            "any characters and for one"
        )
    grant = Grant(Scope[scope.upper()], account, indexes or ALL)
    if grant.scope is Scope.METRICS and (account, grant.indexes) != (ALL, ALL):
        raise ValueError("the figures of the service are of all accounts together: write metrics:*")
    return grant


def grant_text(grant: Grant) -> str:
    """The grant as `parse_grant` reads it."""
    return f"{grant.scope.name.lower()}:{grant.account}" + ("" if grant.indexes == ALL else f"/{grant.indexes}")
