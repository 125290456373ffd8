"""An open segment: every file verified, then mapped.

Usearch trusts its file and a flipped bit kills the process, so size and checksum of every file are compared
before any of them is used. What is derived and damaged is left out: the segment still answers, slower, and
says in `damaged` what has to be made again. What is primary and damaged is `SegmentDamaged`: nothing is
guessed.

Files are mapped or read whole here and never opened again, so a segment that is unlinked stays readable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from storage.errors import SegmentDamaged
from storage.indexes import flat
from storage.indexes.codes import Codes
from storage.indexes.hnsw import Companions, Expansions, HnswGraph, Space, Twins, view_graph
from storage.pages import read_in_large_pages
from storage.records import IndexConfig, MetadataIndex, Record
from storage.segment import format as layout
from storage.segment.columns import FactorColumn, StoredColumn
from storage.segment.damage import difference, find_damage, refuse
from storage.segment.format import ColumnFile, SegmentDocument, SegmentInfo, read_document
from storage.segment.pinning import is_pinning, sealed
from storage.segment.texts import TextColumn, mapped
from storage.snapshot import Column, Mask

PROPERTY_COLUMNS_MAX = 8
"""Columns read from the metadata that one segment keeps; the one not used for longest goes first."""


def open_segment(
    folder: Path, config: IndexConfig, *, checksum: str, columns: tuple[ColumnFile, ...] = ()
) -> OpenSegment:
    """Verify and map a segment. `checksum` is that of its `segment.json`; `columns` were back-filled later.

    Reads every byte once, so it belongs in a thread. Raises SegmentDamaged, naming the file and the ids in
    doubt, when the segment is not of this index or has a primary file that is not what was written, and
    FileNotFoundError when the folder is gone: then a newer manifest does not name it.
    """
    document, info = read_document(folder, checksum=checksum)
    if (document.dimensions, document.metric) != (config.dimensions, config.metric):
        raise SegmentDamaged(
            f"segment {folder} has {document.dimensions} dimensions by {document.metric}; its index has "
            f"{config.dimensions} by {config.metric}"
        )
    for file in document.files:
        read_in_large_pages(folder / file)
    damages = find_damage(folder, document)
    lost = tuple(damage for damage in damages if damage.primary)
    if lost:
        (folder / layout.DOCUMENT).stat()  # If somebody removed the folder meanwhile, nothing is damaged.
        raise refuse(folder, document, lost)
    damaged = [damage.file for damage in damages]
    damaged += [column.file for column in columns if difference(folder / column.file, column.checksum)]
    return OpenSegment(folder, document, info, columns, damaged)


class OpenSegment:
    """The rows of a segment: the `Part` promises of `storage.snapshot`.

    `damaged` names the derived files that were not what was written and are not used. Any thread may read.
    """

    def __init__(
        self,
        folder: Path,
        document: SegmentDocument,
        info: SegmentInfo,
        columns: tuple[ColumnFile, ...],
        damaged: list[str],
    ) -> None:
        self.folder = folder
        self.document = document
        self.info = info
        self.name = document.name
        self.rows = document.rows
        self.labels: NDArray[np.uint64] = np.frombuffer(mapped(folder / layout.LABELS), dtype="<u8")
        self.vectors: NDArray[np.float32] = np.frombuffer(mapped(folder / layout.VECTORS), dtype="<f4").reshape(
            document.rows, document.dimensions
        )
        self.norms = _norms(folder, self.vectors, damaged)
        self.codes = _codes(folder, document, damaged)
        self._ids = TextColumn.open(folder, layout.IDS)
        self._metadata = TextColumn.open(folder, layout.METADATA)
        self._namespaces = TextColumn.open(folder, layout.NAMESPACES)
        self._has_namespaces = any(self._namespaces)
        self._namespace_codes = np.frombuffer(mapped(folder / layout.NAMESPACE_CODES), dtype="<u4")
        self._column_files = frozenset((*document.columns, *columns))
        self._columns = dict(_stored_columns(folder, self._column_files, document.rows, damaged))
        self._property_columns: OrderedDict[tuple[str, ...], FactorColumn] = OrderedDict()
        self._lock = Lock()
        self.graph: HnswGraph | None = _graph(folder, document, self.labels, damaged)
        side = self.graph.side if self.graph is not None else np.zeros(0, np.int64)
        self.side = flat.Gathered.of(self.vectors, self.norms, side)
        self.damaged = tuple(sorted(damaged))

    def has_columns(self, columns: tuple[ColumnFile, ...]) -> bool:
        """Whether these column files were there to be opened when the segment was; damaged ones count."""
        return self._column_files.issuperset(columns)

    def id_of(self, row: int) -> str:
        """The id of one row."""
        assert 0 <= row < self.rows
        return self._ids.text(row)

    def ids_of(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows."""
        return self._ids.texts(rows)

    def namespace_of(self, row: int) -> str:
        """The namespace of one row; empty when it has none."""
        if not self._has_namespaces:
            return ""
        return self._namespaces.text(int(self._namespace_codes[row]))

    def record(self, row: int) -> Record:
        """One row as it is answered."""
        return Record(
            id=self._ids[row].decode(),
            namespace=self.namespace_of(row),
            values=self.vectors[row].tobytes(),
            metadata=self._metadata[row],
        )

    def metadata(self, row: int) -> bytes:
        """The metadata of one row: JSON text, empty when it has none."""
        assert 0 <= row < self.rows
        return self._metadata.at(row)

    def namespace_mask(self, namespace: str) -> Mask:
        """Which rows are in this namespace."""
        name = namespace.encode()
        code = bisect_left(self._namespaces, name)
        if code == len(self._namespaces) or self._namespaces[code] != name:
            return np.zeros(self.rows, dtype=np.bool_)
        mask: Mask = self._namespace_codes == code
        return mask

    def column(self, index: MetadataIndex) -> Column | None:
        """The column of a metadata index, or None while it is not back-filled."""
        return self._columns.get(index.id)

    def property_column(self, path: tuple[str, ...]) -> FactorColumn:
        """Any property, read from the metadata itself: slower than `column`, never different."""
        with self._lock:
            # Under the lock, so that two queries do not read the same metadata side by side.
            column = self._property_columns.pop(path, None) or FactorColumn.of(path, self._metadata)
            self._property_columns[path] = column
            if len(self._property_columns) > PROPERTY_COLUMNS_MAX:
                self._property_columns.popitem(last=False)
            return column


def _norms(folder: Path, vectors: NDArray[np.float32], damaged: list[str]) -> NDArray[np.float64]:
    if layout.NORMS in damaged:
        return flat.norms(vectors)
    return np.frombuffer(mapped(folder / layout.NORMS), dtype="<f8")


def _codes(folder: Path, document: SegmentDocument, damaged: list[str]) -> Codes | None:
    # Segments written before there were any have none.
    if layout.CODES not in document.files or {layout.CODES, layout.CODE_MEASURES} & {*damaged}:
        return None
    return Codes(
        np.frombuffer(mapped(folder / layout.CODES), dtype=np.int8).reshape(document.rows, document.dimensions),
        np.frombuffer(mapped(folder / layout.CODE_MEASURES), dtype="<f4").reshape(document.rows, 2),
    )


def _stored_columns(
    folder: Path, files: Iterable[ColumnFile], rows: int, damaged: list[str]
) -> Iterable[tuple[int, StoredColumn]]:
    for file in files:
        if file.file in damaged:
            continue
        try:
            # Its checksum was compared above, as that of every file.
            column = StoredColumn.open(folder / file.file, verify=False)
        except SegmentDamaged:
            damaged.append(file.file)
            continue
        if (column.rows, column.type) != (rows, file.metadata_index.type):
            damaged.append(file.file)
            continue
        yield file.metadata_index.id, column


def _graph(folder: Path, document: SegmentDocument, labels: NDArray[np.uint64], damaged: list[str]) -> HnswGraph | None:
    record = document.graph
    if record is None or {layout.GRAPH, layout.SIDE, layout.COMPANIONS, layout.TWINS, layout.CENTRE} & {*damaged}:
        return None
    space = Space(
        metric=document.metric,
        dimensions=document.dimensions,
        scale=record.scale,
        centre=np.frombuffer(mapped(folder / layout.CENTRE), dtype="<f8"),
    )
    side = np.frombuffer(mapped(folder / layout.SIDE), dtype="<u4").astype(np.int64)
    twins = np.frombuffer(mapped(folder / layout.TWINS), dtype="<u4").astype(np.int64).reshape(-1, 2)
    companions = np.zeros((0, 2), dtype=np.int64)
    if layout.COMPANIONS in document.files:  # Segments written before there were any have none.
        companions = np.frombuffer(mapped(folder / layout.COMPANIONS), dtype="<u4").reshape(-1, 2)
    expansions = Expansions(record.expansions, floor=record.expansion_min)
    try:
        with sealed(folder / layout.GRAPH) if is_pinning() else nullcontext(folder / layout.GRAPH) as path:
            return view_graph(
                path,
                space,
                labels,
                form=record.form,
                twins=Twins(firsts=twins[:, 0].copy(), rows=twins[:, 1].copy()),
                side=side,
                expansions=expansions,
                companions=Companions(companions),
            )
    except SegmentDamaged:
        damaged.append(layout.GRAPH)
        return None
