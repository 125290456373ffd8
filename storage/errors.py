"""Everything storage can refuse, by what the reader can do about it.

    StorageError
    ├── Refused             the caller can fix it
    │   ├── IndexNotFound, IndexDeleted, IndexExists, IndexLimitReached
    │   ├── MetadataIndexConflict, MetadataIndexNotFound, MetadataIndexLimitReached
    │   ├── VectorLimitReached, NamespaceLimitReached
    │   ├── MutationNotFound, CursorInvalid, CursorExpired, IdempotencyConflict, FilterInvalid
    ├── Unavailable         the same call may work later
    │   ├── StoreBusy, StoreFull, StoreFailed, QueueFull, DeadlinePassed
    └── Damaged             stop and tell the operator
        ├── SchemaTooNew, SchemaChanged, LogDamaged, StateDamaged, SegmentDamaged, BatchDamaged, BackupRefused

Storage knows nothing of status codes: each dialect owns a table from these to its answers, and a test proves the
table complete. A message says what was asked, what was found and what would work.
"""

from __future__ import annotations


class StorageError(Exception):
    """The root of the tree; only its leaves are raised."""


class Refused(StorageError):
    """The caller can fix it."""


class Unavailable(StorageError):
    """The same call may work later."""


class Damaged(StorageError):
    """Something on disk is not what was written, or not for this program."""


class IndexNotFound(Refused):
    """No index of that name was ever created in the account."""


class IndexDeleted(Refused):
    """The index of that name was deleted."""


class IndexExists(Refused):
    """An index of that name lives in the account."""


class IndexLimitReached(Refused):
    """The account has as many indexes as it may."""


class MetadataIndexConflict(Refused):
    """The property has a metadata index of another type."""


class MetadataIndexNotFound(Refused):
    """The property has no metadata index."""


class MetadataIndexLimitReached(Refused):
    """The index has as many metadata indexes as it may."""


class VectorLimitReached(Refused):
    """The index has as many vectors as it may."""


class NamespaceLimitReached(Refused):
    """The index has as many namespaces as it may."""


class MutationNotFound(Refused):
    """The index has no such mutation, or it is too old to be remembered."""


class CursorInvalid(Refused):
    """The cursor was not made by this service for this listing."""


class CursorExpired(Refused):
    """The cursor was made too long ago."""


class IdempotencyConflict(Refused):
    """The key was used with another body."""


class FilterInvalid(Refused):
    """The filter is not in the grammar."""


class StoreBusy(Unavailable):
    """A lock could not be had in time."""


class StoreFull(Unavailable):
    """The disk is full or not writable."""


class StoreFailed(Unavailable):
    """The system failed to read or write. What was asked may have been done all the same: a repeat should be safe."""


class QueueFull(Unavailable):
    """The index has as many unapplied mutations as it may."""


class DeadlinePassed(Unavailable):
    """A read took longer than it may and was given up."""


class SchemaTooNew(Damaged):
    """A database was written by a newer program."""


class SchemaChanged(Damaged):
    """A migration that was applied is not the one in this program."""


class LogDamaged(Damaged):
    """A row of the log is missing or is not what was written."""


class StateDamaged(Damaged):
    """The state of an index contradicts itself or its log."""


class SegmentDamaged(Damaged):
    """A file of a segment is missing or is not what was written."""


class BatchDamaged(Damaged):
    """A packed body is not what was written."""


class BackupRefused(Damaged):
    """A backup is not what was written, or is none."""
