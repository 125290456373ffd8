"""The filter of a Vectorize request, read into the filter tree of storage.

    filter    := { key : condition, ... }          every entry holds; {} and null are no filter
    key       := a property; a dot looks into an object
    condition := scalar                            the same as $eq
               | {"$eq": scalar} | {"$ne": scalar} | {"$in": [scalar, ...]} | {"$nin": [scalar, ...]}
               | one of $lt, $lte and/or one of $gt, $gte, with a string or a number

Limits that are not strict add `$and`, `$or` (lists of filters) and `$not` (a filter) beside keys, and in a
condition `$exists` (a boolean), `$not` (a condition) and any number of operators, all of which must hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import orjson

from storage.errors import FilterInvalid
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, Or, Scalar, path_of
from storage.limits import Limits

EQUALITIES = {"$eq": Comparison.EQ, "$ne": Comparison.NE}
LISTS = {"$in": Comparison.IN, "$nin": Comparison.NIN}
UPPER = {"$lt": Comparison.LT, "$lte": Comparison.LTE}
LOWER = {"$gt": Comparison.GT, "$gte": Comparison.GTE}
RANGES = UPPER | LOWER
ALONE = frozenset(EQUALITIES | LISTS)
"""The operators that strict limits do not let stand beside another."""
DOCUMENTED = (*EQUALITIES, *LISTS, *RANGES)
EXTENSIONS = ("$exists", "$not")
COMBINATIONS = ("$and", "$or", "$not")
EXAMPLE = '{"genre": "drama", "year": {"$gte": 1990}}'


def rules_for(limits: Limits) -> FilterRules:
    """What the limits change in the meaning of a filter."""
    return FilterRules(
        string_bytes_max=limits.metadata_index_bytes_max,
        arrays=not limits.strict,
        unindexed=not limits.strict,
    )


def parse_filter(document: object, limits: Limits) -> Filter | None:
    """Read a filter from its JSON document; None when there is none.

    A filter must be shorter than `filter_bytes_max` bytes of compact JSON: as on the live service, one of
    exactly that many is refused. Raises FilterInvalid, which names the key, what was found and what would
    work.
    """
    if document is None or document == {}:
        return None
    if not isinstance(document, dict):
        raise FilterInvalid(f"the filter is {_named(document)}; it must be an object such as {EXAMPLE}")
    _check_depth(document, limits.filter_depth_max)
    _check_bytes(document, limits.filter_bytes_max)
    return _filter(document, limits)


def _check_depth(document: object, depth_max: int) -> None:
    """Go down level by level: recursion would let a deep document exhaust the stack."""
    level = [document]
    for _ in range(depth_max + 1):
        inner = [one for one in level if isinstance(one, dict | list)]
        if not inner:
            return
        level = [below for one in inner for below in (one.values() if isinstance(one, dict) else one)]
    raise FilterInvalid(
        f"the filter is nested deeper than {depth_max} levels of objects and arrays; flatten it,"
        ' for example with dotted keys and "$in"'
    )


def _check_bytes(document: object, bytes_max: int) -> None:
    try:
        length = len(orjson.dumps(document))
    except orjson.JSONEncodeError as error:
        raise FilterInvalid(
            f"the filter holds a value that cannot be compared ({error}); use whole numbers of up to 64 bits"
            " and well-formed text"
        ) from error
    if length >= bytes_max:
        raise FilterInvalid(f"the filter is {length} bytes of compact JSON; it must be shorter than {bytes_max} bytes")


def _filter(document: object, limits: Limits) -> Filter:
    if not isinstance(document, dict):
        raise FilterInvalid(f"a filter in $and, $or or $not is {_named(document)}; it must be an object")
    return _all(_entry(key, value, limits) for key, value in document.items())


def _entry(key: str, value: object, limits: Limits) -> Filter:
    if limits.strict or key not in COMBINATIONS:
        _check_key(key, limits)
        return _condition(key, value, limits)
    if key == "$not":
        return Not(_filter(value, limits))
    children = _filters(key, value, limits)
    return And(children) if key == "$and" else Or(children)


def _filters(key: str, value: object, limits: Limits) -> tuple[Filter, ...]:
    if not isinstance(value, list):
        raise FilterInvalid(f"filter key {_quoted(key)}: found {_named(value)}; give a list of filters")
    if not value:
        raise FilterInvalid(f"filter key {_quoted(key)}: found an empty array; give at least one filter")
    return tuple(_filter(one, limits) for one in value)


def _check_key(key: str, limits: Limits) -> None:
    if len(key) > limits.filter_key_chars_max:
        problem = f"it has {len(key)} characters; a key has at most {limits.filter_key_chars_max}"
    elif key.startswith("$") and limits.strict:
        problem = f"a key is a property and does not start with $; a filter looks like {EXAMPLE}"
    elif key.startswith("$"):
        problem = "a key does not start with $, unless it is $and, $or or $not"
    elif '"' in key:
        problem = "a key does not contain a double quote; no metadata has such a property"
    elif "" in path_of(key):
        problem = "a key is not empty, and has a name on both sides of every dot"
    else:
        return
    raise FilterInvalid(f"filter key {_quoted(key)}: {problem}")


def _condition(key: str, value: object, limits: Limits) -> Filter:
    if isinstance(value, list):
        raise FilterInvalid(
            f"filter key {_quoted(key)}: found an array; to match any of its values, write"
            f' {{{_quoted(key)}: {{"$in": [...]}}}}'
        )
    if not isinstance(value, dict):
        return Compare(path_of(key), Comparison.EQ, _scalar(key, "$eq", value))
    if not value:
        raise FilterInvalid(f"filter key {_quoted(key)}: found an empty object; {_choices(limits)}")
    unknown = [name for name in value if name not in _known(limits)]
    if unknown:
        raise FilterInvalid(_unknown(key, unknown[0], limits))
    if limits.strict:
        _check_combination(key, list(value))
    return _all(_operator(key, name, operand, limits) for name, operand in value.items())


def _check_combination(key: str, names: list[str]) -> None:
    twice = sum(name in UPPER for name in names) > 1 or sum(name in LOWER for name in names) > 1
    if twice or (len(names) > 1 and not ALONE.isdisjoint(names)):
        raise FilterInvalid(
            f"filter key {_quoted(key)}: found {', '.join(names)} together; use one of"
            f" {', '.join((*EQUALITIES, *LISTS))} alone, or one of {', '.join(LOWER)} with one of {', '.join(UPPER)}"
        )


def _operator(key: str, name: str, operand: object, limits: Limits) -> Filter:
    path = path_of(key)
    if name in EQUALITIES:
        return Compare(path, EQUALITIES[name], _scalar(key, name, operand))
    if name in LISTS:
        if not isinstance(operand, list):
            raise _refused(key, name, operand, "a list of strings, numbers, booleans or nulls")
        return Compare(path, LISTS[name], tuple(_scalar(key, name, one) for one in operand))
    if name in RANGES:
        if operand is None or isinstance(operand, bool):
            raise _refused(key, name, operand, "a string or a number")
        return Compare(path, RANGES[name], _scalar(key, name, operand))
    if name == "$not":
        return Not(_condition(key, operand, limits))
    assert name == "$exists"
    if not isinstance(operand, bool):
        raise _refused(key, name, operand, "true or false")
    return Compare(path, Comparison.EXISTS, operand)


def _scalar(key: str, name: str, value: object) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(key, name, value, "a number that JSON knows")
    if value is None or isinstance(value, str | int | float):
        return value
    wanted = "strings and numbers" if name in RANGES else "strings, numbers, booleans and null"
    raise _refused(key, name, value, wanted)


def _refused(key: str, name: str, found: object, wanted: str) -> FilterInvalid:
    return FilterInvalid(f"filter key {_quoted(key)}: {name} is given {_named(found)}; it takes {wanted}")


def _unknown(key: str, name: str, limits: Limits) -> str:
    start = f"filter key {_quoted(key)}: {_quoted(name)} is no operator"
    if f"${name}" in _known(limits):
        return f'{start}; did you mean "${name}"?'
    if not name.startswith("$"):
        return f"{start}; to look into an object, write {_quoted(f'{key}.{name}')} as the key"
    return f"{start}; {_choices(limits)}"


def _choices(limits: Limits) -> str:
    return f"give a value, or an object with one of {', '.join(_known(limits))}"


def _known(limits: Limits) -> tuple[str, ...]:
    return DOCUMENTED if limits.strict else DOCUMENTED + EXTENSIONS


def _all(parts: Iterable[Filter]) -> Filter:
    children = tuple(parts)
    return children[0] if len(children) == 1 else And(children)


def _quoted(text: str) -> str:
    """A key as it is shown: in full unless it is long."""
    return f'"{text}"' if len(text) <= 64 else f'"{text[:64]}..."'


def _named(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the string {_quoted(value)}"
        case list():
            return "an array"
        case _:
            return "an object"
