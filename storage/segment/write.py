"""Writing a segment: every file whole, checked and on disk before the folder gets its name.

A crash at any line of `write_segment` before the rename leaves a folder with the temporary prefix, which
nobody names and the collector removes. After the rename the segment is whole, and still nobody names it until
a manifest does: the caller publishes it, or the collector removes it as well.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from collections.abc import Sequence as Items
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from storage.files import (
    TEMPORARY_PREFIX,
    FileSum,
    FileWriter,
    fsync_folder,
    full_disk_told,
    sum_file,
    write_whole,
)
from storage.filters import path_of
from storage.indexes import flat
from storage.indexes.codes import Codes
from storage.indexes.hnsw import RECALLS, Space, Twins
from storage.pages import read_in_large_pages
from storage.records import Label, MetadataIndex, Metric
from storage.segment import format as layout
from storage.segment.audit import Audit, build_audited
from storage.segment.column_values import ColumnDraft, TypedColumn
from storage.segment.columns import pack_typed
from storage.segment.format import (
    ColumnFile,
    GraphRecord,
    SegmentDocument,
    SegmentInfo,
    pack_document,
)
from storage.segment.recall import Subject
from storage.segment.source import SegmentSource

if TYPE_CHECKING:
    from storage.segment.read import OpenSegment

_TEXTS_BYTES = 4 * 1024 * 1024  # Texts are joined before they are written: a call per row is slow.
_PARSED_ROWS = 1_024  # Rows whose metadata is in memory as objects at a time.


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions:
    """How segments of an index are written. `threads` 0 takes every core."""

    metric: Metric
    dimensions: int
    graph_rows_min: int
    threads: int = 0
    recalls: tuple[float, ...] = RECALLS


def write_segment(root: Path, name: str, source: SegmentSource, options: SegmentOptions) -> SegmentInfo:
    """Write the folder `root / name`; it is complete, audited, on disk and read-only when this returns.

    `name` must be new. A crash, or an error, leaves nothing under that name. Raises StoreFull.
    """
    temporary = root / f"{TEMPORARY_PREFIX}{name}"
    with full_disk_told(temporary):
        # Names are unique, so what is there is what a crash left of this very call.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()  # The folder of a deleted index is moved away, and must not come back.
        for folder in (temporary / layout.SLOT, temporary / layout.COLUMNS):
            folder.mkdir(parents=True)
    try:
        document = _Writing(temporary, source, options).all_files(name)
        for file in document.files.keys() - {layout.GRAPH}:
            read_in_large_pages(temporary / file, anew=True)
        content = pack_document(document)
        checksum = write_whole(temporary / layout.DOCUMENT, content).checksum
        for folder in (*sorted(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            fsync_folder(folder)
        with full_disk_told(root / name):
            temporary.rename(root / name)
        fsync_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return document.info(checksum)


def write_column(folder: Path, segment: OpenSegment, index: MetadataIndex) -> ColumnFile:
    """Back-fill the column of one metadata index into a segment that has been published.

    The file has a name of its own, so a crash before the manifest names it leaves a file that nobody reads,
    and two workers cannot write the same one. Raises StoreFull.
    """
    file = f"{layout.COLUMNS}/{index.id}-{uuid.uuid4().hex}.col"
    [column] = _read_columns((index,), (segment.metadata(row) for row in range(segment.rows)))
    written = write_whole(folder / file, pack_typed(column))
    return ColumnFile(metadata_index=index, file=file, checksum=written.checksum)


class _Writing:
    """The files of one segment on their way to disk."""

    def __init__(self, folder: Path, source: SegmentSource, options: SegmentOptions) -> None:
        self._folder = folder
        self._source = source
        self._options = options
        self._files: dict[str, FileSum] = {}

    def all_files(self, name: str) -> SegmentDocument:
        """Write everything but `segment.json`, and say what that must say."""
        source, options = self._source, self._options
        self._array(layout.LABELS, np.ascontiguousarray(source.labels, dtype="<u8"))
        self._texts(layout.IDS, (text.encode() for text in source.ids))
        self._namespaces(source.namespaces)
        self._texts(layout.METADATA, source.metadata)
        norms = self._vectors(source.vectors)
        columns = self._columns()
        if source.killed:
            self._array(layout.TOMBSTONES, np.array(source.killed, dtype="<u8"))
        graph = self._graph(norms) if len(source.labels) >= options.graph_rows_min else None
        return SegmentDocument(
            name=name,
            rows=len(source.labels),
            first_label=Label(int(source.labels[0])),
            last_label=Label(int(source.labels[-1])),
            first_sequence=source.first_sequence,
            last_sequence=source.last_sequence,
            as_of=source.as_of,
            metric=options.metric,
            dimensions=options.dimensions,
            graph=graph,
            tombstones=source.tombstones,
            ranges=source.ranges,
            columns=columns,
            files=self._files,
        )

    def _array(self, file: str, array: NDArray[np.generic]) -> None:
        self._write(file, (array.data,))

    def _write(self, file: str, contents: Iterable[bytes | memoryview]) -> None:
        with FileWriter(self._folder / file, blocks=file in layout.PRIMARY) as writer:
            for content in contents:
                writer.write(content)
        self._files[file] = writer.sum()

    def _texts(self, name: str, texts: Iterable[bytes]) -> None:
        """Texts end to end, and where each begins."""
        lengths = []
        file = name + layout.BYTES
        with FileWriter(self._folder / file, blocks=True) as writer:
            waiting: list[bytes] = []
            waiting_bytes = 0
            for text in texts:
                lengths.append(len(text))
                waiting.append(text)
                waiting_bytes += len(text)
                if waiting_bytes >= _TEXTS_BYTES:
                    writer.write(b"".join(waiting))
                    waiting, waiting_bytes = [], 0
            writer.write(b"".join(waiting))
        self._files[file] = writer.sum()
        offsets = np.zeros(len(lengths) + 1, dtype="<u8")
        np.cumsum(lengths, out=offsets[1:])
        self._array(name + layout.OFFSETS, offsets)

    def _namespaces(self, namespaces: Items[str]) -> None:
        """The distinct names in order, and for every row the number of its name."""
        seen: dict[str, int] = {}
        codes = np.fromiter((seen.setdefault(name, len(seen)) for name in namespaces), "<u4", count=len(namespaces))
        names = sorted(seen)
        places = np.empty(len(names), dtype="<u4")
        places[[seen[name] for name in names]] = np.arange(len(names))
        self._texts(layout.NAMESPACES, (name.encode() for name in names))
        self._array(layout.NAMESPACE_CODES, places[codes])

    def _vectors(self, blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
        """The values as they came, and their lengths."""
        lengths = [np.zeros(0)]
        # Where a scan is not dear there is nothing to save.
        coded = len(self._source.labels) >= self._options.graph_rows_min
        measures = [np.zeros((0, 2), dtype="<f4")]
        with (
            FileWriter(self._folder / layout.VECTORS, blocks=True) as writer,
            FileWriter(self._folder / layout.CODES) if coded else nullcontext() as codes_writer,
        ):
            for block in blocks:
                assert block.shape[1] == self._options.dimensions
                lengths.append(flat.norms(block))
                writer.write(np.ascontiguousarray(block, dtype="<f4").data)
                if codes_writer is not None:
                    codes = Codes.of(block)
                    codes_writer.write(codes.numbers.data)
                    measures.append(codes.measures)
        self._files[layout.VECTORS] = writer.sum()
        if codes_writer is not None:
            self._files[layout.CODES] = codes_writer.sum()
            self._array(layout.CODE_MEASURES, np.concatenate(measures, dtype="<f4"))
        norms = np.concatenate(lengths)
        assert len(norms) == len(self._source.labels)
        # A single NaN among its values makes a graph useless for all the others.
        assert bool(np.isfinite(norms).all()), "values are finite: they were checked when they came in"
        self._array(layout.NORMS, norms)
        return norms

    def _columns(self) -> tuple[ColumnFile, ...]:
        indexes = self._source.metadata_indexes
        return tuple(
            self._column(index, column)
            for index, column in zip(indexes, _read_columns(indexes, self._source.metadata), strict=True)
        )

    def _column(self, index: MetadataIndex, column: TypedColumn) -> ColumnFile:
        file = f"{layout.COLUMNS}/{index.id}.col"
        self._write(file, (pack_typed(column),))
        return ColumnFile(metadata_index=index, file=file, checksum=self._files[file].checksum)

    def _graph(self, norms: NDArray[np.float64]) -> GraphRecord | None:
        shape = (len(norms), self._options.dimensions)
        vectors = np.memmap(self._folder / layout.VECTORS, dtype="<f4", mode="r", shape=shape)
        space = Space.of(self._options.metric, np.asarray(vectors), norms)
        subject = Subject(
            space=space,
            twins=Twins.among(space, np.asarray(vectors)),
            labels=self._source.labels,
            vectors=np.asarray(vectors),
            norms=norms,
        )
        audit = build_audited(
            self._folder / layout.GRAPH,
            subject,
            recalls=self._options.recalls,
            threads=self._options.threads,
        )
        return None if audit is None else self._audited(subject, audit)

    def _audited(self, subject: Subject, audit: Audit) -> GraphRecord:
        self._files[layout.GRAPH] = sum_file(self._folder / layout.GRAPH)
        self._array(layout.SIDE, audit.side.astype("<u4"))
        self._array(layout.COMPANIONS, audit.companions.pairs.astype("<u4"))
        twins = np.stack([subject.twins.firsts, subject.twins.rows], axis=1)
        self._array(layout.TWINS, twins.astype("<u4"))
        self._array(layout.CENTRE, subject.space.centre)
        return GraphRecord(
            form=audit.form,
            scale=subject.space.scale,
            side_rows=len(audit.side),
            expansion_min=audit.expansion_min,
            expansions=audit.expansions,
        )


def _read_columns(indexes: Items[MetadataIndex], metadata: Iterable[bytes]) -> Items[TypedColumn]:
    """The columns of metadata indexes. The metadata is parsed once for all of them, some rows at a time."""
    drafts = [(ColumnDraft(index.type), path_of(index.property)) for index in indexes]
    if not drafts:
        return []
    rest = iter(metadata)
    while texts := list(islice(rest, _PARSED_ROWS)):
        documents = [orjson.loads(text) if text else None for text in texts]
        for draft, path in drafts:
            draft.add(_values_at(documents, path))
    return [draft.column() for draft, _ in drafts]


def _values_at(documents: list[Any], path: tuple[str, ...]) -> list[Any]:
    """What lies at a path of each, as `storage.filters.value_at` says: JSON has no mappings but dicts."""
    values = documents
    for key in path:
        values = [value.get(key) if value.__class__ is dict else None for value in values]
    return values
