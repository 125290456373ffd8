"""The filter tree: what it means, row by row.

`holds` is the definition; columns (`storage.segment.columns`) must give the same answer faster. A dialect
parses its own grammar into this tree, and `to_json`/`from_json` are the spelling that reaches the log.

What a comparison means:

* Only values of one JSON type compare: string, number or boolean; a boolean is no number. Numbers compare as
  float64, strings by their UTF-8 bytes, both sides cut as `cut` does. Booleans have no order.
* null and missing are the same: EQ None and EXISTS False hold for both, and so does IN with None among its
  operands.
* NE is "not EQ" and NIN is "not IN", so they hold for what is missing or of another type.
* Under `rules.arrays` an array satisfies EQ, IN or a range when one of its elements does. Null, arrays and
  objects among its elements count for nothing: EQ None asks about the property, and an array is there.
* A property with a metadata index compares by values of that type only, alone or in an array.
* Without `rules.unindexed` a property that has no metadata index satisfies nothing, whatever the operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from storage.errors import FilterInvalid
from storage.records import MetadataType

Scalar = str | float | bool | None


class Comparison(StrEnum):
    """The operators of a leaf. The spellings reach the log."""

    EQ = "eq"
    NE = "ne"
    LT = "lt"
    LTE = "lte"
    GT = "gt"
    GTE = "gte"
    IN = "in"
    NIN = "nin"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Compare:
    """One property against an operand: a tuple for IN and NIN, a bool for EXISTS, a scalar otherwise.

    `path` is the property split at its dots: ("pandas", "nice") looks into {"pandas": {"nice": ...}}.
    """

    path: tuple[str, ...]
    comparison: Comparison
    operand: Scalar | tuple[Scalar, ...]

    @property
    def operands(self) -> tuple[Scalar, ...]:
        """The operand as a tuple, however many the operator takes."""
        return self.operand if isinstance(self.operand, tuple) else (self.operand,)


@dataclass(frozen=True, slots=True)
class And:
    """Every child holds; true without children."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some child holds; false without children."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The child does not hold."""

    child: Filter


Filter = Compare | And | Or | Not


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRules:
    """What a profile changes in the meaning of a filter."""

    string_bytes_max: int = 0
    """Strings compare by this many bytes, cut on a UTF-8 boundary; 0 compares whole strings."""
    arrays: bool = True
    """Whether a condition holds if an element of an array satisfies it; else arrays match no comparison."""
    unindexed: bool = True
    """Whether a property without a metadata index is looked up in the metadata; else it matches nothing."""


DEPTH_MAX = 200
"""The deepest tree `from_json` reads, so that a damaged log cannot exhaust the stack."""
COMPLEMENTS = {Comparison.NE: Comparison.EQ, Comparison.NIN: Comparison.IN}
"""The comparisons that are "not another one", and that one."""
_ORDERED: dict[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQ: operator.eq,
    Comparison.IN: operator.eq,
    Comparison.LT: operator.lt,
    Comparison.LTE: operator.le,
    Comparison.GT: operator.gt,
    Comparison.GTE: operator.ge,
}
_RANGES = frozenset({Comparison.LT, Comparison.LTE, Comparison.GT, Comparison.GTE})


def holds(
    tree: Filter,
    metadata: Mapping[str, object],
    rules: FilterRules,
    indexed: Mapping[tuple[str, ...], MetadataType],
) -> bool:
    """Say whether one vector's metadata satisfies a filter; this defines what every faster way must answer.

    `indexed` names the properties that have a metadata index, and its type.
    """
    match tree:
        case And(children):
            return all(holds(child, metadata, rules, indexed) for child in children)
        case Or(children):
            return any(holds(child, metadata, rules, indexed) for child in children)
        case Not(child):
            return not holds(child, metadata, rules, indexed)
        case Compare(path):
            if path not in indexed and not rules.unindexed:
                return False
            return _satisfies(value_at(metadata, path), tree, rules, indexed.get(path))


def paths(tree: Filter) -> frozenset[tuple[str, ...]]:
    """The properties a filter looks at."""
    match tree:
        case And(children) | Or(children):
            return frozenset(path for child in children for path in paths(child))
        case Not(child):
            return paths(child)
        case Compare(path):
            return frozenset((path,))


def path_of(dotted: str) -> tuple[str, ...]:
    """The path of a property as `MetadataIndex.property` spells it: "pandas.nice" is ("pandas", "nice")."""
    return tuple(dotted.split("."))


def value_at(metadata: object, path: tuple[str, ...]) -> object:
    """What lies at a path; None when it is null or nothing does."""
    value = metadata
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def type_of(value: object) -> MetadataType | None:
    """The type under which a value compares; None for null, arrays and objects."""
    match value:
        case bool():
            return MetadataType.BOOLEAN
        case int() | float():
            return MetadataType.NUMBER
        case str():
            return MetadataType.STRING
        case _:
            return None


def number(value: float) -> float:
    """A number as it compares; one beyond float64 is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def cut(text: str, bytes_max: int) -> bytes:
    """The UTF-8 bytes by which a string compares: the longest well-formed prefix of `bytes_max`; 0 is all."""
    encoded = text.encode()
    if not bytes_max or len(encoded) <= bytes_max:
        return encoded
    end = bytes_max
    # A byte that continues a character has 10 as its upper bits; the cut falls before one that begins one.
    while encoded[end] & 0xC0 == 0x80:
        end -= 1
    return encoded[:end]


def narrowed(compare: Compare, json_type: MetadataType) -> Compare:
    """The comparison that says of any value what `compare` says of it under a metadata index of this type.

    Values compare within their type only, so leaving out the operands of other types is the same as leaving
    out the values of other types. It lets what knows no index answer for one.
    """
    comparison = compare.comparison
    if comparison is Comparison.EXISTS:
        return compare
    if comparison in _RANGES:
        if type_of(compare.operand) is json_type:
            return compare
        return replace(compare, comparison=Comparison.IN, operand=())
    kept = tuple(one for one in compare.operands if one is None or type_of(one) is json_type)
    many = Comparison.NIN if comparison in COMPLEMENTS else Comparison.IN
    return replace(compare, comparison=many, operand=kept)


def to_json(tree: Filter) -> object:
    """Spell a filter as a JSON document that `from_json` reads back to an equal tree."""
    match tree:
        case And(children):
            return {"and": [to_json(child) for child in children]}
        case Or(children):
            return {"or": [to_json(child) for child in children]}
        case Not(child):
            return {"not": to_json(child)}
        case Compare(path, comparison, operand):
            spelled = list(operand) if isinstance(operand, tuple) else operand
            return {"path": list(path), "comparison": comparison.value, "operand": spelled}


def from_json(document: object) -> Filter:
    """Read what `to_json` spelled. Raises FilterInvalid."""
    return _read(document, DEPTH_MAX)


def _satisfies(value: object, compare: Compare, rules: FilterRules, indexed: MetadataType | None) -> bool:
    comparison = compare.comparison
    if comparison is Comparison.EXISTS:
        return (value is not None) == compare.operand
    if comparison in COMPLEMENTS:
        return not _satisfies(value, replace(compare, comparison=COMPLEMENTS[comparison]), rules, indexed)
    if value is None:
        return comparison not in _RANGES and None in compare.operands
    elements = value if isinstance(value, list) and rules.arrays else [value]
    return any(_compares(element, compare, rules, indexed) for element in elements)


def _compares(value: object, compare: Compare, rules: FilterRules, indexed: MetadataType | None) -> bool:
    """Whether one value satisfies EQ, IN or a range; what is no scalar does not."""
    json_type = type_of(value)
    if json_type is None or indexed not in {None, json_type}:
        return False
    if json_type is MetadataType.BOOLEAN and compare.comparison in _RANGES:
        return False
    satisfied = _ORDERED[compare.comparison]
    return any(
        satisfied(_comparable(value, rules), _comparable(one, rules))
        for one in compare.operands
        if type_of(one) is json_type
    )


def _comparable(value: object, rules: FilterRules) -> bytes | float:
    if isinstance(value, str):
        return cut(value, rules.string_bytes_max)
    assert isinstance(value, int | float)
    return number(value)


def _read(document: object, depth: int) -> Filter:
    if depth == 0:
        raise FilterInvalid(f"a stored filter is nested deeper than {DEPTH_MAX} levels")
    match document:
        case {"and": list(children), **rest} if not rest:
            return And(tuple(_read(child, depth - 1) for child in children))
        case {"or": list(children), **rest} if not rest:
            return Or(tuple(_read(child, depth - 1) for child in children))
        case {"not": child, **rest} if not rest:
            return Not(_read(child, depth - 1))
        case {"path": list(path), "comparison": str(comparison), "operand": operand, **rest} if not rest:
            return _compare(path, comparison, operand)
        case _:
            raise FilterInvalid(
                f"a stored filter has {document!r:.200}; expected is and, or, not, or path with comparison and operand"
            )


def _compare(path: list[object], spelled: str, operand: object) -> Compare:
    keys = tuple(key for key in path if isinstance(key, str) and key)
    if not keys or len(keys) != len(path):
        raise FilterInvalid(f"a stored filter has the path {path!r:.200}; a path is a list of keys that are not empty")
    try:
        comparison = Comparison(spelled)
    except ValueError as error:
        known = ", ".join(Comparison)
        raise FilterInvalid(f"a stored filter compares by {spelled!r:.200}; known are {known}") from error
    return Compare(keys, comparison, _operand(comparison, operand))


def _operand(comparison: Comparison, operand: object) -> Scalar | tuple[Scalar, ...]:
    match comparison, operand:
        case ((Comparison.IN | Comparison.NIN), list()) if all(one is None or type_of(one) for one in operand):
            return tuple(operand)
        case Comparison.EXISTS, bool():
            return operand
        case ((Comparison.EQ | Comparison.NE), None | str() | bool() | int() | float()):
            return operand
        case ((Comparison.LT | Comparison.LTE | Comparison.GT | Comparison.GTE), str() | int() | float()) if (
            not isinstance(operand, bool)
        ):
            return operand
    raise FilterInvalid(f"a stored filter has {operand!r:.200} as the operand of {comparison.value}")
