"""What lies in the folder of a segment, and `segment.json`, which says what each file must be.

    segments/<epoch>-<uuid>/
        segment.json                 counts, ranges, build parameters, size and checksums of every other file
        labels.u64                   primary    ascending
        ids.off  ids.bin             primary    row r is ids.bin[off[r]:off[r + 1]], UTF-8; offsets are u64
        metadata.off  metadata.bin   primary    the same, JSON text
        namespaces.u32               primary    the number of the row's name
        namespaces.off  namespaces.bin  primary  the names, sorted
        slots/0/vectors.f32          primary    row-major
        slots/0/norms.f64            derived    the Euclidean length of each row
        slots/0/codes.i8             derived    the vectors in a byte for each number, where rows are many; with it
        slots/0/codes.f32            derived    pairs of a scale and an error, one for each row
        slots/0/graph.usearch        derived    where the segment is large enough; with it
        slots/0/centre.f64           derived    where the graph's space has one
        slots/0/side.u32             derived    rows the graph does not find
        slots/0/companions.u32       derived    pairs of a row the graph finds and one it loses that lies near it
        slots/0/twins.u32            derived    pairs of a row in the graph and a row alike that is not
        columns/<id>.col             derived    one per metadata index
        tombstones.u64               derived    pairs (label, sequence): rows of other segments that were dead by then

All numbers are little-endian. Primary files may be the only copy of what they hold: they carry a checksum per
block, so that damage names the rows it hit. Derived files have one checksum and are made again from the
primary. An unknown key or file is ignored, so that a later version can add some.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from storage.errors import SchemaTooNew, SegmentDamaged
from storage.files import FileSum
from storage.indexes.hnsw import Form, Precision
from storage.records import DEFAULT_SLOT, Label, MetadataIndex, MetadataType, Metric, Sequence

assert sys.byteorder == "little", "segments are mapped as they lie on disk, which is little-endian"

VERSION = 1
DOCUMENT = "segment.json"
LABELS = "labels.u64"
IDS = "ids"
METADATA = "metadata"
NAMESPACES = "namespaces"
NAMESPACE_CODES = "namespaces.u32"
OFFSETS = ".off"
BYTES = ".bin"
COLUMNS = "columns"
TOMBSTONES = "tombstones.u64"
SLOT = "slots/0"
VECTORS = f"{SLOT}/vectors.f32"
NORMS = f"{SLOT}/norms.f64"
CODES = f"{SLOT}/codes.i8"
CODE_MEASURES = f"{SLOT}/codes.f32"
GRAPH = f"{SLOT}/graph.usearch"
CENTRE = f"{SLOT}/centre.f64"
SIDE = f"{SLOT}/side.u32"
COMPANIONS = f"{SLOT}/companions.u32"
TWINS = f"{SLOT}/twins.u32"

PRIMARY = (
    LABELS,
    IDS + OFFSETS,
    IDS + BYTES,
    METADATA + OFFSETS,
    METADATA + BYTES,
    NAMESPACE_CODES,
    NAMESPACES + OFFSETS,
    NAMESPACES + BYTES,
    VECTORS,
)
_BLOCK_DIGITS = 16


Ranges = tuple[tuple[int, int], ...]
"""Runs of sequences, each from its first to its last."""


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges that do not overlap, in order, with neighbours made one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and found[-1][1] + 1 == first:
            first = found.pop()[0]
        found.append((first, last))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInfo:
    """A segment as a manifest names it. `checksum` is that of its `segment.json`, which holds all others."""

    name: str
    rows: int
    first_label: Label
    last_label: Label
    first_sequence: Sequence
    last_sequence: Sequence
    as_of: Sequence
    """The applied sequence at which the segment was built: `tombstones` are complete up to it."""
    bytes: int
    checksum: str
    has_graph: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFile:
    """The values of one metadata index in one segment. `file` is relative to the folder of the segment."""

    metadata_index: MetadataIndex
    file: str
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """How the graph was built and what was measured of it.

    `expansions` is keyed by the number of answers, then by the recall reached; searches use no less than
    `expansion_min`, at which every row outside the side list was found by its own values.
    """

    form: Form
    scale: float
    side_rows: int
    expansion_min: int
    expansions: Mapping[int, Mapping[float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentDocument:
    """What `segment.json` says. `tombstones` are the labels known to be dead at publish, with who killed
    them."""

    name: str
    rows: int
    first_label: Label
    last_label: Label
    first_sequence: Sequence
    last_sequence: Sequence
    as_of: Sequence
    metric: Metric
    dimensions: int
    graph: GraphRecord | None
    tombstones: tuple[tuple[Label, Sequence], ...]
    columns: tuple[ColumnFile, ...]
    files: Mapping[str, FileSum] = field(default_factory=dict)
    ranges: Ranges = ()
    """The sequences from first to last that were sealed into it; empty in a segment that does not say, which covers
    all between its first and its last. A merge of segments that are not neighbours has gaps, where others lie."""

    @property
    def covered(self) -> Ranges:
        """The mutations whose rows are in here and nowhere else."""
        return self.ranges or ((self.first_sequence, self.last_sequence),)

    def info(self, checksum: str) -> SegmentInfo:
        """The segment as a manifest names it."""
        return SegmentInfo(
            name=self.name,
            rows=self.rows,
            first_label=self.first_label,
            last_label=self.last_label,
            first_sequence=self.first_sequence,
            last_sequence=self.last_sequence,
            as_of=self.as_of,
            bytes=sum(file.bytes for file in self.files.values()),
            checksum=checksum,
            has_graph=self.graph is not None,
        )


def pack_document(document: SegmentDocument) -> bytes:
    """Spell `segment.json`."""
    slot = {"name": DEFAULT_SLOT, "dimensions": document.dimensions, "graph": _pack_graph(document.graph)}
    return orjson.dumps(
        {
            "format": VERSION,
            "name": document.name,
            "rows": document.rows,
            "first_label": document.first_label,
            "last_label": document.last_label,
            "first_sequence": document.first_sequence,
            "last_sequence": document.last_sequence,
            "as_of": document.as_of,
            "ranges": document.ranges,
            "metric": document.metric,
            "dimensions": document.dimensions,
            "slots": [slot],
            "tombstones": document.tombstones,
            "metadata_indexes": [_pack_column_file(column) for column in document.columns],
            "files": {name: _pack_sum(known) for name, known in document.files.items()},
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def unpack_document(content: bytes) -> SegmentDocument:
    """Read what `pack_document` wrote. Raises SegmentDamaged, SchemaTooNew."""
    try:
        return _unpack(orjson.loads(content))
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise SegmentDamaged(f"a {DOCUMENT} lacks or contradicts a key: {error!r}") from error


def read_document(folder: Path, *, checksum: str = "") -> tuple[SegmentDocument, SegmentInfo]:
    """Read `segment.json`, verified against the checksum in the manifest unless that is empty.

    Raises FileNotFoundError when the segment is gone, and SegmentDamaged, naming the segment as a whole,
    otherwise: without this file no other can be trusted.
    """
    path = folder / DOCUMENT
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SegmentDamaged(
            f"{path} cannot be read ({error.strerror}); every vector of the segment is in doubt"
        ) from error
    found = xxhash.xxh3_128_hexdigest(content)
    if checksum not in ("", found):
        raise SegmentDamaged(f"{path} has checksum {found}, not {checksum}; every vector of the segment is in doubt")
    document = unpack_document(content)
    return document, document.info(found)


def _pack_graph(graph: GraphRecord | None) -> dict[str, object] | None:
    if graph is None:
        return None
    return {
        "connectivity": graph.form.connectivity,
        "precision": graph.form.precision,
        "scale": graph.scale,
        "side": SIDE,
        "side_rows": graph.side_rows,
        "expansion_min": graph.expansion_min,
        "expansions": {
            str(count): {str(recall): expansion for recall, expansion in by_recall.items()}
            for count, by_recall in graph.expansions.items()
        },
    }


def _pack_column_file(column: ColumnFile) -> dict[str, object]:
    index = column.metadata_index
    return {"id": index.id, "property": index.property, "type": index.type, "file": column.file}


def _pack_sum(known: FileSum) -> dict[str, object]:
    return {"bytes": known.bytes, "xxh3_128": known.checksum, "blocks": "".join(known.blocks)}


def _unpack(found: dict[str, Any]) -> SegmentDocument:
    if found["format"] > VERSION:
        raise SchemaTooNew(
            f"a segment has format {found['format']}; this program reads up to {VERSION}: use a newer one"
        )
    files = {name: _unpack_sum(known) for name, known in found["files"].items()}
    return SegmentDocument(
        name=found["name"],
        rows=found["rows"],
        first_label=Label(found["first_label"]),
        last_label=Label(found["last_label"]),
        first_sequence=Sequence(found["first_sequence"]),
        last_sequence=Sequence(found["last_sequence"]),
        as_of=Sequence(found["as_of"]),
        metric=Metric(found["metric"]),
        dimensions=found["dimensions"],
        graph=_unpack_graph(found["slots"][0]["graph"]),
        ranges=tuple((int(first), int(last)) for first, last in found.get("ranges", ())),
        tombstones=tuple((Label(label), Sequence(by)) for label, by in found["tombstones"]),
        columns=tuple(_unpack_column_file(column, files) for column in found["metadata_indexes"]),
        files=files,
    )


def _unpack_graph(found: dict[str, Any] | None) -> GraphRecord | None:
    if found is None:
        return None
    return GraphRecord(
        form=Form(connectivity=found["connectivity"], precision=Precision(found["precision"])),
        scale=found["scale"],
        side_rows=found["side_rows"],
        expansion_min=found["expansion_min"],
        expansions={
            int(count): {float(recall): expansion for recall, expansion in by_recall.items()}
            for count, by_recall in found["expansions"].items()
        },
    )


def _unpack_column_file(found: dict[str, Any], files: Mapping[str, FileSum]) -> ColumnFile:
    index = MetadataIndex(id=found["id"], property=found["property"], type=MetadataType(found["type"]))
    return ColumnFile(metadata_index=index, file=found["file"], checksum=files[found["file"]].checksum)


def _unpack_sum(found: dict[str, Any]) -> FileSum:
    text = found["blocks"]
    blocks = tuple(text[start : start + _BLOCK_DIGITS] for start in range(0, len(text), _BLOCK_DIGITS))
    return FileSum(bytes=found["bytes"], checksum=found["xxh3_128"], blocks=blocks)
