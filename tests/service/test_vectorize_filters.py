"""The filter grammar of Vectorize, the additions of relaxed limits, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from service.dialects.vectorize.filters import parse_filter, rules_for
from storage.errors import FilterInvalid
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, Or, from_json, to_json
from storage.limits import CLOUDFLARE, RELAXED, Limits

EQ, NE, LT, LTE = Comparison.EQ, Comparison.NE, Comparison.LT, Comparison.LTE
GT, GTE, IN, NIN = Comparison.GT, Comparison.GTE, Comparison.IN, Comparison.NIN
both = pytest.mark.parametrize("limits", [CLOUDFLARE, RELAXED], ids=["cloudflare", "relaxed"])


@both
@pytest.mark.parametrize("document", [None, {}], ids=["null", "an empty object"])
def test_no_conditions_are_no_filter(document: object, limits: Limits) -> None:
    assert parse_filter(document, limits) is None


@both
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param({"p": "a"}, Compare(("p",), EQ, "a"), id="a string"),
        pytest.param({"p": 1.5}, Compare(("p",), EQ, 1.5), id="a number"),
        pytest.param({"p": True}, Compare(("p",), EQ, True), id="a boolean"),
        pytest.param({"p": None}, Compare(("p",), EQ, None), id="null"),
        pytest.param({"p": {"$eq": 2}}, Compare(("p",), EQ, 2), id="eq"),
        pytest.param({"p": {"$ne": None}}, Compare(("p",), NE, None), id="ne"),
        pytest.param({"p": {"$in": ["a", 1, None]}}, Compare(("p",), IN, ("a", 1, None)), id="in"),
        pytest.param({"p": {"$nin": []}}, Compare(("p",), NIN, ()), id="nin of nothing"),
        pytest.param({"p": {"$lt": 5}}, Compare(("p",), LT, 5), id="an upper end"),
        pytest.param({"p": {"$gte": "net"}}, Compare(("p",), GTE, "net"), id="a lower end"),
        pytest.param(
            {"p": {"$gte": "net", "$lt": "neu"}},
            And((Compare(("p",), GTE, "net"), Compare(("p",), LT, "neu"))),
            id="a prefix search",
        ),
        pytest.param(
            {"p": {"$lte": 9, "$gt": 1}},
            And((Compare(("p",), LTE, 9), Compare(("p",), GT, 1))),
            id="both ends, upper first",
        ),
        pytest.param({"pandas.nice": 1}, Compare(("pandas", "nice"), EQ, 1), id="a nested property"),
        pytest.param(
            {"a": 1, "b": {"$ne": 2}},
            And((Compare(("a",), EQ, 1), Compare(("b",), NE, 2))),
            id="every key must hold",
        ),
        pytest.param({"ключ 1": "é"}, Compare(("ключ 1",), EQ, "é"), id="any text as a key"),
    ],
)
def test_the_documented_grammar_is_read_under_both_profiles(document: object, expected: Filter, limits: Limits) -> None:
    # `repr` tells True from 1, as equality does not.
    assert repr(parse_filter(document, limits)) == repr(expected)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            {"$or": [{"a": 1}, {"b": 2, "c": 3}]},
            Or((Compare(("a",), EQ, 1), And((Compare(("b",), EQ, 2), Compare(("c",), EQ, 3))))),
            id="or",
        ),
        pytest.param({"$and": [{"a": 1}]}, And((Compare(("a",), EQ, 1),)), id="and"),
        pytest.param({"$not": {"a": 1}}, Not(Compare(("a",), EQ, 1)), id="not around a filter"),
        pytest.param({"a": {"$not": {"$gt": 1}}}, Not(Compare(("a",), GT, 1)), id="not in a condition"),
        pytest.param({"a": {"$exists": False}}, Compare(("a",), Comparison.EXISTS, False), id="exists"),
        pytest.param(
            {"a": {"$gt": 1, "$gte": 2, "$ne": 5}},
            And((Compare(("a",), GT, 1), Compare(("a",), GTE, 2), Compare(("a",), NE, 5))),
            id="any operators together",
        ),
        pytest.param(
            {"a": 1, "$or": [{"b": 1}, {}]},
            And((Compare(("a",), EQ, 1), Or((Compare(("b",), EQ, 1), And(()))))),
            id="beside a key, with a filter that always holds",
        ),
    ],
)
def test_relaxed_limits_know_more_and_strict_ones_refuse_it(document: object, expected: Filter) -> None:
    assert parse_filter(document, RELAXED) == expected
    with pytest.raises(FilterInvalid, match="filter key"):
        parse_filter(document, CLOUDFLARE)


@both
@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param([], "the filter is an array; it must be an object", id="an array"),
        pytest.param("p", 'the filter is the string "p"', id="a string"),
        pytest.param(False, "the filter is false", id="false"),
        pytest.param({"": 1}, 'filter key "": a key is not empty', id="an empty key"),
        pytest.param({"a..b": 1}, 'filter key "a..b": .* on both sides of every dot', id="an empty segment"),
        pytest.param({".a": 1}, 'filter key ".a": ', id="a dot at the start"),
        pytest.param({"a.": 1}, 'filter key "a.": ', id="a dot at the end"),
        pytest.param({'a"b': 1}, "does not contain a double quote", id="a quote in a key"),
        pytest.param({"$eq": 1}, r'filter key "\$eq": .* does not start with \$', id="an operator as a key"),
        pytest.param({"p": {}}, 'filter key "p": found an empty object; give a value', id="no operator"),
        pytest.param({"p": ["a"]}, r'filter key "p": found an array; .* \{"p": \{"\$in"', id="a bare array"),
        pytest.param({"p": {"$like": "a"}}, r'"\$like" is no operator; .* \$eq', id="an unknown operator"),
        pytest.param({"p": {"gte": 1}}, r'did you mean "\$gte"', id="an operator without its dollar"),
        pytest.param({"p": {"nice": 1}}, 'write "p.nice" as the key', id="a nested object"),
        pytest.param({"p": {"$eq": [1]}}, r"\$eq is given an array; it takes strings", id="eq of an array"),
        pytest.param({"p": {"$ne": {}}}, r"\$ne is given an object", id="ne of an object"),
        pytest.param({"p": {"$in": "a"}}, r"\$in is given the string .* a list of strings", id="in of a scalar"),
        pytest.param({"p": {"$in": [["a"]]}}, r"\$in is given an array", id="in of arrays"),
        pytest.param({"p": {"$lt": True}}, r"\$lt is given true; it takes a string or a number", id="a range of true"),
        pytest.param({"p": {"$gt": None}}, r"\$gt is given null", id="a range of null"),
        pytest.param({"p": {"$lte": [1]}}, r"\$lte is given an array; it takes strings and numbers$", id="of an array"),
        pytest.param({"p": float("nan")}, "the number nan", id="NaN"),
        pytest.param({"p": 2**64}, "64 bits", id="an integer of more than 64 bits"),
        pytest.param({"p": "\ud800"}, "well-formed text", id="half a surrogate pair"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused_with_the_key_and_a_way_out(
    document: object, message: str, limits: Limits
) -> None:
    with pytest.raises(FilterInvalid, match=message):
        parse_filter(document, limits)


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param({"$lt": 5, "$lte": 4}, id="two upper ends"),
        pytest.param({"$gt": 5, "$gte": 6}, id="two lower ends"),
        pytest.param({"$gt": 1, "$lt": 5, "$ne": 3}, id="a range and ne"),
        pytest.param({"$eq": 1, "$ne": 2}, id="eq and ne"),
        pytest.param({"$in": [1], "$nin": [2]}, id="in and nin"),
    ],
)
def test_strict_limits_refuse_operators_that_do_not_combine(condition: object) -> None:
    with pytest.raises(FilterInvalid, match=r'filter key "p": found \$\w+, .* together; use one of'):
        parse_filter({"p": condition}, CLOUDFLARE)

    assert isinstance(parse_filter({"p": condition}, RELAXED), And)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param({"$or": []}, "at least one filter", id="or of nothing"),
        pytest.param({"$or": {"a": 1}}, "found an object; give a list of filters", id="or of an object"),
        pytest.param({"$and": [1]}, "the number 1; it must be an object", id="and of numbers"),
        pytest.param({"$not": [{"a": 1}]}, "an array; it must be an object", id="not of an array"),
        pytest.param({"$nor": [{"a": 1}]}, r"unless it is \$and, \$or or \$not", id="an unknown combination"),
        pytest.param({"a": {"$exists": 1}}, "it takes true or false", id="exists of a number"),
    ],
)
def test_the_additions_are_held_to_their_own_shape(document: object, message: str) -> None:
    with pytest.raises(FilterInvalid, match=message):
        parse_filter(document, RELAXED)


def test_a_filter_must_be_shorter_than_the_bound() -> None:
    overhead = len('{"p":""}')
    fits = {"p": "é" * ((2047 - overhead - 1) // 2) + "x"}
    one_more = {"p": "x" * (2048 - overhead)}

    assert parse_filter(fits, CLOUDFLARE) is not None
    with pytest.raises(FilterInvalid, match="2048 bytes of compact JSON; it must be shorter than 2048"):
        parse_filter(one_more, CLOUDFLARE)


def test_a_key_has_at_most_the_characters_of_its_bound() -> None:
    assert parse_filter({"é" * 512: 1}, CLOUDFLARE) is not None
    with pytest.raises(FilterInvalid, match="it has 513 characters; a key has at most 512"):
        parse_filter({"é" * 513: 1}, CLOUDFLARE)


def test_depth_counts_objects_and_arrays() -> None:
    limits = replace(RELAXED, filter_depth_max=4)

    assert parse_filter({"$and": [{"a": {"$gt": 1}}]}, limits) is not None
    with pytest.raises(FilterInvalid, match="nested deeper than 4 levels"):
        parse_filter({"$and": [{"a": {"$in": [1]}}]}, limits)


def test_a_filter_of_endless_depth_is_refused_before_it_exhausts_the_stack() -> None:
    document: object = {"a": 1}
    for _ in range(50_000):
        document = {"$not": document}

    with pytest.raises(FilterInvalid, match="nested deeper"):
        parse_filter(document, RELAXED)


def test_the_deepest_filter_that_is_accepted_can_be_logged_and_read_back() -> None:
    document: dict[str, object] = {"a": 1}
    for _ in range(RELAXED.filter_depth_max - 1):
        document = {"$not": document, "b": 2}

    tree = parse_filter(document, RELAXED)

    assert tree is not None
    assert from_json(orjson.loads(orjson.dumps(to_json(tree)))) == tree


def test_a_refusal_does_not_repeat_a_long_key_in_full() -> None:
    with pytest.raises(FilterInvalid) as refusal:
        parse_filter({"k" * 400: {"$like": 1}}, CLOUDFLARE)

    assert len(str(refusal.value)) < 300


def test_the_rules_follow_the_limits() -> None:
    assert rules_for(CLOUDFLARE) == FilterRules(string_bytes_max=64, arrays=False, unindexed=False)
    assert rules_for(RELAXED) == FilterRules(string_bytes_max=0, arrays=True, unindexed=True)
