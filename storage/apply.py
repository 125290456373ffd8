"""What applying mutations comes to, as values: decided by `worker.plan`, written by a back end.

A label is the first label of its mutation plus the row's place in the body, so refused, ignored and superseded rows
leave gaps, which are tombstones from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import xxhash

from storage.records import Counts, MetadataIndex, MutationId, MutationState, Sequence

DIGEST_BITS = 64


@dataclass(frozen=True, slots=True)
class Added:
    """A version that becomes live."""

    id: str
    label: int
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Removed:
    """A version that stops being live."""

    id: str
    label: int
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class TailPart:
    """Where the rows of one mutation lie. `source` is "log:<sequence>"."""

    sequence: Sequence
    first_label: int
    rows: int
    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one mutation did."""

    sequence: Sequence
    state: MutationState
    counts: Counts
    error: str = ""


@dataclass(slots=True)
class Effects:
    """Everything one apply transaction writes, oldest mutation first.

    `stillborn` are (sequence, label) of rows that never become live: ignored, or superseded within their body.
    `digest` is what the order-free hash of the live rows changes by.
    """

    next_label: int
    added: dict[str, Added] = field(default_factory=dict)
    """By id: a version added and removed within the transaction is in `passing`."""
    passing: list[tuple[Added, Sequence]] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    stillborn: list[tuple[Sequence, int]] = field(default_factory=list)
    parts: list[TailPart] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    namespaces: set[str] = field(default_factory=set)
    created: list[MetadataIndex] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @property
    def vectors(self) -> int:
        """By how many the live vectors change."""
        return len(self.added) - len(self.removed)

    @property
    def digest(self) -> int:
        """By how much the digest of the live rows changes, modulo 2^64."""
        total = sum(row_digest(one.id, one.label) for one in self.added.values())
        total -= sum(row_digest(one.id, one.label) for one in self.removed)
        return total % (1 << DIGEST_BITS)


@dataclass(frozen=True, slots=True)
class Applied:
    """The progress an apply transaction moves to."""

    sequence: Sequence
    id: MutationId
    chain: bytes
    bytes_through: int


def row_digest(id: str, label: int) -> int:
    """The hash of one live row; their sum modulo 2^64 does not depend on the order."""
    return xxhash.xxh3_64_intdigest(id.encode(), seed=label)


def signed(digest: int) -> int:
    """A 64-bit digest as SQLite stores integers."""
    return digest - (1 << DIGEST_BITS) if digest >= 1 << (DIGEST_BITS - 1) else digest
