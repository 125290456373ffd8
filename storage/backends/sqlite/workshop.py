"""The data folder as a worker uses it: which indexes there are, and one open index with its lease.

Fulfils what `worker` needs of storage. A worker's rights to an index are its epoch: every transaction here carries it,
and one that lost it raises LeaseLost and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Sequence as Items
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.apply import Applied, Effects
from storage.backends.sqlite.catalogue import Catalogue
from storage.backends.sqlite.database import Database, Reader
from storage.backends.sqlite.folder import DRAFT_PREFIX, DataFolder, IndexFolder
from storage.backends.sqlite.glance import Glance, glance
from storage.backends.sqlite.log import LoggedMutation
from storage.backends.sqlite.pruning import EVER_MS, Due, LogPruner
from storage.backends.sqlite.publishing import StateWriter
from storage.backends.sqlite.reader import IndexReader, check_age, check_applied
from storage.backends.sqlite.sightings import Sightings
from storage.backends.sqlite.state import ColumnRow, LeaseLost, SegmentRow, State, StateReader
from storage.chain import read_witness
from storage.errors import StorageError
from storage.files import TEMPORARY_PREFIX, fsync_folder
from storage.records import IndexId, IndexSpec, MetadataIndex, Sequence
from storage.reserve import Reserve
from storage.segment.format import COLUMNS, SegmentInfo
from storage.settings import Settings
from storage.snapshot import Snapshot

VACUUM_PAGES = 256
DRAFT_AGE_S = 600.0
"""A folder that nobody names is left alone this long: it may be an index that is being created."""


class Workshop:
    """Everything a worker can reach."""

    def __init__(self, settings: Settings, data: DataFolder, catalogue: Catalogue) -> None:
        self.settings = settings
        self.data = data
        self.reserve = Reserve(settings.data, settings.reserve_bytes)
        self._catalogue = catalogue
        self._trash, self._drafts = Sightings(data.trash), Sightings(data.indexes)

    @classmethod
    async def open(cls, settings: Settings) -> Workshop:
        """Prepare the data folder and open it. Raises SchemaTooNew, SchemaChanged."""
        data = DataFolder(settings.data)
        await asyncio.to_thread(data.prepare)
        return cls(settings, data, await Catalogue.open(data))

    def indexes(self) -> dict[IndexId, bool]:
        """Every index there ever was, and whether it lives."""
        return self._catalogue.ids()

    def lives(self, id: IndexId) -> bool:
        """Whether an index is in the catalogue and not deleted."""
        known = self._catalogue.by_id(id)
        return known is not None and known[1]

    async def open_index(self, id: IndexId) -> WorkIndex | None:
        """Open a live index for work; None when it is gone."""
        known = self._catalogue.by_id(id)
        if known is None or not known[1]:
            return None
        return await WorkIndex.open(known[0], self.data.index(id), self.settings)

    def witnessed(self, id: IndexId) -> Sequence:
        """The newest mutation that the witness knows of: one small read, and behind the log at the most."""
        witness = read_witness(self.data.index(id).witness)
        return Sequence(0) if witness is None else witness.sequence

    def glance(self, id: IndexId) -> Glance:
        """How an index is, without keeping it open."""
        return glance(self.data.index(id))

    def owner(self, id: IndexId) -> str:
        """The worker that holds an index, "" for none, without keeping the index open."""
        reader = StateReader(Reader(self.data.index(id).state))
        try:
            return reader.state().owner
        finally:
            reader.close()

    def has_folder(self, id: IndexId) -> bool:
        """Whether an index has files, dead or alive."""
        return self.data.index(id).path.exists()

    def discard(self, id: IndexId) -> None:
        """Move the folder of a deleted index where nobody looks; readers that have it open are not disturbed."""
        folder = self.data.index(id).path
        with suppress(FileNotFoundError):  # Another worker was quicker.
            os.utime(folder)
            folder.rename(self.data.trash / id)
            fsync_folder(self.data.indexes)

    def sweep_folders(self, grace_s: float) -> list[Path]:
        """Remove folders in the trash that nobody reads any more, and what is left of indexes that were never named.

        Takes as long as it takes to remove them, so not on an event loop.

        A folder that nobody names and that has mutations is an index whose catalogue was lost: it is put aside, for
        somebody to decide. Returns where those are now.
        """
        for folder in self._trash.older(grace_s):
            shutil.rmtree(folder, ignore_errors=True)
        aside = []
        old = self._drafts.older(DRAFT_AGE_S)
        # After the folders: one of them may have got its name just now. By a reader of its own, for this is a thread.
        with closing(Reader(self.data.control)) as reader:
            known = {id for (id,) in reader.rows("SELECT id FROM indexes")}
        for folder in old:
            if folder.name not in known:
                if folder.name.startswith(DRAFT_PREFIX) or self._is_empty(IndexId(folder.name)):
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    aside.append(self._put_aside(folder))
        return aside

    def _is_empty(self, id: IndexId) -> bool:
        """Whether it is certain that nothing was ever written to an index."""
        try:
            found = self.glance(id)
            return not any((found.head, found.applied, self.witnessed(id)))
        except StorageError:
            return False

    def _put_aside(self, folder: Path) -> Path:
        self.data.quarantine.mkdir(exist_ok=True, mode=0o700)
        aside = self.data.quarantine / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        folder.rename(aside)
        fsync_folder(self.data.indexes)
        return aside

    async def close(self) -> None:
        """Let go of the catalogue."""
        await self._catalogue.close()


class WorkIndex:
    """One index that a worker may hold. `epoch` is 0 while it does not."""

    def __init__(
        self, spec: IndexSpec, folder: IndexFolder, writer: StateWriter, reader: IndexReader, settings: Settings
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.epoch = 0
        self._writer = writer
        self._reader = reader
        self._pruner = LogPruner(folder, settings.lock_timeout_ms)

    @classmethod
    async def open(cls, spec: IndexSpec, folder: IndexFolder, settings: Settings) -> WorkIndex:
        """Open the databases of an index; those of an older program are brought up to date first."""
        # A worker opens many, a few at a time: on the event loop they would wait for each other.
        reader = await asyncio.to_thread(IndexReader, spec, folder)
        try:
            return cls(spec, folder, StateWriter(await Database.open(folder.state)), reader, settings)
        except BaseException:
            await reader.close()
            raise

    def state(self) -> State:
        """The progress row now."""
        return self._reader.state()

    def head(self) -> Sequence:
        """The newest mutation."""
        return self._reader.log.head()[0].sequence

    async def take(self, worker: str, found: State | None = None) -> State:
        """Own the index under a raised epoch; returns the state it was found in. Raises LeaseLost, LogDamaged.

        `found` is the state in which the caller saw that nobody alive has the index: whoever took it since keeps it.
        """
        found = found or self.state()
        self._check_second_witness(found)
        self.epoch = await self._writer.take(worker, found.epoch)
        return found

    def _check_second_witness(self, state: State) -> None:
        """The state remembers the last mutation it applied, and the log what it gave up for the state's segments."""
        _, pruned_through = self._reader.log.head()
        check_age(self.spec.name, state, pruned_through)
        check_applied(self.spec.name, state, self._reader.log)

    def check_held(self) -> None:
        """Raise LeaseLost when another worker took the index: whoever has nothing to write would not find out."""
        if self.state().epoch != self.epoch:
            raise LeaseLost(f"epoch is {self.state().epoch}, not {self.epoch}")

    async def release(self) -> None:
        """Own the index no longer."""
        await self._writer.release(self.epoch)
        self.epoch = 0

    def read(self, state: State, *, mutations_max: int, bytes_max: int) -> list[LoggedMutation]:
        """The next mutations to apply, with bodies."""
        return self._reader.log.read(
            state.applied, mutations_max=mutations_max, bytes_max=bytes_max, bytes_before=state.applied_bytes
        )

    def accepted_metadata_index(self, id: int) -> MetadataIndex | None:
        """The definition that a mutation names; None when there is none that can be read."""
        return self._reader.log.metadata_index(id)

    def metadata_indexes(self) -> tuple[MetadataIndex, ...]:
        """The processed ones."""
        return self._reader.state_reader.metadata_indexes()

    async def live_labels(self, ids: Items[str]) -> dict[str, int]:
        """The labels of the live versions of these ids."""
        return await self._writer.live_labels(ids)

    async def snapshot(self) -> Snapshot:
        """The index as applied so far, in the newest layout."""
        return await self._reader.settled()

    async def count_try(self, sequence: Sequence) -> int:
        """Remember that applying a mutation alone is begun; say how often it was."""
        return await self._writer.count_try(self.epoch, sequence)

    async def apply(self, state: State, effects: Effects, to: Applied) -> None:
        """Write effects and move progress. Raises LeaseLost, ManifestMoved."""
        await self._writer.apply(self.epoch, state.applied, effects, to)
        await self._writer.database.keep_wal_short()

    async def publish(
        self, *, inputs: Items[str], segment: SegmentInfo | None, sealed_through: Sequence | None
    ) -> None:
        """Put a segment in the place of its inputs. Raises LeaseLost, ManifestMoved."""
        row = None if segment is None else _segment_row(segment)
        await self._writer.publish(self.epoch, inputs=inputs, segment=row, sealed_through=sealed_through)

    async def publish_again(self, names: Items[str]) -> None:
        """Have everybody open and verify some segments anew. Raises LeaseLost."""
        await self._writer.publish_again(self.epoch, names)

    async def note_log_damage(self, reason: str) -> None:
        """Have nothing appended to the log from now on. Raises LeaseLost."""
        await self._writer.note_log_damage(self.epoch, reason)

    async def condemn(self) -> None:
        """Have every reader refuse the state: it is not what was written."""
        await self._writer.condemn()

    async def publish_column(self, column: ColumnRow) -> None:
        """Add a back-filled column file. Raises LeaseLost, ManifestMoved."""
        await self._writer.publish_column(self.epoch, column)

    def tail_bytes(self, sealed_through: Sequence) -> int:
        """The bytes of the bodies of the tail, rows that are dead included."""
        [(size,)] = self._reader.state_reader.rows(
            "SELECT coalesce(sum(bytes), 0) FROM parts WHERE sequence > ?", (sealed_through,)
        )
        return int(size)

    def tail_parts(self, sealed_through: Sequence) -> list[tuple[Sequence, int]]:
        """The mutations of the tail that have rows, in order, each with the bytes of its body."""
        rows = self._reader.state_reader.rows(
            "SELECT sequence, bytes FROM parts WHERE sequence > ? ORDER BY sequence", (sealed_through,)
        )
        return [(Sequence(sequence), size) for sequence, size in rows]

    def segments(self) -> tuple[SegmentRow, ...]:
        """The segments of the manifest."""
        return self._reader.state_reader.manifest_segments()

    def backfilled(self) -> set[tuple[str, int]]:
        """(segment, metadata index) of every back-filled column."""
        rows = self._reader.state_reader.rows("SELECT segment, metadata_index FROM columns")
        return {(segment, index) for segment, index in rows}

    # Collecting

    async def prune(self, due: Due) -> bool:
        """Give back the space of log bodies that are sealed; True when more is left to do.

        State is made durable in its file first: the segments it names are from now on the only copy.
        """
        if not await self._writer.database.checkpoint():
            return False
        return await self._pruner.slice(due)

    def has_to_prune(self, due: Due) -> bool:
        """Whether `prune` would find something: two small reads, because what is oldest goes first."""
        bodies = self._reader.log.rows(
            "SELECT sequence, created_ms FROM bodies JOIN mutations USING (sequence) WHERE sequence <= ? "
            "ORDER BY sequence LIMIT 1",
            (due.through,),
        )
        rows = self._reader.log.rows(
            "SELECT mutations.sequence, mutations.created_ms FROM mutations, head "
            "WHERE mutations.sequence <= pruned_through AND mutations.sequence < head.sequence "
            "ORDER BY mutations.sequence LIMIT 1"
        )
        return any(due.takes_body(*row) for row in bodies) or any(due.takes_row(*row) for row in rows)

    def forgotten_through(self) -> Sequence:
        """The newest mutation of those whose outcomes are forgotten, without one that is not."""
        [(oldest,)] = self._reader.state_reader.rows("SELECT min(sequence) FROM outcomes")
        return Sequence(self.state().applied if oldest is None else oldest - 1)

    async def forget(self, *, removed_before_ms: int, outcomes_before_ms: int, ahead_ms: int = EVER_MS) -> None:
        """Drop what no cursor and no caller can ask for any more.

        Times after `ahead_ms` are of a clock that was wrong: what has one is as old as what came after it.
        """
        reader = self._reader.state_reader
        # What is oldest is looked at first: in most minutes nothing has become old enough.
        removed = reader.rows(
            "SELECT 1 FROM vectors WHERE removed > 0 AND removed_ms < ? LIMIT 1", (removed_before_ms,)
        )
        oldest = reader.rows("SELECT applied_ms FROM outcomes ORDER BY sequence LIMIT 1")
        through = 0
        if removed or not all(outcomes_before_ms <= applied_ms <= ahead_ms for (applied_ms,) in oldest):
            [(through,)] = reader.rows(
                "SELECT coalesce(max(sequence), 0) FROM outcomes WHERE applied_ms < ?", (outcomes_before_ms,)
            )
        if removed or through:
            await self._writer.forget(
                self.epoch, removed_before_ms=removed_before_ms, outcomes_through=through, ahead_ms=ahead_ms
            )

    async def forget_sealed(self, snapshot: Snapshot, *, layout: int, through: Sequence) -> None:
        """Drop parts that a layout had sealed, through `through`, and tombstones of rows that lie nowhere any more.

        The snapshot is of the newest layout. Where that is a later one, rows that it does not have may lie in a layout
        in between. But whoever follows a layout since has applied what this one had sealed, and never asks for
        tombstones of then again; only they go. Raises ManifestMoved where a build was published since the snapshot.
        """
        rows = self._reader.state_reader.rows("SELECT sequence, label FROM tombstones")
        if layout != snapshot.layout:
            rows = [row for row in rows if row[0] <= through]
        labels = np.array([label for _, label in rows], dtype=np.uint64)
        present = np.zeros(len(labels), dtype=np.bool_)
        for live_part in snapshot.parts:
            present |= _among(labels, live_part.part.labels)
        gone = [row for row, there in zip(rows, present.tolist(), strict=True) if not there]
        await self._writer.forget_sealed(
            self.epoch, newest=snapshot.layout, layout=layout, through=through, tombstones=gone
        )

    def garbage(self) -> tuple[str, ...]:
        """The segment folders that publishes replaced and that are not unlinked yet."""
        return tuple(name for (name,) in self._reader.state_reader.rows("SELECT name FROM garbage"))

    async def remove_garbage(self, names: Items[str]) -> bool:
        """Unlink segment folders that publishes replaced; False when it could not be done now. Raises LeaseLost.

        State is made durable in its file first: one that fell back would name them again.
        """
        if not await self._writer.database.checkpoint():
            return False
        for name in names:
            await asyncio.to_thread(shutil.rmtree, self.folder.segments / name, ignore_errors=True)
        await self._writer.forget_garbage(self.epoch, names)
        return True

    async def remove_orphans(self) -> None:
        """Unlink what builds of older epochs left behind.

        The folder is listed before the manifest is read: a name that the later manifest does not have was never
        published, and no worker of an older epoch can publish it now.
        """
        try:
            names = [path.name for path in self.folder.segments.iterdir()]
        except FileNotFoundError:
            return  # The index was deleted, and another worker has taken its folder away.
        kept = {row.name for row in self.segments()} | {*self.garbage()}
        for name in names:
            epoch = _epoch_of(name)
            # What is not named as builds name it is not ours to judge.
            if name not in kept and epoch is not None and epoch < self.epoch:
                await asyncio.to_thread(shutil.rmtree, self.folder.segments / name, ignore_errors=True)
        for name in kept:
            # A back-fill that was killed: nobody ever names a draft, and who writes one still fails to publish it.
            for draft in (self.folder.segments / name / COLUMNS).glob(f"{TEMPORARY_PREFIX}*"):
                await asyncio.to_thread(draft.unlink, missing_ok=True)

    async def rest(self) -> bool:
        """Leave the state small: free pages returned, the WAL empty. True when there are more to return."""
        await self._writer.vacuum(VACUUM_PAGES)
        [(free,)] = self._reader.state_reader.rows("PRAGMA freelist_count")
        if self._writer.database.wal_bytes():
            await self._writer.database.checkpoint()
        return bool(free)

    async def close(self) -> None:
        """Let go of the index, and of its lease where it is still held."""
        try:
            if self.epoch:
                await self.release()
        except (StorageError, LeaseLost):
            pass  # Whoever takes the index next raises the epoch, whether or not an owner is noted.
        finally:
            await self._writer.close()
            await self._pruner.close()
            await self._reader.close()


def segment_name(epoch: int, unique: str) -> str:
    """The name of a segment built under an epoch; `_epoch_of` reads it back."""
    return f"{epoch}-{unique}"


def _among(labels: NDArray[np.uint64], ascending: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which labels a part has, without a pass over all of its own."""
    if not len(ascending):
        return np.zeros(len(labels), dtype=np.bool_)
    places = np.searchsorted(ascending, labels)
    found: NDArray[np.bool_] = ascending.take(places, mode="clip") == labels
    return found


def _epoch_of(name: str) -> int | None:
    digits = name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
    return int(digits) if digits.isdecimal() else None


def _segment_row(info: SegmentInfo) -> SegmentRow:
    return SegmentRow(
        name=info.name,
        rows=info.rows,
        first_label=info.first_label,
        last_label=info.last_label,
        first_sequence=info.first_sequence,
        last_sequence=info.last_sequence,
        as_of=info.as_of,
        bytes=info.bytes,
        checksum=info.checksum,
        published_ms=0,
    )
