"""Columns give the answer of `holds` for every row, and a damaged file is not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.errors import SegmentDamaged
from storage.filters import Compare, Comparison, FilterRules, Scalar, holds, value_at
from storage.records import MetadataType
from storage.segment.column_texts import Texts, complement, merged, selected
from storage.segment.column_values import ColumnDraft
from storage.segment.columns import FactorColumn, StoredColumn, pack_column, pack_typed
from storage.snapshot import Column, Mask

EQ, LT, IN = Comparison.EQ, Comparison.LT, Comparison.IN
PATH = ("a", "b")
RULES = {
    "cloudflare": FilterRules(string_bytes_max=64, arrays=False, unindexed=False),
    "relaxed": FilterRules(string_bytes_max=0, arrays=True, unindexed=True),
    "relaxed with a bound": FilterRules(string_bytes_max=64, arrays=True, unindexed=True),
    "a bound within a character": FilterRules(string_bytes_max=2, arrays=True, unindexed=True),
}
Document = dict[str, object]

# Strings that meet around the 64-byte bound with characters of one to four bytes, and short ones around 2.
tails = st.text("aézß€￿😀\U0010ffff", max_size=5)
strings = st.one_of(tails, st.builds(lambda length, tail: "x" * length + tail, st.integers(58, 65), tails))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.5, -0.0, 1e300, 2**53, 2**53 + 1, -(2**63), 2**64 - 1]),
    strings,
)
values = st.one_of(
    scalars,
    st.lists(st.one_of(scalars, st.just([1, "a"]), st.just({"b": 1})), max_size=4),
    st.dictionaries(st.just("b"), scalars, max_size=1),
)
documents: st.SearchStrategy[Document] = st.one_of(
    st.builds(lambda value: {"a": {"b": value}}, values),
    st.builds(lambda value: {"a": value}, values),
    st.builds(lambda value: {"b": value}, scalars),
    st.just({}),
)
ordered = scalars.filter(lambda value: value is not None and not isinstance(value, bool))
compares = st.one_of(
    st.builds(Compare, st.just(PATH), st.sampled_from([EQ, Comparison.NE]), scalars),
    st.builds(Compare, st.just(PATH), st.sampled_from([LT, Comparison.LTE, Comparison.GT, Comparison.GTE]), ordered),
    st.builds(
        Compare,
        st.just(PATH),
        st.sampled_from([IN, Comparison.NIN]),
        st.lists(scalars, max_size=9).map(tuple),
    ),
    st.builds(Compare, st.just(PATH), st.just(Comparison.EXISTS), st.booleans()),
)
rows_of_documents = st.lists(documents, max_size=30)
everything = {
    "rows": rows_of_documents,
    "condition": compares,
    "profile": st.sampled_from(sorted(RULES)),
    "json_type": st.sampled_from(MetadataType),
}


def text_of(document: Document) -> bytes:
    return orjson.dumps(document) if document else b""


def stored(json_type: MetadataType, rows: list[Document], path: Path) -> StoredColumn:
    path.write_bytes(pack_column(json_type, [value_at(row, PATH) for row in rows]))
    return StoredColumn.open(path)


def bound(json_type: MetadataType, rows: list[Document], _: Path) -> Column:
    return FactorColumn.of(PATH, [text_of(row) for row in rows]).bound(json_type)


def expected(
    rows: list[Document], condition: Compare, rules: FilterRules, json_type: MetadataType | None
) -> list[bool]:
    indexed = {PATH: json_type} if json_type else {}
    return [holds(condition, row, rules, indexed) for row in rows]


@pytest.mark.parametrize("build", [stored, bound])
@given(**everything)
@settings(deadline=None, max_examples=600)
def test_a_column_of_a_metadata_index_answers_as_holds_does(
    build: Callable[[MetadataType, list[Document], Path], Column],
    rows: list[Document],
    condition: Compare,
    profile: str,
    json_type: MetadataType,
) -> None:
    with TemporaryDirectory() as folder:
        column = build(json_type, rows, Path(folder) / "column")

        mask = column.mask(condition, RULES[profile])

        assert mask.dtype == np.bool_
        assert mask.tolist() == expected(rows, condition, RULES[profile], json_type)


@given(rows=rows_of_documents, condition=compares, rules=st.sampled_from([*RULES.values()][1:]))
@settings(deadline=None, max_examples=600)
def test_a_factor_column_answers_as_holds_does_without_a_metadata_index(
    rows: list[Document], condition: Compare, rules: FilterRules
) -> None:
    column = FactorColumn.of(PATH, [text_of(row) for row in rows])

    mask = column.mask(condition, rules)

    assert mask.tolist() == expected(rows, condition, rules, None)


@given(steps=st.lists(st.lists(documents, max_size=6), min_size=2, max_size=6), condition=compares)
@settings(deadline=None, max_examples=300)
def test_extending_a_factor_column_leaves_readers_of_fewer_rows_as_they_were(
    steps: list[list[Document]], condition: Compare
) -> None:
    rules = RULES["relaxed"]
    columns, rows = [FactorColumn.of(PATH, [])], [[]]
    for step in steps:
        columns.append(columns[-1].extended([text_of(row) for row in step]))
        rows.append(rows[-1] + step)
        columns[-1].mask(condition, rules)

    for column, covered in zip(columns, rows, strict=True):
        assert column.rows == len(covered)
        assert column.mask(condition, rules).tolist() == expected(covered, condition, rules, None)


def test_two_columns_extended_from_the_same_one_do_not_share_their_new_rows() -> None:
    base = FactorColumn.of(("p",), [b'{"p": 1}'])

    left = base.extended([b'{"p": 2}'])
    right = base.extended([b'{"p": 3}'])
    longer = left.extended([b'{"p": 3}'])

    condition = Compare(("p",), EQ, 3)
    masks = [column.mask(condition, RULES["relaxed"]).tolist() for column in (base, left, right, longer)]
    assert masks == [[False], [False, False], [False, True], [False, False, True]]


def test_a_factor_column_keeps_each_distinct_value_once_and_true_apart_from_one() -> None:
    texts = [b'{"p": 1}', b'{"p": true}', b'{"p": 1.0}', b'{"p": "1"}', b'{"p": null}', b"", b'{"p": 1}']

    column = FactorColumn.of(("p",), texts)

    assert column.codes.tolist() == [0, 1, 0, 2, 3, 3, 0]


@given(
    texts=st.lists(strings, unique=True, max_size=30),
    operand=strings,
    bytes_max=st.sampled_from([0, 1, 2, 3, 4, 5, 61, 62, 63, 64, 65]),
)
@example(texts=["ab", "aé", "b"], operand="ab", bytes_max=2)
@settings(deadline=None, max_examples=1_000)
def test_spans_of_cut_strings_are_those_of_comparing_each(texts: list[str], operand: str, bytes_max: int) -> None:
    def cut(text: str) -> bytes:
        whole = text.encode()
        return whole if not bytes_max else whole[:bytes_max].decode(errors="ignore").encode()

    texts = sorted(texts)
    dictionary, key = Texts.of(texts), cut(operand)

    equal, below = dictionary.equal(key, bytes_max), dictionary.below(key, bytes_max)

    codes = range(len(texts))
    assert [any(a <= code < b for a, b in equal) for code in codes] == [cut(text) == key for text in texts]
    assert [any(a <= code < b for a, b in below) for code in codes] == [cut(text) < key for text in texts]


@given(spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_merged_spans_and_their_complement_select_what_they_say(spans: list[tuple[int, int]]) -> None:
    count = 12
    codes = np.arange(count + 1, dtype=np.uint8)
    within = [any(start <= code < end for start, end in spans) for code in range(count)]

    result = merged(spans)

    assert selected(codes, result, count).tolist() == [*within, False]
    assert selected(codes, complement(result, count), count).tolist() == [*(not one for one in within), False]


@pytest.mark.parametrize("distinct", [255, 256, 65_535, 65_536])
def test_codes_have_room_for_every_string_and_for_none(distinct: int, tmp_path: Path) -> None:
    names = [f"v{number:06}" for number in range(distinct)]
    path = tmp_path / "column"
    path.write_bytes(pack_column(MetadataType.STRING, [*names, None]))

    column = StoredColumn.open(path)

    def mask(comparison: Comparison, operand: Scalar) -> Mask:
        return column.mask(Compare(("p",), comparison, operand), RULES["relaxed"])

    assert np.flatnonzero(mask(EQ, names[-1])).tolist() == [distinct - 1]
    assert np.flatnonzero(mask(EQ, None)).tolist() == [distinct]
    assert np.flatnonzero(mask(Comparison.GTE, "")).tolist() == list(range(distinct))


def test_a_stored_column_says_its_type_and_rows_and_outlives_its_file(tmp_path: Path) -> None:
    column = stored(MetadataType.NUMBER, [{"a": {"b": 1}}, {}, {"a": {"b": [1]}}], tmp_path / "column")

    (tmp_path / "column").unlink()

    assert (column.type, column.rows) == (MetadataType.NUMBER, 3)
    assert column.mask(Compare(PATH, EQ, 1), RULES["relaxed"]).tolist() == [True, False, True]


def test_packing_the_same_values_gives_the_same_bytes() -> None:
    values = ["b", "a", None, ["c", 1, "a"], 3]

    assert pack_column(MetadataType.STRING, values) == pack_column(MetadataType.STRING, values)


@pytest.mark.parametrize("json_type", [*MetadataType])
def test_a_column_drafted_in_pieces_is_the_one_of_all_rows_at_once(json_type: MetadataType) -> None:
    values = ["b", None, True, 2**1100, -1.5, ["b", 3, "", False], {"a": 1}, "a", [], "b", False, 3, [["a"], None, "c"]]
    draft = ColumnDraft(json_type)

    for start in range(0, len(values), 3):
        draft.add(values[start : start + 3])

    assert pack_typed(draft.column()) == pack_column(json_type, values)


@pytest.mark.parametrize("json_type", MetadataType)
def test_any_changed_byte_of_a_column_file_is_noticed(json_type: MetadataType, tmp_path: Path) -> None:
    path = tmp_path / "column"
    whole = pack_column(json_type, ["a", 1.5, True, ["b", 2, False], None])
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])

        with pytest.raises(SegmentDamaged):
            StoredColumn.open(path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("length", [0, 3, 40, 200, -64])
def test_a_column_file_that_is_cut_short_is_noticed(length: int, verify: bool, tmp_path: Path) -> None:
    path = tmp_path / "column"
    path.write_bytes(pack_column(MetadataType.STRING, ["a", "b"] * 50)[:length])

    with pytest.raises(SegmentDamaged, match="column"):
        StoredColumn.open(path, verify=verify)


def test_a_missing_column_file_is_damage(tmp_path: Path) -> None:
    with pytest.raises(SegmentDamaged, match="missing"):
        StoredColumn.open(tmp_path / "column")
