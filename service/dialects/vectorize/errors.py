"""Every refusal of this dialect: its status, its number, its words.

`Code` has the live service's numbers and, from 49000, our own. `ANSWERS` says what each storage error
becomes; a test proves that no leaf of the tree is missing. `FRAMEWORK` does the same for what the HTTP server
itself refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from storage import errors


class Code(IntEnum):
    """The numbers in `errors[].code`. They reach the wire and never change."""

    UNKNOWN_CONTENT_TYPE = 1005
    INCORRECT_API_VERSION = 1010
    INDEX_NOT_FOUND = 3000
    INDEX_NAME_INVALID = 3001
    INDEX_DUPLICATE = 3002
    INDEX_CONFIG_INVALID = 3003
    INDEX_DELETED = 3005
    NO_ROUTE_FOR_URI = 7000
    COULD_NOT_ROUTE = 7003
    AUTHENTICATION = 10000
    METADATA_INDEX_EXISTS = 40004
    METADATA_INDEX_NOT_FOUND = 40005
    QUERY_VECTOR_INVALID = 40006
    TOO_MANY = 40007
    ID_TOO_LONG = 40008
    NAMESPACE_TOO_LONG = 40009
    VECTOR_INVALID = 40012
    METADATA_KEY_INVALID = 40018
    BATCH_UNPARSABLE = 40023
    TOP_K_INVALID = 40025
    BODY_INVALID = 40026
    TOO_MANY_REQUESTS = 40041

    METADATA_INDEX_LIMIT = 49001
    CURSOR_INVALID = 49002
    CURSOR_EXPIRED = 49003
    IDEMPOTENCY_CONFLICT = 49004
    INDEX_LIMIT = 49005
    VECTOR_LIMIT = 49006
    NAMESPACE_LIMIT = 49007
    MUTATION_NOT_FOUND = 49008
    FILTER_INVALID = 49009
    DESCRIPTION_TOO_LONG = 49010
    PARAMETER_INVALID = 49011
    PROPERTY_NAME_INVALID = 49012
    METADATA_INVALID = 49013
    BUSY = 49020
    FULL = 49021
    DAMAGED = 49022
    DISK_FAILED = 49023
    DEADLINE_PASSED = 49024
    HTTP_INVALID = 49030
    METHOD_NOT_ALLOWED = 49031
    BODY_TIMEOUT = 49032
    BODY_TOO_LARGE = 49033
    CONTENT_ENCODING = 49034
    OVERLOADED = 49035
    INTERNAL = 49099

    WAIT_TIMED_OUT = 49100
    """Only in `messages`, as the two below."""
    MUTATION_FAILED = 49101
    LINES_DROPPED = 49102


class Refusal(Exception):
    """A request this dialect refuses before storage hears of it."""

    def __init__(self, code: Code, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """What an error becomes.

    `text` replaces the error's own words; `{name}` in it is the index of the request. `retry_after_s` is sent
    when it is not 0, and `final` tells the generated SDKs that a repeat would not help, whatever the status
    says.
    """

    status: int
    code: Code
    text: str = ""
    retry_after_s: int = 0
    final: bool = False


_DAMAGED = Answer(500, Code.DAMAGED, final=True)

ANSWERS: dict[type[errors.StorageError], Answer] = {
    errors.IndexNotFound: Answer(404, Code.INDEX_NOT_FOUND, 'vectorize.index.not_found - Index name "{name}"'),
    errors.IndexDeleted: Answer(410, Code.INDEX_DELETED, 'vectorize.index.deleted - Index name "{name}" was deleted'),
    # Not 409: the generated SDKs would send the creation twice more.
    errors.IndexExists: Answer(400, Code.INDEX_DUPLICATE, 'vectorize.index.duplicate_name - Index name "{name}"'),
    errors.IndexLimitReached: Answer(400, Code.INDEX_LIMIT),
    errors.MetadataIndexConflict: Answer(400, Code.METADATA_INDEX_EXISTS),
    errors.MetadataIndexNotFound: Answer(400, Code.METADATA_INDEX_NOT_FOUND),
    errors.MetadataIndexLimitReached: Answer(400, Code.METADATA_INDEX_LIMIT),
    errors.VectorLimitReached: Answer(400, Code.VECTOR_LIMIT),
    errors.NamespaceLimitReached: Answer(400, Code.NAMESPACE_LIMIT),
    errors.MutationNotFound: Answer(404, Code.MUTATION_NOT_FOUND),
    errors.CursorInvalid: Answer(400, Code.CURSOR_INVALID),
    errors.CursorExpired: Answer(400, Code.CURSOR_EXPIRED),
    # Not 409 either: a repeat with the same key and body would meet the same refusal.
    errors.IdempotencyConflict: Answer(422, Code.IDEMPOTENCY_CONFLICT),
    errors.FilterInvalid: Answer(400, Code.FILTER_INVALID),
    errors.StoreBusy: Answer(503, Code.BUSY, retry_after_s=1),
    errors.StoreFull: Answer(507, Code.FULL, retry_after_s=30),
    errors.StoreFailed: Answer(503, Code.DISK_FAILED, retry_after_s=5),
    errors.DeadlinePassed: Answer(504, Code.DEADLINE_PASSED, retry_after_s=5),
    errors.QueueFull: Answer(429, Code.TOO_MANY_REQUESTS, retry_after_s=2),
    errors.SchemaTooNew: _DAMAGED,
    errors.SchemaChanged: _DAMAGED,
    errors.LogDamaged: _DAMAGED,
    errors.StateDamaged: _DAMAGED,
    errors.SegmentDamaged: _DAMAGED,
    errors.BatchDamaged: _DAMAGED,
    errors.BackupRefused: _DAMAGED,
}

FRAMEWORK: dict[int, Code] = {
    400: Code.HTTP_INVALID,
    401: Code.AUTHENTICATION,
    403: Code.AUTHENTICATION,
    404: Code.COULD_NOT_ROUTE,
    405: Code.METHOD_NOT_ALLOWED,
    408: Code.BODY_TIMEOUT,
    413: Code.BODY_TOO_LARGE,
    415: Code.CONTENT_ENCODING,
    429: Code.TOO_MANY_REQUESTS,
    503: Code.OVERLOADED,
}
"""What the server around the handlers refuses, by its status."""


def answer_for(error: errors.StorageError) -> Answer:
    """The row of the table for an error or, for one that refines a leaf, the leaf's."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
