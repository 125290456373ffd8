"""The store that service processes use: SQLite databases and a folder of segments.

Fulfils `storage.interfaces.Store`. Nothing here decides: it finds the index, asks its log or its reader, and rings.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from collections.abc import Sequence as Items

import orjson

from storage.backends.sqlite.catalogue import Catalogue
from storage.backends.sqlite.folder import DataFolder, create_index_folder
from storage.backends.sqlite.listing import Listing, find_records
from storage.backends.sqlite.measuring import measure
from storage.backends.sqlite.migrate import is_current
from storage.backends.sqlite.opened import OpenIndex, OpenIndexes
from storage.backends.sqlite.reader import IndexReader
from storage.backends.sqlite.statuses import MUTATION_SQL, status_of
from storage.backends.sqlite.tokens import KnownTokens
from storage.backends.sqlite.waiting import Waiters
from storage.batch import unpack_ids
from storage.chain import Head
from storage.deadlines import NEVER, waiting
from storage.doorbell import Doorbell, Side
from storage.errors import (
    IndexDeleted,
    LogDamaged,
    MutationNotFound,
    NamespaceLimitReached,
    QueueFull,
    StorageError,
    StoreFull,
    VectorLimitReached,
)
from storage.interfaces import Disk, Health, ListPage, ListRequest, Measures, Trouble
from storage.limits import Limits
from storage.records import (
    AccountId,
    Action,
    Appended,
    Change,
    IndexConfig,
    IndexId,
    IndexSpec,
    MetadataIndex,
    MutationId,
    MutationStatus,
    Progress,
    Record,
    Sequence,
)
from storage.reserve import Reserve
from storage.runtime import runtime_folder
from storage.segment.pinning import pin_segments
from storage.settings import Settings
from storage.snapshot import Snapshot
from storage.tokens import TokenId

CURSOR_SECRET = "list-cursor"  # noqa: S105 (the name of a secret)
CALLER_MUTATIONS_MAX = 500
FREEING = frozenset({Action.DELETE, Action.DELETE_BY_FILTER, Action.DELETE_METADATA_INDEX})
"""What is written on a full disk as well: it is how there comes to be room."""
HEALTH_REMEMBERED_S = 2.0
"""A health check writes; how often it is asked must not become how often the disk is."""


class SqliteStore:
    """One service process's way to the data folder. Make it with `open`, in the loop that uses it."""

    def __init__(self, settings: Settings, data: DataFolder, catalogue: Catalogue, secret: bytes) -> None:
        self._settings = settings
        self._data = data
        self._catalogue = catalogue
        self._tokens = KnownTokens(data.control)
        self._reserve = Reserve(settings.data, settings.reserve_bytes)
        self._indexes = OpenIndexes(data, catalogue, settings.open_indexes_max, self._reserve)
        self._doorbell = Doorbell(runtime_folder(settings.data), Side.SERVICE, self._heard)
        self._waiters = Waiters(self._applied, self._doorbell.ring)
        self._listing = Listing(secret, settings.cursor_ttl_ms)
        self._health: tuple[float, Health] = (-HEALTH_REMEMBERED_S, Health(problems=()))

    @classmethod
    async def open(cls, settings: Settings) -> SqliteStore:
        """Prepare the data folder and open it. Raises SchemaTooNew, SchemaChanged."""
        pin_segments(settings.pin_segments)
        data = DataFolder(settings.data)
        await asyncio.to_thread(data.prepare)
        catalogue = await Catalogue.open(data)
        store = cls(settings, data, catalogue, await catalogue.secret(CURSOR_SECRET))
        store._doorbell.open()
        return store

    @property
    def tokens(self) -> KnownTokens:
        """Who may come in."""
        return self._tokens

    async def note_uses(self, used: Mapping[TokenId, int]) -> None:
        """Remember when tokens were last let in."""
        await self._catalogue.note_uses(used)

    # Indexes

    async def create_index(
        self, account: AccountId, name: str, description: str, config: IndexConfig, limits: Limits
    ) -> IndexSpec:
        """Make the folder whole, then its row: a crash between them leaves a folder that nobody names."""
        self._reserve.check()
        self._catalogue.check_free(account, name, limits)
        id = IndexId(uuid.uuid4().hex)
        await asyncio.to_thread(create_index_folder, self._data, id)
        return await self._catalogue.add(id, account, name, description, config, limits)

    async def indexes(self, account: AccountId) -> tuple[IndexSpec, ...]:
        """The live indexes of an account by name."""
        return self._catalogue.of_account(account)

    def index(self, account: AccountId, name: str) -> IndexSpec:
        """One live index, as of now."""
        return self._catalogue.get(account, name)

    async def delete_index(self, spec: IndexSpec) -> None:
        """Mark it; the worker takes the folder away."""
        await self._reserve.spend_on(lambda: self._catalogue.remove(spec))
        self._waiters.heard(spec.id)
        self._indexes.drop(spec.id)
        self._doorbell.ring(spec.id)

    # Writing

    async def append(self, spec: IndexSpec, change: Change, limits: Limits) -> Appended:
        """Append under the lock of the log, then ring for the worker."""
        if change.action in FREEING:
            return await self._reserve.spend_on(lambda: self._append(spec, change, limits))
        self._reserve.check()
        return await self._append(spec, change, limits)

    async def _append(self, spec: IndexSpec, change: Change, limits: Limits) -> Appended:
        if not self._indexes.is_open(spec.id):
            # The worker will not have it open either: it can open and take it while the mutation is being written.
            self._doorbell.ring(spec.id)
        async with self._indexes.using(spec) as index:
            self._check_vectors(index, change, limits)
            with self._indexes.while_it_lives(spec):
                log = await index.log(self._settings.lock_timeout_ms, lambda head: self._check_append(index, head))
            appended = await log.append(change, limits)
        self._doorbell.ring(spec.id)
        return appended

    def _check_append(self, index: OpenIndex, head: Head) -> None:
        """Runs under the lock: the index may have been deleted, or its queue filled, since the request came in."""
        self._catalogue.check_lives(index.spec)
        state = index.reader.state()
        if state.log_damage:
            raise LogDamaged(f'the log of index "{index.spec.name}" takes no writes: {state.log_damage}')
        if head.sequence < state.applied:
            raise LogDamaged(
                f'index "{index.spec.name}" has applied mutation {state.applied}, and its log ends at {head.sequence}: '
                "a part of the log was lost; restore a backup"
            )
        queued, queued_bytes = head.sequence - state.applied, head.bytes_through - state.applied_bytes
        if queued >= self._settings.queue_mutations_max or queued_bytes >= self._settings.queue_bytes_max:
            raise QueueFull(
                f'index "{index.spec.name}" has {queued} mutations of {queued_bytes} bytes waiting to be applied '
                f"and may have {self._settings.queue_mutations_max} of {self._settings.queue_bytes_max}; "
                "try again later"
            )

    def _check_vectors(self, index: OpenIndex, change: Change, limits: Limits) -> None:
        progress = index.reader.progress()
        vectors = progress.vectors
        is_adding = change.action in (Action.INSERT, Action.UPSERT)
        if not is_adding or vectors + change.rows <= limits.vectors_per_index_max:
            return
        ids = set(unpack_ids(change.body))
        added = len(ids) - len(index.reader.state_reader.labels(sorted(ids), progress.applied))
        if vectors + added > limits.vectors_per_index_max:
            raise VectorLimitReached(
                f'index "{index.spec.name}" has {vectors} vectors, {added} more would be over its limit of '
                f"{limits.vectors_per_index_max}; delete some that are not needed"
            )

    async def check_namespaces(self, spec: IndexSpec, namespaces: Items[str], limits: Limits) -> None:
        """Compare with the namespaces ever used, which is what the live service bounds."""
        wanted = {name for name in namespaces if name}
        if not wanted:
            return
        async with self._indexes.using(spec) as index:
            reader = index.reader.state_reader
            [(count,)] = reader.rows("SELECT count(*) FROM namespaces")
            if count + len(wanted) <= limits.namespaces_per_index_max:
                return
            [(known,)] = reader.rows(
                "SELECT count(*) FROM namespaces WHERE name IN (SELECT value FROM json_each(?))",
                (orjson.dumps(sorted(wanted)).decode(),),
            )
        if count + len(wanted) - known > limits.namespaces_per_index_max:
            raise NamespaceLimitReached(
                f'index "{spec.name}" has {count} namespaces, {len(wanted) - known} more would be over its limit of '
                f"{limits.namespaces_per_index_max}"
            )

    # Progress

    def progress(self, spec: IndexSpec) -> Progress:
        """How far the worker is now."""
        return self._indexes.get(spec).reader.progress()

    async def head(self, spec: IndexSpec) -> Sequence:
        """The newest mutation, applied or not."""
        return self._indexes.get(spec).reader.log.head()[0].sequence

    async def wait_applied(self, spec: IndexSpec, sequence: Sequence, timeout_s: float) -> bool:
        """Sleep until the worker rings, or the time is up."""
        async with self._indexes.using(spec):
            return await self._waiters.wait(spec.id, sequence, timeout_s)

    def _applied(self, id: IndexId) -> Sequence:
        known = self._catalogue.by_id(id)
        assert known is not None, "only indexes that were looked up are waited for"
        spec, lives = known
        if not lives:
            raise IndexDeleted(f'Index name "{spec.name}" was deleted')
        return self._indexes.get(spec).reader.progress().applied

    def _heard(self, id: IndexId) -> None:
        self._waiters.heard(id)
        self._indexes.drop_dead(id)
        self._indexes.follow(id)

    async def mutation(self, spec: IndexSpec, id: MutationId) -> MutationStatus:
        """One mutation; its outcome is read after its progress, so it is there when it should be."""
        async with self._indexes.using(spec) as index:
            rows = index.reader.log.rows(f"{MUTATION_SQL} WHERE mutation_id = ?", (id,))
            if not rows:
                raise MutationNotFound(f'index "{spec.name}" has no mutation {id!r}, or it is too old to be remembered')
            return status_of(index.reader, rows)[0]

    async def mutations(self, spec: IndexSpec, *, before: Sequence, count: int) -> tuple[MutationStatus, ...]:
        """The newest first."""
        async with self._indexes.using(spec) as index:
            rows = index.reader.log.rows(
                f"{MUTATION_SQL} WHERE (? = 0 OR sequence < ?) ORDER BY sequence DESC LIMIT ?",
                (before, before, count),
            )
            return status_of(index.reader, rows)

    async def caller_mutations(self, spec: IndexSpec, caller: bytes, since_ms: int) -> tuple[Sequence, ...]:
        """The applied mutations of one caller, oldest first: the newest of them, where it wrote many.

        No more than where they are: a caller that polls while it writes has hundreds, and asks for the status of one.
        """
        async with self._indexes.using(spec) as index:
            # Not by time: that would look at every row the caller has in the log.
            rows = index.reader.log.rows(
                "SELECT sequence FROM (SELECT sequence, created_ms FROM mutations WHERE caller = ? AND caller <> x'' "
                "AND sequence <= ? ORDER BY sequence DESC LIMIT ?) WHERE created_ms >= ? ORDER BY sequence",
                (caller, index.reader.progress().applied, CALLER_MUTATIONS_MAX, since_ms),
            )
            return tuple([Sequence(sequence) for (sequence,) in rows])

    # Reading

    def metadata_indexes(self, spec: IndexSpec) -> tuple[MetadataIndex, ...]:
        """The processed ones."""
        return self._indexes.get(spec).reader.metadata_indexes()

    async def snapshot(self, spec: IndexSpec, *, until_s: float = NEVER) -> Snapshot:
        """The index now: at once where this process has it as new as it is."""
        current = self._indexes.get(spec).reader.current()
        if current is not None:
            return current
        async with self._indexes.using(spec) as index, waiting(until_s):
            return await index.reader.snapshot()

    async def records(self, spec: IndexSpec, ids: Items[str], *, until_s: float = NEVER) -> tuple[Record | None, ...]:
        """The live vectors with these ids."""
        async with self._indexes.using(spec) as index:
            snapshot = await _snapshot_until(index.reader, until_s)
            return tuple(find_records(index.reader.state_reader, snapshot, list(ids)))

    async def list_page(self, spec: IndexSpec, request: ListRequest, *, until_s: float = NEVER) -> ListPage:
        """A page of ids."""
        async with self._indexes.using(spec) as index:
            snapshot = await _snapshot_until(index.reader, until_s)
            now_ms = time.time_ns() // 1_000_000
            return await self._listing.page(index.reader, snapshot, request, now_ms=now_ms, until_s=until_s)

    # Operation

    async def trouble(self, spec: IndexSpec) -> Trouble:
        """Asked with every `/info`: it looks at what is new."""
        async with self._indexes.using(spec) as index:
            return await index.troubles.now(index.reader)

    async def health(self) -> Health:
        """Asked often, looked at every two seconds."""
        at, health = self._health
        if time.monotonic() - at > HEALTH_REMEMBERED_S:
            health = Health(problems=tuple(await self._problems()))
            self._health = (time.monotonic(), health)
        return health

    async def _problems(self) -> list[str]:
        problems = []
        try:
            if not await asyncio.to_thread(is_current, self._data.control, "control"):
                problems.append("migrations of the catalogue are pending: run `headrace migrate`")
            await self._catalogue.prove_writable()
        except StoreFull as error:
            # Reads and deletes go on, and nobody who balances load must keep them away; the metrics say it.
            if not self._reserve.room().is_short:
                problems.append(str(error))
        except StorageError as error:
            problems.append(str(error))
        return problems

    def disk(self) -> Disk:
        """A look at the file system."""
        room = self._reserve.room()
        return Disk(free_bytes=room.free_bytes, kept_bytes=room.kept_bytes, is_full=room.is_short)

    async def measure(self, indexes_max: int) -> tuple[tuple[IndexSpec, Measures], ...]:
        """Figures for the metrics page, read in a thread of their own."""
        specs = self._catalogue.some(indexes_max)
        return await asyncio.to_thread(measure, self._data, specs)

    async def close(self) -> None:
        """Finish what is under way and let go of everything."""
        self._doorbell.close()
        self._waiters.close()
        await self._indexes.close()
        self._tokens.close()
        await self._catalogue.close()


async def _snapshot_until(reader: IndexReader, until_s: float) -> Snapshot:
    """The snapshot; a timer is set only where it is waited for."""
    current = reader.current()
    if current is not None:
        return current
    async with waiting(until_s):
        return await reader.snapshot()
