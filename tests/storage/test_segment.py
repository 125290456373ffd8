"""Segments: what is written is what is read, and what is damaged is never answered from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from storage.errors import SchemaTooNew, SegmentDamaged, StoreFull
from storage.files import TEMPORARY_PREFIX, hash_file
from storage.filters import Compare, Comparison, FilterRules
from storage.records import IndexConfig, Label, MetadataIndex, MetadataType, Metric, Record, Sequence
from storage.segment import format as layout
from storage.segment import write
from storage.segment.damage import damaged_ids, find_damage
from storage.segment.format import ColumnFile, SegmentInfo, read_document
from storage.segment.read import PROPERTY_COLUMNS_MAX, OpenSegment, open_segment
from storage.segment.source import SegmentSource, merge_source
from storage.segment.write import SegmentOptions, write_column, write_segment

DIMENSIONS = 16
ROWS = 600
NAME = "7-0f0f"
CONFIG = IndexConfig(dimensions=DIMENSIONS, metric=Metric.COSINE)
COLOUR = MetadataIndex(id=3, property="colour", type=MetadataType.STRING)
SIZE = MetadataIndex(id=4, property="box.size", type=MetadataType.NUMBER)
RULES = FilterRules()
WITHOUT_GRAPH = SegmentOptions(metric=Metric.COSINE, dimensions=DIMENSIONS, graph_rows_min=100_000, threads=1)
WITH_GRAPH = replace(WITHOUT_GRAPH, graph_rows_min=1)


def rows_from(first: int, count: int) -> SegmentSource:
    """Seeded rows whose labels are `first`, `first` + 2 and so on; every third has no metadata."""
    generator = np.random.default_rng(first)
    labels = np.arange(first, first + 2 * count, 2, dtype=np.uint64)
    vectors = generator.standard_normal((count, DIMENSIONS)).astype(np.float32)
    metadata = [
        b"" if label % 3 == 0 else orjson.dumps({"colour": f"c{label % 5}", "box": {"size": int(label)}})
        for label in labels.tolist()
    ]
    return SegmentSource(
        labels=labels,
        ids=[f"id-é-{label}" for label in labels],
        namespaces=["" if label % 4 == 1 else f"ns-{label % 7}" for label in labels.tolist()],
        metadata=metadata,
        vectors=np.array_split(vectors, 3),
        first_sequence=Sequence(5),
        last_sequence=Sequence(9),
        as_of=Sequence(11),
        metadata_indexes=(COLOUR, SIZE),
        tombstones=((Label(first + 2), Sequence(10)),),
    )


def vectors_of(source: SegmentSource) -> np.ndarray:
    return np.concatenate(list(source.vectors))


def opened(root: Path, info: SegmentInfo, columns: tuple[ColumnFile, ...] = ()) -> OpenSegment:
    return open_segment(root / info.name, CONFIG, checksum=info.checksum, columns=columns)


def flip_bit(path: Path, place: float) -> None:
    """Change one bit of a read-only file, `place` of the way through it."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def with_graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentInfo]:
    root = tmp_path_factory.mktemp("segments")
    return root, write_segment(root, NAME, rows_from(101, ROWS), WITH_GRAPH)


@pytest.fixture
def copied(with_graph: tuple[Path, SegmentInfo], tmp_path: Path) -> tuple[Path, SegmentInfo]:
    """A segment of its own, to be damaged."""
    root, info = with_graph
    shutil.copytree(root / info.name, tmp_path / info.name)
    return tmp_path, info


def test_every_field_comes_back_as_it_was_written(with_graph):
    root, info = with_graph
    source = rows_from(101, ROWS)
    vectors = vectors_of(source)

    segment = opened(root, info)

    assert segment.name == NAME
    assert segment.damaged == ()
    assert segment.rows == ROWS
    assert np.array_equal(segment.labels, source.labels)
    assert segment.vectors.dtype == np.float32
    assert np.array_equal(segment.vectors, vectors)
    assert np.allclose(segment.norms, np.linalg.norm(vectors.astype(np.float64), axis=1), rtol=1e-14)
    for row in range(ROWS):
        expected = Record(source.ids[row], source.namespaces[row], vectors[row].tobytes(), source.metadata[row])
        assert segment.record(row) == expected
        assert segment.id_of(row) == source.ids[row]
        assert segment.metadata(row) == source.metadata[row]


def test_segment_json_tells_what_a_rebuild_of_the_state_needs(with_graph):
    root, info = with_graph

    document, read = read_document(root / NAME)

    assert read == info
    assert (info.rows, info.first_label, info.last_label) == (ROWS, 101, 101 + 2 * (ROWS - 1))
    assert (info.first_sequence, info.last_sequence, info.as_of) == (5, 9, 11)
    assert info.has_graph
    assert info.checksum == hash_file(root / NAME / layout.DOCUMENT)
    assert info.bytes == sum(
        path.stat().st_size for path in (root / NAME).rglob("*") if path.is_file() and path.name != layout.DOCUMENT
    )
    assert document.tombstones == ((103, 10),)
    assert [column.metadata_index for column in document.columns] == [COLOUR, SIZE]


@pytest.mark.parametrize("namespace", ["", "ns-0", "ns-6", "ns-7", "absent", "zz"])
def test_a_namespace_selects_its_rows(with_graph, namespace):
    segment = opened(*with_graph)

    mask = segment.namespace_mask(namespace)

    expected = [name == namespace for name in rows_from(101, ROWS).namespaces]
    assert mask.tolist() == expected


@pytest.mark.parametrize(
    ("index", "compare"),
    [
        (COLOUR, Compare(("colour",), Comparison.EQ, "c2")),
        (SIZE, Compare(("box", "size"), Comparison.LT, 500.0)),
    ],
)
def test_a_column_and_the_metadata_answer_alike(with_graph, index, compare):
    segment = opened(*with_graph)

    column = segment.column(index)

    assert column is not None
    mask = column.mask(compare, RULES)
    assert 0 < int(mask.sum()) < ROWS
    assert np.array_equal(mask, segment.property_column(compare.path).mask(compare, RULES))


def test_columns_read_from_metadata_are_kept_up_to_a_bound(with_graph):
    segment = opened(*with_graph)
    first = segment.property_column(("colour",))

    for number in range(PROPERTY_COLUMNS_MAX - 1):
        segment.property_column((f"other-{number}",))
    assert segment.property_column(("colour",)) is first
    for number in range(PROPERTY_COLUMNS_MAX):
        segment.property_column((f"another-{number}",))

    assert segment.property_column(("colour",)) is not first


def test_a_small_segment_has_no_graph(tmp_path):
    info = write_segment(tmp_path, NAME, rows_from(1, 5), WITHOUT_GRAPH)

    assert not info.has_graph
    assert opened(tmp_path, info).graph is None


def test_a_segment_of_one_row_without_texts_is_read(tmp_path):
    source = replace(rows_from(3, 1), ids=[""], namespaces=[""], metadata=[b""], metadata_indexes=())

    info = write_segment(tmp_path, NAME, source, WITH_GRAPH)

    record = opened(tmp_path, info).record(0)
    assert (record.id, record.namespace, record.metadata) == ("", "", b"")


def test_published_files_are_read_only(with_graph):
    root, _ = with_graph

    modes = {path.stat().st_mode & 0o777 for path in (root / NAME).rglob("*") if path.is_file()}

    assert modes == {0o444}


DERIVED = [
    layout.GRAPH,
    layout.SIDE,
    layout.COMPANIONS,
    layout.TWINS,
    layout.CENTRE,
    layout.NORMS,
    layout.CODES,
    layout.CODE_MEASURES,
    "columns/3.col",
    "columns/4.col",
]


def test_every_file_is_either_primary_or_derived(with_graph):
    root, _ = with_graph

    files = {str(path.relative_to(root / NAME)) for path in (root / NAME).rglob("*") if path.is_file()}

    assert files == {*layout.PRIMARY, *DERIVED, layout.DOCUMENT}


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("file", [layout.GRAPH, layout.NORMS, layout.CODES, "columns/3.col"])
def test_a_flipped_bit_in_a_derived_file_leaves_it_unused(copied, file, place):
    root, info = copied
    flip_bit(root / NAME / file, place)

    segment = opened(root, info)

    assert segment.damaged == (file,)
    assert (segment.graph is None) == (file == layout.GRAPH)
    assert (segment.codes is None) == (file == layout.CODES)
    assert (segment.column(COLOUR) is None) == (file == "columns/3.col")
    assert np.allclose(segment.norms, np.linalg.norm(segment.vectors.astype(np.float64), axis=1))


@pytest.mark.parametrize("file", DERIVED)
def test_a_missing_derived_file_is_named_and_not_used(copied, file):
    root, info = copied
    (root / NAME / file).unlink()

    assert opened(root, info).damaged == (file,)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("file", [file for file in layout.PRIMARY if not file.startswith("ids")])
def test_a_flipped_bit_in_a_primary_file_is_refused_and_names_ids(copied, file, place):
    root, info = copied
    flip_bit(root / NAME / file, place)

    with pytest.raises(SegmentDamaged, match=rf"{file} .*'id-é-101'"):
        opened(root, info)


@pytest.mark.parametrize("file", ["ids.off", "ids.bin"])
def test_damaged_ids_are_told_by_rows_and_labels(copied, file):
    root, info = copied
    flip_bit(root / NAME / file, 0.5)

    with pytest.raises(SegmentDamaged, match=rf"{file} .*rows 0 to 599 \(labels 101 to 1299\)"):
        opened(root, info)


@pytest.mark.parametrize("file", layout.PRIMARY)
@pytest.mark.parametrize("damage", ["truncated", "zero tail", "longer", "missing"])
def test_other_damage_to_a_primary_file_is_refused(copied, file, damage):
    root, info = copied
    path = root / NAME / file
    content = path.read_bytes()
    path.unlink()
    cut = {"truncated": content[:-1], "zero tail": content[:-9] + b"\1" * 9, "longer": content + b"\0"}
    if damage in cut:
        path.write_bytes(cut[damage])

    with pytest.raises(SegmentDamaged, match=file):
        opened(root, info)


def test_damage_in_a_large_file_names_only_the_rows_of_its_block(tmp_path):
    rows = 40_000  # 2.5 MiB of vectors: three blocks.
    info = write_segment(tmp_path, NAME, replace(rows_from(0, rows), metadata_indexes=()), WITHOUT_GRAPH)
    flip_bit(tmp_path / NAME / layout.VECTORS, 0.5)
    document, _ = read_document(tmp_path / NAME, checksum=info.checksum)

    [damage] = find_damage(tmp_path / NAME, document)

    block_rows = 1024 * 1024 // (4 * DIMENSIONS)
    assert damage.rows == ((block_rows, 2 * block_rows),)
    ids = damaged_ids(tmp_path / NAME, document, damage)
    assert (ids[0], ids[-1]) == (f"id-é-{2 * block_rows}", f"id-é-{2 * (2 * block_rows - 1)}")


def test_damaged_metadata_in_a_large_file_names_only_the_rows_of_its_block(tmp_path):
    texts = [orjson.dumps({"t": "x" * 1000})] * 3000
    source = replace(rows_from(0, 3000), metadata=texts, metadata_indexes=())
    info = write_segment(tmp_path, NAME, source, WITHOUT_GRAPH)
    flip_bit(tmp_path / NAME / "metadata.bin", 0.5)
    document, _ = read_document(tmp_path / NAME, checksum=info.checksum)

    [damage] = find_damage(tmp_path / NAME, document)

    [(start, end)] = damage.rows
    length = len(texts[0])
    assert start == 1024 * 1024 // length
    assert end == -(-2 * 1024 * 1024 // length)


def test_a_changed_segment_json_is_refused(copied):
    root, info = copied
    flip_bit(root / NAME / layout.DOCUMENT, 0.3)

    with pytest.raises(SegmentDamaged, match=r"segment\.json has checksum"):
        opened(root, info)


def test_a_segment_of_a_newer_format_is_refused(copied):
    root, _ = copied
    path = root / NAME / layout.DOCUMENT
    document = orjson.loads(path.read_bytes())
    path.unlink()
    path.write_bytes(orjson.dumps(document | {"format": layout.VERSION + 1}))

    with pytest.raises(SchemaTooNew, match="format 2"):
        open_segment(root / NAME, CONFIG, checksum=hash_file(path))


def test_a_segment_of_another_index_is_refused(with_graph):
    root, info = with_graph

    with pytest.raises(SegmentDamaged, match="16 dimensions by cosine; its index has 17"):
        open_segment(root / NAME, replace(CONFIG, dimensions=17), checksum=info.checksum)


def test_a_segment_that_is_gone_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_segment(tmp_path / NAME, CONFIG, checksum="0" * 32)


def test_an_unlinked_segment_stays_readable(copied):
    root, info = copied
    segment = opened(root, info)
    source = rows_from(101, ROWS)
    shutil.rmtree(root / NAME)

    assert np.array_equal(segment.vectors, vectors_of(source))
    assert segment.record(ROWS - 1).id == source.ids[-1]
    assert segment.namespace_mask("ns-1").any()
    column = segment.column(COLOUR)
    assert column is not None
    assert column.mask(Compare(("colour",), Comparison.EQ, "c2"), RULES).any()
    assert segment.graph is not None
    assert segment.graph.search(segment.vectors[7], count=10, expansion=64)[0] == 7


def test_what_a_crash_left_does_no_harm(tmp_path):
    leftover = tmp_path / f"{TEMPORARY_PREFIX}{NAME}" / layout.SLOT
    leftover.mkdir(parents=True)
    (leftover / "vectors.f32").write_bytes(b"half")

    info = write_segment(tmp_path, NAME, rows_from(1, 20), WITHOUT_GRAPH)

    assert opened(tmp_path, info).rows == 20
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def broken() -> Iterator[np.ndarray]:
        yield np.ones((10, DIMENSIONS), np.float32)
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        write_segment(tmp_path, NAME, replace(rows_from(1, 20), vectors=broken()), WITHOUT_GRAPH)

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match="No space left on device; free some space"):
        write_segment(tmp_path, NAME, rows_from(1, 20), WITHOUT_GRAPH)

    assert list(tmp_path.iterdir()) == []


def test_a_crash_before_the_rename_leaves_only_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "fsync_folder", lambda _: os._exit(3))
    child = os.fork()
    if child == 0:
        write_segment(tmp_path, NAME, rows_from(1, 20), WITHOUT_GRAPH)
        os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 3
    assert [path.name for path in tmp_path.iterdir()] == [f"{TEMPORARY_PREFIX}{NAME}"]


def test_values_that_are_not_finite_are_never_written(tmp_path):
    vectors = np.ones((20, DIMENSIONS), np.float32)
    vectors[3, 3] = np.nan

    with pytest.raises(AssertionError, match="finite"):
        write_segment(tmp_path, NAME, replace(rows_from(1, 20), vectors=[vectors]), WITHOUT_GRAPH)


def test_a_column_is_back_filled_and_opened_with_the_segment(tmp_path):
    source = replace(rows_from(101, 60), metadata_indexes=(COLOUR,))
    info = write_segment(tmp_path, NAME, source, WITHOUT_GRAPH)
    before = opened(tmp_path, info)

    added = write_column(tmp_path / NAME, before, SIZE)
    after = opened(tmp_path, info, (added,))

    assert before.column(SIZE) is None
    assert not before.has_columns((added,))
    assert after.has_columns((added,))
    compare = Compare(("box", "size"), Comparison.GTE, 150.0)
    column = after.column(SIZE)
    assert column is not None
    assert np.array_equal(column.mask(compare, RULES), after.property_column(compare.path).mask(compare, RULES))
    assert added.file != write_column(tmp_path / NAME, before, SIZE).file


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_back_filled_column_is_not_used(tmp_path, harm):
    info = write_segment(tmp_path, NAME, replace(rows_from(101, 60), metadata_indexes=()), WITHOUT_GRAPH)
    added = write_column(tmp_path / NAME, opened(tmp_path, info), SIZE)
    if harm == "flipped":
        flip_bit(tmp_path / NAME / added.file, 0.5)
    else:
        (tmp_path / NAME / added.file).unlink()

    segment = opened(tmp_path, info, (added,))

    assert segment.damaged == (added.file,)
    assert segment.column(SIZE) is None
    assert segment.has_columns((added,))


def test_a_merge_keeps_the_live_rows_in_order_of_label(tmp_path):
    even, odd = rows_from(100, 50), rows_from(101, 70)
    infos = [write_segment(tmp_path, name, source, WITHOUT_GRAPH) for name, source in (("a", even), ("b", odd))]
    parts = [opened(tmp_path, info) for info in infos]
    live = [np.arange(part.rows) % 3 != 0 for part in parts]

    merged = merge_source(
        list(zip(parts, live, strict=True)),
        first_sequence=Sequence(1),
        last_sequence=Sequence(9),
        as_of=Sequence(12),
        metadata_indexes=(COLOUR,),
        block_bytes=4 * DIMENSIONS * 16,
    )
    result = opened(tmp_path, write_segment(tmp_path, "c", merged, WITHOUT_GRAPH))

    expected = expected_rows(parts, live)
    assert [(int(result.labels[row]), result.record(row)) for row in range(result.rows)] == expected
    assert result.column(COLOUR) is not None


def expected_rows(parts: list[OpenSegment], live: list[np.ndarray]) -> list[tuple[int, Record]]:
    rows = {
        int(part.labels[row]): part.record(row)
        for part, mask in zip(parts, live, strict=True)
        for row in np.flatnonzero(mask).tolist()
    }
    return sorted(rows.items())
