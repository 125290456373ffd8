"""The meaning of filters, case by case, and their spelling in the log."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FilterInvalid
from storage.filters import (
    And,
    Compare,
    Comparison,
    Filter,
    FilterRules,
    Not,
    Or,
    Scalar,
    cut,
    from_json,
    holds,
    narrowed,
    path_of,
    paths,
    to_json,
)
from storage.records import MetadataType

EQ, NE, LT, LTE = Comparison.EQ, Comparison.NE, Comparison.LT, Comparison.LTE
GT, GTE, IN, NIN, EXISTS = Comparison.GT, Comparison.GTE, Comparison.IN, Comparison.NIN, Comparison.EXISTS
RELAXED = FilterRules(string_bytes_max=0, arrays=True, unindexed=True)
STRICT = FilterRules(string_bytes_max=64, arrays=False, unindexed=False)
PLAIN = FilterRules(string_bytes_max=64, arrays=False, unindexed=True)


def compare(comparison: Comparison, operand: Scalar | tuple[Scalar, ...], path: str = "p") -> Compare:
    return Compare(path_of(path), comparison, operand)


@pytest.mark.parametrize(
    ("metadata", "condition", "expected"),
    [
        pytest.param({"p": "a"}, compare(EQ, "a"), True, id="the same string"),
        pytest.param({"p": "a"}, compare(EQ, "b"), False, id="another string"),
        pytest.param({"p": 1}, compare(EQ, 1.0), True, id="a whole number and its float"),
        pytest.param({"p": 2**53 + 1}, compare(EQ, 2**53), True, id="numbers that are one float64"),
        pytest.param({"p": 10**400}, compare(GT, 1e308), True, id="a number beyond float64 is infinite"),
        pytest.param({"p": -(10**400)}, compare(LT, -1e308), True, id="and so it is below zero"),
        pytest.param({"p": True}, compare(EQ, 1), False, id="true is not 1"),
        pytest.param({"p": 0}, compare(EQ, False), False, id="0 is not false"),
        pytest.param({"p": "1"}, compare(EQ, 1), False, id="a string is not a number"),
        pytest.param({"p": {"x": 1}}, compare(EQ, "x"), False, id="an object equals nothing"),
        pytest.param({"p": {"x": 1}}, compare(NE, "x"), True, id="an object differs from everything"),
        pytest.param({}, compare(EQ, None), True, id="missing is null"),
        pytest.param({"p": None}, compare(EQ, None), True, id="null is null"),
        pytest.param({"p": 0}, compare(EQ, None), False, id="zero is not null"),
        pytest.param({"p": ""}, compare(NE, None), True, id="an empty string is not null"),
        pytest.param({"p": None}, compare(NE, None), False, id="null is not unlike null"),
        pytest.param({}, compare(NE, "a"), True, id="missing differs from every value"),
        pytest.param({}, compare(NIN, ("a",)), True, id="missing is outside every list"),
        pytest.param({}, compare(NIN, ("a", None)), False, id="unless null is in the list"),
        pytest.param({}, compare(IN, ("a", None)), True, id="null in a list finds missing"),
        pytest.param({}, compare(IN, ("a",)), False, id="missing is in no list of values"),
        pytest.param({"p": "a"}, compare(IN, ()), False, id="nothing is in an empty list"),
        pytest.param({"p": "a"}, compare(NIN, ()), True, id="everything is outside an empty list"),
        pytest.param({"p": 5}, compare(IN, ("5", True, 5)), True, id="a list of mixed types"),
        pytest.param({"p": 5}, compare(LT, 5), False, id="not below itself"),
        pytest.param({"p": 5}, compare(LTE, 5), True, id="at most itself"),
        pytest.param({"p": "net"}, compare(GTE, "net"), True, id="strings have an order"),
        pytest.param({"p": "neu"}, compare(LT, "neu"), False, id="the end of a prefix search is outside"),
        pytest.param({"p": "\uffff"}, compare(LT, "\U00010000"), True, id="strings order by UTF-8 bytes"),
        pytest.param({"p": "5"}, compare(GT, 1), False, id="a range over numbers passes strings by"),
        pytest.param({"p": True}, compare(GTE, False), False, id="booleans have no order"),
        pytest.param({}, compare(LT, 5), False, id="missing is in no range"),
        pytest.param({"p": False}, compare(EXISTS, True), True, id="false exists"),
        pytest.param({"p": None}, compare(EXISTS, True), False, id="null does not exist"),
        pytest.param({}, compare(EXISTS, False), True, id="missing does not exist"),
        pytest.param({"a": {"b": 1}}, compare(EQ, 1, "a.b"), True, id="a path looks into objects"),
        pytest.param({"a": 1}, compare(EQ, None, "a.b"), True, id="a path through a number leads nowhere"),
        pytest.param({"a": [{"b": 1}]}, compare(EQ, None, "a.b"), True, id="a path through an array, too"),
        pytest.param({"p": ["a", "b"]}, compare(EQ, "b"), True, id="an element equals"),
        pytest.param({"p": ["a", "b"]}, compare(NE, "b"), False, id="then the array does not differ"),
        pytest.param({"p": ["a", 7]}, compare(GT, 5), True, id="an element is in a range"),
        pytest.param({"p": [["a"]]}, compare(EQ, "a"), False, id="arrays in arrays are not looked into"),
        pytest.param({"p": []}, compare(EQ, None), False, id="an empty array is not null"),
        pytest.param({"p": [None]}, compare(IN, (None,)), False, id="null in an array is not null"),
        pytest.param({"p": [True]}, compare(EQ, 1), False, id="elements keep their type"),
    ],
)
def test_a_comparison_holds_where_the_rules_say_so(
    metadata: dict[str, object], condition: Compare, expected: bool
) -> None:
    assert holds(condition, metadata, RELAXED, {}) is expected


def test_without_arrays_an_array_is_a_value_of_another_type() -> None:
    metadata: dict[str, object] = {"p": ["a"]}

    assert not holds(compare(EQ, "a"), metadata, PLAIN, {})
    assert holds(compare(NE, "a"), metadata, PLAIN, {})
    assert holds(compare(EXISTS, True), metadata, PLAIN, {})


def test_a_metadata_index_sees_values_of_its_own_type_only() -> None:
    indexed = {("p",): MetadataType.NUMBER}

    assert not holds(compare(EQ, "a"), {"p": "a"}, RELAXED, indexed)
    assert holds(compare(NE, "a"), {"p": "a"}, RELAXED, indexed)
    assert not holds(compare(IN, ("a",)), {"p": ["a", 1]}, RELAXED, indexed)
    assert holds(compare(IN, ("a", 1)), {"p": ["a", 1]}, RELAXED, indexed)
    assert not holds(compare(EQ, None), {"p": "a"}, RELAXED, indexed)


@pytest.mark.parametrize("comparison", Comparison)
def test_a_strict_filter_on_a_property_without_an_index_matches_nothing(comparison: Comparison) -> None:
    operand: Scalar | tuple[Scalar, ...] = "a"
    if comparison in {IN, NIN}:
        operand = ("a",)
    if comparison is EXISTS:
        operand = False

    assert not any(holds(compare(comparison, operand), row, STRICT, {}) for row in ({}, {"p": "a"}, {"p": "b"}))


def test_strings_with_the_same_first_bytes_are_equal_under_a_bound() -> None:
    indexed = {("p",): MetadataType.STRING}
    long = "x" * 64

    assert holds(compare(EQ, long + "tail"), {"p": long + "other"}, STRICT, indexed)
    assert not holds(compare(GT, long), {"p": long + "other"}, STRICT, indexed)
    assert not holds(compare(EQ, long), {"p": "x" * 63}, STRICT, indexed)
    assert holds(compare(GT, long), {"p": long + "other"}, RELAXED, indexed)


@pytest.mark.parametrize(
    ("text", "bytes_max", "expected"),
    [
        pytest.param("abc", 0, "abc", id="no bound"),
        pytest.param("abc", 3, "abc", id="just fits"),
        pytest.param("abcd", 3, "abc", id="one too long"),
        pytest.param("abé", 3, "ab", id="a two-byte character over the bound"),
        pytest.param("aé", 3, "aé", id="a two-byte character within it"),
        pytest.param("x" * 62 + "€", 64, "x" * 62, id="two of three bytes fit"),
        pytest.param("x" * 61 + "😀y", 64, "x" * 61, id="three of four bytes fit"),
        pytest.param("😀", 3, "", id="nothing fits"),
    ],
)
def test_a_string_is_cut_to_its_longest_well_formed_prefix(text: str, bytes_max: int, expected: str) -> None:
    assert cut(text, bytes_max).decode() == expected


def test_and_or_and_not_combine_and_are_total_without_children() -> None:
    yes, no = compare(EXISTS, False), compare(EXISTS, True)

    assert holds(And(()), {}, RELAXED, {})
    assert not holds(Or(()), {}, RELAXED, {})
    assert holds(Or((no, And((yes, Not(no))))), {}, RELAXED, {})
    assert not holds(And((yes, no)), {}, RELAXED, {})


def test_paths_names_every_property_once() -> None:
    tree = And((compare(EQ, 1, "a.b"), Or((Not(compare(GT, 2, "c")), compare(LT, 9, "a.b")))))

    assert paths(tree) == {("a", "b"), ("c",)}


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("aé€😀", max_size=3)
ordered = st.integers(-3, 3) | st.floats(-2, 2) | st.text("aé€😀", max_size=3)
compares = st.one_of(
    st.builds(compare, st.sampled_from([EQ, NE]), scalars, st.sampled_from(["p", "a.b"])),
    st.builds(compare, st.sampled_from([LT, LTE, GT, GTE]), ordered),
    st.builds(compare, st.sampled_from([IN, NIN]), st.lists(scalars, max_size=4).map(tuple)),
    st.builds(compare, st.just(EXISTS), st.booleans()),
)
trees: st.SearchStrategy[Filter] = st.recursive(
    compares,
    lambda child: (
        st.builds(And, st.lists(child, max_size=3).map(tuple))
        | st.builds(Or, st.lists(child, max_size=3).map(tuple))
        | st.builds(Not, child)
    ),
    max_leaves=8,
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["b", "c"]), inner, max_size=2),
    max_leaves=6,
)
rules = st.builds(
    FilterRules,
    string_bytes_max=st.sampled_from([0, 1, 2, 3, 4, 64]),
    arrays=st.booleans(),
    unindexed=st.just(True),
)


@given(tree=trees)
@settings(deadline=None)
def test_the_spelling_in_the_log_is_read_back_to_the_same_tree(tree: Filter) -> None:
    spelled = orjson.dumps(to_json(tree))

    read = from_json(orjson.loads(spelled))

    # `repr` tells 1 from True and from 1.0, as equality does not.
    assert repr(read) == repr(tree)


@given(value=values, condition=compares, rules=rules, json_type=st.sampled_from(MetadataType))
@settings(deadline=None, max_examples=500)
def test_a_narrowed_comparison_says_without_an_index_what_the_comparison_says_with_one(
    value: object, condition: Compare, rules: FilterRules, json_type: MetadataType
) -> None:
    metadata = {"p": value, "a": {"b": value}}
    indexed = dict.fromkeys(paths(condition), json_type)

    expected = holds(condition, metadata, rules, indexed)

    assert holds(narrowed(condition, json_type), metadata, rules, {}) is expected


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="an array"),
        pytest.param({}, id="an empty object"),
        pytest.param({"and": {}}, id="children that are no list"),
        pytest.param({"and": [], "or": []}, id="two nodes in one"),
        pytest.param({"xor": []}, id="an unknown node"),
        pytest.param({"path": ["p"], "comparison": "eq"}, id="no operand"),
        pytest.param({"path": [], "comparison": "eq", "operand": 1}, id="an empty path"),
        pytest.param({"path": [""], "comparison": "eq", "operand": 1}, id="an empty key"),
        pytest.param({"path": [1], "comparison": "eq", "operand": 1}, id="a key that is no string"),
        pytest.param({"path": ["p"], "comparison": "like", "operand": 1}, id="an unknown comparison"),
        pytest.param({"path": ["p"], "comparison": "eq", "operand": [1]}, id="a list for eq"),
        pytest.param({"path": ["p"], "comparison": "in", "operand": 1}, id="a scalar for in"),
        pytest.param({"path": ["p"], "comparison": "in", "operand": [[1]]}, id="a list in the list for in"),
        pytest.param({"path": ["p"], "comparison": "lt", "operand": True}, id="a boolean for a range"),
        pytest.param({"path": ["p"], "comparison": "gt", "operand": None}, id="null for a range"),
        pytest.param({"path": ["p"], "comparison": "exists", "operand": 1}, id="a number for exists"),
    ],
)
def test_what_is_no_stored_filter_is_refused(document: object) -> None:
    with pytest.raises(FilterInvalid, match="a stored filter"):
        from_json(document)


def test_a_stored_filter_that_is_too_deep_is_refused_before_it_exhausts_the_stack() -> None:
    document: object = {"path": ["p"], "comparison": "eq", "operand": 1}
    for _ in range(5_000):
        document = {"not": document}

    with pytest.raises(FilterInvalid, match="deeper than"):
        from_json(document)
