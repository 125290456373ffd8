"""The nouns of Headrace as frozen values.

Everything that crosses a module border is one of these; no dict travels. The spellings of the enums reach disk
and wire: they are written here once and never change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

AccountId = NewType("AccountId", str)
IndexId = NewType("IndexId", str)
"""32 hex digits, given at creation and never reused; it names the folder of the index."""
MutationId = NewType("MutationId", str)
"""A UUIDv7 in text; within an index two of them compare as their mutations do in the log."""
Sequence = NewType("Sequence", int)
"""The place of a mutation in the log of its index: gapless, from 1. Zero is "before the first"."""
Label = NewType("Label", int)
"""The number of one stored version of a vector: increasing per index, never reused."""

DEFAULT_SLOT = ""
"""The name of the one slot that a Vectorize index has."""


class Metric(StrEnum):
    """How two vectors are compared. The score each gives is defined in `storage.indexes.flat`."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT_PRODUCT = "dot-product"

    @property
    def lower_is_better(self) -> bool:
        """Whether the best match has the smallest score."""
        return self is not Metric.COSINE


class MetadataType(StrEnum):
    """The JSON type that a metadata index holds."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"


class Action(StrEnum):
    """What a mutation does."""

    INSERT = "insert"
    UPSERT = "upsert"
    DELETE = "delete"
    DELETE_BY_FILTER = "delete_by_filter"
    CREATE_METADATA_INDEX = "create_metadata_index"
    DELETE_METADATA_INDEX = "delete_metadata_index"


class MutationState(StrEnum):
    """How far a mutation has come. `failed` is final: it has no effect and is never applied later."""

    QUEUED = "queued"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """What is fixed when an index is created."""

    dimensions: int
    metric: Metric
    preset: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """One index as the catalogue knows it. Times are microseconds since the epoch."""

    id: IndexId
    account: AccountId
    name: str
    description: str
    config: IndexConfig
    created_us: int
    modified_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataIndex:
    """A property whose values are kept in column files. `id` is never reused within an index."""

    id: int
    property: str
    type: MetadataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one mutation did. `missing` are ids to delete that were not there."""

    inserted: int = 0
    replaced: int = 0
    ignored: int = 0
    deleted: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A mutation before it has a place in the log.

    `body` is packed by `storage.batch`; `rows` is the number of vectors or ids in it. `caller` is a short hash of
    who asked (eight bytes, or empty). `idempotency_key` is empty when the caller named none. `metadata_index` is set
    for the two actions that create or delete one (its `id` is given by the log).
    """

    action: Action
    body: bytes
    rows: int
    caller: bytes = b""
    idempotency_key: str = ""
    metadata_index: MetadataIndex | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The place a change was given. `replayed` says that an idempotency key had already been seen."""

    sequence: Sequence
    id: MutationId
    created_ms: int
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MutationStatus:
    """One mutation as its caller may ask about it. `applied_ms` is 0 until it is applied or has failed."""

    sequence: Sequence
    id: MutationId
    action: Action
    state: MutationState
    created_ms: int
    applied_ms: int = 0
    rows: int = 0
    counts: Counts = field(default_factory=Counts)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the worker is. `applied_id` is empty and `applied_ms` 0 before the first mutation."""

    applied: Sequence
    applied_id: MutationId
    applied_ms: int
    vectors: int
    layout: int


@dataclass(frozen=True, slots=True)
class Record:
    """One stored vector as it is answered.

    `values` are float32 numbers, little-endian, `dimensions` of them. `namespace` is empty when the vector has none,
    `metadata` is JSON text and empty when it has none.
    """

    id: str
    namespace: str
    values: bytes
    metadata: bytes
