"""Making an index that is whole again out of one that is damaged, from what can be verified of it.

The new index stands on segments, the primary copy of what is sealed, and on the log behind them: its state is as of the
last sealed mutation, and the worker applies the log again from there. Where the log still has what a damaged segment
was made from, that is applied again as well. What cannot be had again is said, by vector or by mutation. The old folder
is put into quarantine as it was; nothing is taken from it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storage.apply import row_digest, signed
from storage.backends.sqlite.database import Reader, Statements, translated
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DRAFT_PREFIX, DataFolder, IndexFolder
from storage.backends.sqlite.inspection import Part, inspect_index, span
from storage.backends.sqlite.migrate import migrate
from storage.backends.sqlite.publishing import sum_up
from storage.backends.sqlite.restoring import settle_witness
from storage.backends.sqlite.salvage_log import KeptMutation, LogRemains, read_remains, renewed, write_log
from storage.backends.sqlite.state import Manifest, StateReader
from storage.chain import read_witness
from storage.errors import StateDamaged, StorageError
from storage.files import fsync_folder
from storage.records import Action, IndexConfig, Label, Sequence
from storage.segment import format as layout
from storage.segment.damage import find_damage
from storage.segment.format import SegmentDocument, SegmentInfo, read_document
from storage.segment.source import SegmentSource
from storage.segment.texts import TextColumn, mapped
from storage.segment.write import SegmentOptions, write_segment

SEQUENCE_MAX = 1 << 53
"""A number beyond is not one that was counted."""


@dataclass(slots=True)
class Salvaged:
    """What became of an index: what is lost, and where the old one is."""

    lost: list[str] = field(default_factory=list)
    quarantine: Path | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment that is still there. `lost_rows` are those that its damaged blocks touch."""

    folder: Path
    document: SegmentDocument
    info: SegmentInfo
    lost_rows: frozenset[int]


def salvage(data: DataFolder, index: str, config: IndexConfig, *, graph_rows_min: int) -> Salvaged:
    """Put a whole index in the place of a damaged one. Nobody may use the data folder meanwhile. Raises StorageError.

    A crash leaves the old folder, or the new one and the old one in quarantine.
    """
    work = _Salvage(data, index, config, graph_rows_min)
    try:
        work.run()
    except BaseException:
        shutil.rmtree(work.draft.path, ignore_errors=True)
        raise
    return work.told


class _Salvage:
    def __init__(self, data: DataFolder, index: str, config: IndexConfig, graph_rows_min: int) -> None:
        self._data = data
        self._old = IndexFolder(data.indexes / index)
        self._config = config
        self._options = SegmentOptions(
            metric=config.metric, dimensions=config.dimensions, graph_rows_min=graph_rows_min
        )
        self.draft = IndexFolder(data.indexes / f"{DRAFT_PREFIX}{index}-{uuid.uuid4().hex[:8]}")
        self.told = Salvaged()

    def run(self) -> None:
        """Read, decide from which mutation on the log is applied again, write, verify, exchange."""
        manifest = self._manifest()
        newest = self._newest(manifest)
        remains = read_remains(self._old.log, newest)
        newest = max(newest, remains.last)
        pieces = self._pieces(manifest)
        sealed = self._sealed(manifest, remains, pieces)
        pieces, sealed = self._heal(pieces, sealed, remains.bodies_from(newest))
        known: dict[int, str] = {}
        if manifest is not None:
            known[manifest.state.applied] = manifest.state.applied_id
        mutations = renewed(remains, sealed_through=sealed, newest=newest, known_ids=known)
        self._tell(mutations, pieces)
        self.draft.segments.mkdir(parents=True, mode=0o700)
        write_log(self.draft.log, remains, mutations, sealed_through=sealed)
        kept = [self._bring(piece) for piece in pieces if len(piece.lost_rows) < piece.document.rows]
        self._write_state(manifest, remains, mutations, kept, sealed)
        settle_witness(self.draft)
        for finding in inspect_index(self.draft):
            if finding.part is not Part.DERIVED:
                raise StateDamaged(f"what was salvaged is not whole, so nothing was changed: {finding.message}")
        self._exchange()

    def _manifest(self) -> Manifest | None:
        """The old manifest, where all of the state is what was written."""
        try:
            with closing(StateReader(Reader(self._old.state))) as reader:
                manifest = reader.verified_manifest()
        except (StorageError, TypeError, ValueError, OverflowError):
            return None
        return manifest if manifest.state.sums is not None else None

    def _newest(self, manifest: Manifest | None) -> int:
        """The newest mutation that anything knows of."""
        witness = read_witness(self._old.witness)
        known = [witness.sequence if witness is not None else 0, manifest.state.applied if manifest is not None else 0]
        return max([one for one in known if one < SEQUENCE_MAX], default=0)

    def _pieces(self, manifest: Manifest | None) -> list[_Piece]:
        """The segments: those of the manifest, else of the newest that do not overlap."""
        names = (
            {row.name: row.checksum for row in manifest.segments}
            if manifest is not None
            else {path.name: "" for path in self._old.segments.iterdir() if not path.name.startswith(".")}
        )
        pieces = []
        for name, checksum in names.items():
            try:
                document, info = read_document(self._old.segments / name, checksum=checksum)
            except (StorageError, OSError) as error:
                if manifest is not None:
                    self._lose_segment(manifest, name, error)
                continue
            lost: set[int] = set()
            for damage in find_damage(self._old.segments / name, document):
                if damage.primary:
                    lost.update(row for start, end in damage.rows for row in range(start, end))
            pieces.append(_Piece(self._old.segments / name, document, info, frozenset(lost)))
        if manifest is not None:
            return pieces
        chosen: list[_Piece] = []
        for piece in sorted(pieces, key=lambda piece: (-piece.document.as_of, -piece.document.rows)):
            if not any(_overlap(piece.document, other.document) for other in chosen):
                chosen.append(piece)
        return chosen

    def _lose_segment(self, manifest: Manifest, name: str, error: Exception) -> None:
        [row] = [row for row in manifest.segments if row.name == name]
        self.told.lost.append(
            f"segment {name} with {row.rows} vectors of mutations {row.first_sequence} to {row.last_sequence}: {error}"
        )

    def _sealed(self, manifest: Manifest | None, remains: LogRemains, pieces: list[_Piece]) -> int:
        if manifest is not None:
            return manifest.state.sealed_through
        last = max((piece.document.last_sequence for piece in pieces), default=0)
        return max(last, remains.pruned_through if remains.pruned_through < SEQUENCE_MAX else 0)

    def _heal(self, pieces: list[_Piece], sealed: int, bodies_from: int) -> tuple[list[_Piece], int]:
        """Leave out damaged segments whose mutations the log still has, and all behind them: they are applied again."""
        damaged = [piece.document.first_sequence for piece in pieces if piece.lost_rows]
        if not damaged:
            return pieces, sealed
        through = min(damaged) - 1
        while crossed := [
            piece.document.first_sequence - 1
            for piece in pieces
            if piece.document.first_sequence <= through < piece.document.last_sequence
        ]:
            through = min(crossed)
        if bodies_from > through + 1:
            return pieces, sealed
        return [piece for piece in pieces if piece.document.last_sequence <= through], through

    def _tell(self, mutations: list[KeptMutation], pieces: list[_Piece]) -> None:
        lost = tuple(one.sequence for one in mutations if one.is_lost)
        if lost:
            ids = ", ".join(one.mutation_id for one in mutations if one.is_lost)
            self.told.lost.append(f"mutations {span(lost)}: {ids[:2000]}")
        for piece in pieces:
            if piece.lost_rows:
                self.told.lost.append(f"{len(piece.lost_rows)} vectors of segment {piece.document.name}: {_ids(piece)}")

    def _bring(self, piece: _Piece) -> SegmentInfo:
        """A segment into the new index: itself, or its whole rows written anew."""
        if not piece.lost_rows:
            shutil.copytree(piece.folder, self.draft.segments / piece.folder.name, copy_function=_link)
            return piece.info
        name = f"{piece.folder.name.partition('-')[0]}-{uuid.uuid4().hex}"
        return write_segment(self.draft.segments, name, _whole_rows(piece), self._options)

    def _write_state(
        self,
        manifest: Manifest | None,
        remains: LogRemains,
        mutations: list[KeptMutation],
        segments: list[SegmentInfo],
        sealed: int,
    ) -> None:
        killed = self._killed(manifest, segments, sealed)
        at = next((one for one in mutations if one.sequence == sealed), None)
        migrate(self.draft.state, "state")
        with translated(self.draft.state), closing(connect(self.draft.state, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            statements = Statements(connection)
            live = _Live(self.draft, killed, sealed)
            for info in sorted(segments, key=lambda one: -one.last_label):
                live.add(statements, info)
            statements.many("INSERT INTO tombstones VALUES (?, ?)", sorted((by, label) for label, by in killed.items()))
            statements.many("INSERT OR IGNORE INTO namespaces VALUES (?)", [(name,) for name in live.namespaces])
            statements.many("INSERT INTO metadata_indexes VALUES (?, ?, ?)", _processed(remains, mutations, sealed))
            labels = [int(one.last_label) for one in segments] + [*killed]
            statements.rows(
                "UPDATE progress SET epoch = ?, layout = 1, applied = ?, applied_id = ?, applied_ms = ?, "
                "applied_chain = ?, applied_bytes = 0, sealed_through = ?, next_label = ?, vectors = ?, digest = ?, "
                "list_horizon = ?",
                (
                    _epoch(manifest, segments),
                    sealed,
                    at.mutation_id if at is not None else "",
                    at.created_ms if at is not None else 0,
                    at.chain if at is not None else bytes(32),
                    sealed,
                    max(labels, default=0) + 1,
                    live.count,
                    signed(live.digest % (1 << 64)),
                    sealed,
                ),
            )
            sum_up(statements)
            connection.execute("COMMIT")

    def _killed(self, manifest: Manifest | None, segments: list[SegmentInfo], sealed: int) -> dict[int, int]:
        """The dead rows of the segments by label, as of the sealed mutation: from the state, else from the segments."""
        pairs: list[tuple[int, int]] = []
        if manifest is not None:
            pairs = list(zip(manifest.tombstones, manifest.killed_by, strict=True))
        else:
            for info in segments:
                path = self.draft.segments / info.name / layout.TOMBSTONES
                if path.exists():
                    found = np.frombuffer(path.read_bytes(), dtype="<u8").reshape(-1, 2).tolist()
                    pairs += [(label, by) for label, by in found]
        there = {
            int(label)
            for info in segments
            for label in np.frombuffer(mapped(self.draft.segments / info.name / layout.LABELS), dtype="<u8").tolist()
        }
        return {int(label): int(by) for label, by in pairs if by <= sealed and label in there}

    def _exchange(self) -> None:
        for folder in (*(path for path in self.draft.path.rglob("*") if path.is_dir()), self.draft.path):
            fsync_folder(folder)
        self._data.quarantine.mkdir(exist_ok=True, mode=0o700)
        aside = self._data.quarantine / f"{self._old.path.name}-{uuid.uuid4().hex[:8]}"
        self._old.path.rename(aside)
        self.draft.path.rename(self._old.path)
        fsync_folder(self._data.indexes)
        fsync_folder(self._data.quarantine)
        self.told.quarantine = aside


class _Live:
    """The live rows of the segments on their way into `vectors`; the newest of an id is the one that lives."""

    def __init__(self, folder: IndexFolder, killed: dict[int, int], sealed: int) -> None:
        self._folder = folder
        self._killed = killed
        self._sealed = sealed
        self._seen: set[str] = set()
        self.namespaces: set[str] = set()
        self.count = 0
        self.digest = 0

    def add(self, statements: Statements, info: SegmentInfo) -> None:
        """One segment; those with newer labels come first."""
        path = self._folder.segments / info.name
        labels = np.frombuffer(mapped(path / layout.LABELS), dtype="<u8").tolist()
        ids = TextColumn.open(path, layout.IDS)
        rows = []
        for place in range(len(labels) - 1, -1, -1):
            id, label = ids[place].decode(), labels[place]
            if label in self._killed:
                continue
            if id in self._seen:
                self._killed[label] = self._sealed
                continue
            self._seen.add(id)
            self.count += 1
            self.digest += row_digest(id, label)
            rows.append((id, label, int(info.first_sequence), 0, 0))
        statements.many("INSERT INTO vectors VALUES (?, ?, ?, ?, ?)", rows)
        self.namespaces |= {text.decode() for text in TextColumn.open(path, layout.NAMESPACES) if text}
        _write_segment_row(statements, info)


def _overlap(one: SegmentDocument, other: SegmentDocument) -> bool:
    """Whether both have rows of the same mutations: then the later made is what replaced the other."""
    return any(first <= end and begin <= last for first, last in one.covered for begin, end in other.covered)


def _write_segment_row(statements: Statements, info: SegmentInfo) -> None:
    statements.rows(
        "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            info.name,
            info.rows,
            info.first_label,
            info.last_label,
            info.first_sequence,
            info.last_sequence,
            info.as_of,
            info.bytes,
            info.checksum,
            time.time_ns() // 1_000_000,
        ),
    )


def _processed(remains: LogRemains, mutations: Iterable[KeptMutation], sealed: int) -> list[tuple[int, str, str]]:
    """The metadata indexes as of the sealed mutation: the accepted ones, without what came later."""
    live = {row[0] for row in remains.metadata_indexes if not row[3]}
    for one in mutations:
        if one.sequence > sealed and one.metadata_index:
            if one.action == Action.CREATE_METADATA_INDEX:
                live.discard(one.metadata_index)
            elif one.action == Action.DELETE_METADATA_INDEX:
                live.add(one.metadata_index)
    return [(row[0], row[1], row[2]) for row in remains.metadata_indexes if row[0] in live]


def _epoch(manifest: Manifest | None, segments: list[SegmentInfo]) -> int:
    """Above every epoch there was."""
    named = [int(one.name.partition("-")[0]) for one in segments]
    return max([*named, manifest.state.epoch if manifest is not None else 0]) + 1


def _link(source: str, target: str) -> str:
    os.link(source, target)
    return target


def _ids(piece: _Piece) -> str:
    """The ids of lost rows, where they can be read."""
    try:
        ids = TextColumn.open(piece.folder, layout.IDS)
        names = [ids[row].decode() for row in sorted(piece.lost_rows)[:1000]]
    except (OSError, ValueError, IndexError):
        names = []
    return ", ".join(map(repr, names))[:2000] or f"labels within {piece.info.first_label} to {piece.info.last_label}"


def _whole_rows(piece: _Piece) -> SegmentSource:
    """The rows of a damaged segment that none of its damaged blocks touch."""
    document, folder = piece.document, piece.folder
    rows = [row for row in range(document.rows) if row not in piece.lost_rows]
    ids, metadata = TextColumn.open(folder, layout.IDS), TextColumn.open(folder, layout.METADATA)
    names = TextColumn.open(folder, layout.NAMESPACES)
    codes = np.frombuffer(mapped(folder / layout.NAMESPACE_CODES), dtype="<u4")
    labels = np.frombuffer(mapped(folder / layout.LABELS), dtype="<u8")
    width = 4 * document.dimensions
    values = mapped(folder / layout.VECTORS)
    vectors = np.stack([np.frombuffer(values[row * width : (row + 1) * width], dtype="<f4") for row in rows])
    return SegmentSource(
        labels=labels[rows],
        ids=[ids[row].decode() for row in rows],
        namespaces=[names[int(codes[row])].decode() for row in rows],
        metadata=[metadata[row] for row in rows],
        vectors=[vectors],
        first_sequence=Sequence(document.first_sequence),
        last_sequence=Sequence(document.last_sequence),
        as_of=Sequence(document.as_of),
        metadata_indexes=tuple(column.metadata_index for column in document.columns),
        ranges=document.ranges,
        tombstones=tuple((Label(label), Sequence(by)) for label, by in document.tombstones),
    )
