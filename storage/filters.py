"""The filter tree: what it means, row by row.

`holds` is the definition; columns (`storage.segment.columns`) must give the same answer faster. A dialect parses its
own grammar into this tree, and `to_json`/`from_json` are the spelling that reaches the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
