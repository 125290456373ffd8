"""What a back end promises. `service` and `worker` know storage by these, never by a database or a path.

Every method is one transaction: it happens whole or not at all, and when a writing one returns, its result is on
disk. Any number of processes may hold a `Store` on the same data. All of them raise what `storage.errors` names:
`Unavailable` may come from any.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from storage.deadlines import NEVER
from storage.filters import Filter, FilterRules
from storage.limits import Limits
from storage.records import (
    AccountId,
    Appended,
    Change,
    IndexConfig,
    IndexSpec,
    MetadataIndex,
    MutationId,
    MutationStatus,
    Progress,
    Record,
    Sequence,
)
from storage.snapshot import Snapshot
from storage.tokens import Token, TokenId


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """One page of a listing. Everything but `count` must be the same for every page of a walk."""

    count: int
    cursor: str = ""
    prefix: str = ""
    namespace: str = ""
    filter: Filter | None = None
    rules: FilterRules
    include_records: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """Ids in ascending byte order, as of the first page. `records` is filled when asked for, one per id.

    A row deleted since the first page has None there. `next_cursor` is empty on the last page; `total` is the number
    of vectors (under `prefix`) when the walk began; `expires_ms` is 0 on the last page.
    """

    ids: tuple[str, ...]
    records: tuple[Record | None, ...]
    total: int
    next_cursor: str
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the service can do its work; each problem is a sentence for the operator."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The disk of the data folder: what is free, what is kept for a full one, and whether it counts as full."""

    free_bytes: int
    kept_bytes: int
    is_full: bool


@dataclass(frozen=True, slots=True)
class SetAside:
    """A mutation that failed for good, and why."""

    id: MutationId
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What an operator should know of an index that works.

    `set_aside` names the newest of the mutations that failed for good, newest first; `bounded_builds` has for each
    kind of build that did not fit the memory how many bytes of vectors it takes at once since.
    """

    set_aside: tuple[SetAside, ...]
    set_aside_count: int
    bounded_builds: Mapping[str, int]


class Tokens(Protocol):
    """The tokens of the service, as every request asks for them: without waiting, and no older than 250 ms."""

    def find(self, id: TokenId) -> Token | None:
        """One token, revoked and expired ones included; None where there is none."""

    def is_locked(self) -> bool:
        """Whether a token was ever made: from then on, one is needed."""


class Store(Protocol):
    """The system of record, as the service uses it."""

    @property
    def tokens(self) -> Tokens:
        """Who may come in."""

    async def note_uses(self, used: Mapping[TokenId, int]) -> None:
        """Remember when tokens were last let in, in milliseconds since 1970."""

    async def create_index(
        self, account: AccountId, name: str, description: str, config: IndexConfig, limits: Limits
    ) -> IndexSpec:
        """Make an index. Raises IndexExists, IndexLimitReached."""

    async def indexes(self, account: AccountId) -> tuple[IndexSpec, ...]:
        """The live indexes of an account by name."""

    def index(self, account: AccountId, name: str) -> IndexSpec:
        """One live index, as of now, without waiting. Raises IndexNotFound, IndexDeleted."""

    async def delete_index(self, spec: IndexSpec) -> None:
        """Remove an index: from now on it is gone for everybody. Raises IndexDeleted when it was already."""

    async def append(self, spec: IndexSpec, change: Change, limits: Limits) -> Appended:
        """Give the change the next place in the log; it is on disk when this returns.

        Raises IndexDeleted, IdempotencyConflict, QueueFull, VectorLimitReached, and for the two actions
        on metadata indexes MetadataIndexConflict, MetadataIndexNotFound, MetadataIndexLimitReached.
        """

    async def check_namespaces(self, spec: IndexSpec, namespaces: Items[str], limits: Limits) -> None:
        """Raise NamespaceLimitReached when these would be more namespaces than the index may have."""

    def progress(self, spec: IndexSpec) -> Progress:
        """How far the worker is, as of now, without waiting."""

    async def head(self, spec: IndexSpec) -> Sequence:
        """The sequence of the newest mutation, applied or not; 0 before the first."""

    async def caller_mutations(self, spec: IndexSpec, caller: bytes, since_ms: int) -> tuple[Sequence, ...]:
        """The applied mutations this caller appended at or after `since_ms`, oldest first; the newest 500 at most."""

    async def wait_applied(self, spec: IndexSpec, sequence: Sequence, timeout_s: float) -> bool:
        """Wait until progress has reached `sequence`; False when the time is up first. Raises IndexDeleted."""

    async def mutation(self, spec: IndexSpec, id: MutationId) -> MutationStatus:
        """One mutation. Raises MutationNotFound."""

    async def mutations(self, spec: IndexSpec, *, before: Sequence, count: int) -> tuple[MutationStatus, ...]:
        """The newest mutations below `before` (0: the newest of all), newest first."""

    def metadata_indexes(self, spec: IndexSpec) -> tuple[MetadataIndex, ...]:
        """The metadata indexes whose creation is processed, in order of creation, without waiting."""

    async def snapshot(self, spec: IndexSpec, *, until_s: float = NEVER) -> Snapshot:
        """The index now: at least as new as anything `progress` has said in any process.

        As the other two that read it, it raises DeadlinePassed when that takes beyond the deadline; what is opened then
        goes on being opened, once for all who wait.
        """

    async def records(self, spec: IndexSpec, ids: Items[str], *, until_s: float = NEVER) -> tuple[Record | None, ...]:
        """The live vectors with these ids, one per id, None where there is none."""

    async def list_page(self, spec: IndexSpec, request: ListRequest, *, until_s: float = NEVER) -> ListPage:
        """A page of ids. Raises CursorInvalid, CursorExpired."""

    async def trouble(self, spec: IndexSpec) -> Trouble:
        """What does not go as it should in an index that works."""

    async def health(self) -> Health:
        """What keeps the store from serving: pending migrations, a database that cannot be written, a late worker."""

    def disk(self) -> Disk:
        """The disk now, without waiting."""

    async def measure(self, indexes_max: int) -> tuple[tuple[IndexSpec, Measures], ...]:
        """Figures of up to `indexes_max` live indexes for the metrics page."""

    async def close(self) -> None:
        """Finish what is under way and let go of everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What the metrics page shows of one index. Bytes are keyed by kind: `log`, `state`, `segments`."""

    vectors: int
    segments: int
    queue_depth: int
    lag_ms: int
    set_aside: int
    bounded_builds: int
    bytes: dict[str, int]
