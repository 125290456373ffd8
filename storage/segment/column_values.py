"""The values of one property that have one JSON type, as arrays, and the comparisons over them.

This is where filters are fast: a comparison is one pass of numpy over small integers or doubles. Rows
whose value is missing, of another type or an array carry a mark that no comparison meets. The elements of
arrays that have the type lie in arrays of their own, each with the row it belongs to.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.deadlines import checked
from storage.filters import (
    Compare,
    Comparison,
    FilterRules,
    Scalar,
    cut,
    narrowed,
    number,
)
from storage.records import MetadataType
from storage.segment.column_texts import Codes, Texts, code_type, complement, merged, selected
from storage.snapshot import Mask


class State(IntEnum):
    """What a row has at the property. The numbers reach disk."""

    MISSING = 0  # or null, which is the same
    VALUE = 1
    OTHER = 2
    ARRAY = 3


_RANGES = {
    Comparison.LT: np.less,
    Comparison.LTE: np.less_equal,
    Comparison.GT: np.greater,
    Comparison.GTE: np.greater_equal,
}


@dataclass(frozen=True, slots=True)
class Strings:
    """Codes into sorted strings; the code `len(texts)` marks none."""

    texts: Texts
    codes: Codes

    def equal(self, operands: Sequence[Scalar], rules: FilterRules) -> Mask:
        """Which values equal one of the operands, all of them strings."""
        keys = {self._key(operand, rules) for operand in operands}
        spans = merged(span for key in keys for span in self.texts.equal(key, rules.string_bytes_max))
        return selected(self.codes, spans, len(self.texts))

    def ranged(self, comparison: Comparison, operand: Scalar, rules: FilterRules) -> Mask:
        """Which values stand to the operand, a string, as LT, LTE, GT or GTE says."""
        key = self._key(operand, rules)
        spans = self.texts.below(key, rules.string_bytes_max)
        if comparison in {Comparison.LTE, Comparison.GT}:
            spans = merged((*spans, *self.texts.equal(key, rules.string_bytes_max)))
        if comparison in {Comparison.GT, Comparison.GTE}:
            spans = complement(spans, len(self.texts))
        return selected(self.codes, spans, len(self.texts))

    @staticmethod
    def _key(operand: Scalar, rules: FilterRules) -> bytes:
        assert isinstance(operand, str)
        return cut(operand, rules.string_bytes_max)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Doubles; NaN, which JSON does not have and which satisfies nothing, marks none."""

    numbers: NDArray[np.float64]

    def equal(self, operands: Sequence[Scalar], rules: FilterRules) -> Mask:  # noqa: ARG002 - for strings
        """Which values equal one of the operands, all of them numbers."""
        return np.isin(self.numbers, [self._key(operand) for operand in operands])

    def ranged(self, comparison: Comparison, operand: Scalar, rules: FilterRules) -> Mask:  # noqa: ARG002
        """Which values stand to the operand, a number, as LT, LTE, GT or GTE says."""
        mask: Mask = _RANGES[comparison](self.numbers, self._key(operand))
        return mask

    @staticmethod
    def _key(operand: Scalar) -> float:
        assert isinstance(operand, int | float)
        return number(operand)


@dataclass(frozen=True, slots=True)
class Booleans:
    """0 is false, 1 is true, 2 marks none."""

    codes: NDArray[np.uint8]

    def equal(self, operands: Sequence[Scalar], rules: FilterRules) -> Mask:  # noqa: ARG002 - for strings
        """Which values equal one of the operands, all of them booleans."""
        return np.array([False in operands, True in operands, False])[self.codes]

    def ranged(self, comparison: Comparison, operand: Scalar, rules: FilterRules) -> Mask:  # noqa: ARG002
        """No value: booleans have no order."""
        return np.zeros(len(self.codes), dtype=np.bool_)


Values = Strings | Numbers | Booleans
"""Values of one type; those that are marked as none satisfy nothing."""


@dataclass(frozen=True, slots=True)
class TypedColumn:
    """A property in n rows, under one JSON type.

    `values` has one value per row, marked as none unless the state of the row is VALUE. `elements` are
    those of the type in rows whose state is ARRAY, and `element_rows` says which row each is from.
    """

    type: MetadataType
    states: NDArray[np.uint8]
    values: Values
    element_rows: NDArray[np.uint32]
    elements: Values

    @classmethod
    def of(cls, type: MetadataType, values: Iterable[object]) -> TypedColumn:
        """Sort JSON values, one per row and None for missing, into arrays."""
        draft = ColumnDraft(type)
        draft.add(checked(values))
        return draft.column()

    def mask(self, compare: Compare, rules: FilterRules) -> Mask:
        """Say for every row whether a comparison holds under a metadata index of this type."""
        wanted = narrowed(compare, self.type)
        match wanted.comparison:
            case Comparison.EXISTS:
                present: Mask = self.states != State.MISSING
                return present if wanted.operand else ~present
            case Comparison.NIN:
                return ~self._in(wanted.operands, rules)
            case Comparison.IN:
                return self._in(wanted.operands, rules)
            case _:
                return self._ranged(wanted, rules)

    def _in(self, operands: Sequence[Scalar], rules: FilterRules) -> Mask:
        scalars = [operand for operand in operands if operand is not None]
        mask = self.values.equal(scalars, rules)
        if rules.arrays and len(self.element_rows):
            mask[self.element_rows[self.elements.equal(scalars, rules)]] = True
        if len(scalars) < len(operands):
            mask |= self.states == State.MISSING
        return mask

    def _ranged(self, compare: Compare, rules: FilterRules) -> Mask:
        assert not isinstance(compare.operand, tuple)
        mask = self.values.ranged(compare.comparison, compare.operand, rules)
        if rules.arrays and len(self.element_rows):
            within = self.elements.ranged(compare.comparison, compare.operand, rules)
            mask[self.element_rows[within]] = True
        return mask


class ColumnDraft:
    """A `TypedColumn` that grows by the values of more rows, so that several are made in one reading of the metadata.

    A string is held once, and per row as a number.
    """

    def __init__(self, type: MetadataType) -> None:
        self._type = type
        self._states = bytearray()
        self._element_rows = array("I")
        self._distinct: dict[str, int] = {}
        """The strings, numbered in order of appearance."""
        code, self._none = _DRAFTED[type]
        self._values: array[Any] = array(code)
        self._elements: array[Any] = array(code)

    def add(self, values: Iterable[object]) -> None:
        """Add rows by their JSON values, None for missing."""
        wanted, none, drafted = self._type, self._none, self._drafted
        row = len(self._states)
        states, scalars = bytearray(), []
        for value in values:
            kind = _TYPES.get(value.__class__)
            if kind is wanted:
                states.append(State.VALUE)
                scalars.append(drafted(value))
                continue
            scalars.append(none)
            if value is None:
                states.append(State.MISSING)
            elif isinstance(value, list):
                kept = [drafted(element) for element in value if _TYPES.get(element.__class__) is wanted]
                self._elements.extend(kept)
                self._element_rows.extend([row + len(states)] * len(kept))
                states.append(State.ARRAY)
            else:
                states.append(State.OTHER)
        self._states += states
        self._values.extend(scalars)

    @property
    def _drafted(self) -> Callable[[Any], float]:
        """How a value of the type is held."""
        distinct = self._distinct
        match self._type:
            case MetadataType.STRING:
                return lambda text: distinct.setdefault(text, len(distinct))
            case MetadataType.NUMBER:
                return number
            case MetadataType.BOOLEAN:
                return int

    def column(self) -> TypedColumn:
        """The rows so far."""
        states = np.array(self._states, dtype="u1")
        element_rows = np.array(self._element_rows, dtype="<u4")
        values, elements = (self._typed(drafted) for drafted in (self._values, self._elements))
        return TypedColumn(self._type, states, values, element_rows, elements)

    def _typed(self, drafted: array[Any]) -> Values:
        match self._type:
            case MetadataType.STRING:
                return self._strings(np.array(drafted, dtype="<u4"))
            case MetadataType.NUMBER:
                return Numbers(np.array(drafted, dtype="<f8"))
            case MetadataType.BOOLEAN:
                return Booleans(np.array(drafted, dtype="u1"))

    @cached_property
    def _sorted(self) -> tuple[Texts, Codes]:
        """The strings in order, and the place of each by its number; at the end, that of none."""
        distinct = sorted(self._distinct)
        numbers = np.fromiter((self._distinct[text] for text in distinct), dtype=np.int64, count=len(distinct))
        places = np.empty(len(distinct) + 1, dtype=code_type(len(distinct)))
        places[numbers] = np.arange(len(distinct))
        places[-1] = len(distinct)
        return Texts.of(distinct), places

    def _strings(self, numbers: NDArray[np.uint32]) -> Strings:
        texts, places = self._sorted
        return Strings(texts, places[np.minimum(numbers, len(texts))])


_TYPES: dict[type, MetadataType] = {
    bool: MetadataType.BOOLEAN,
    int: MetadataType.NUMBER,
    float: MetadataType.NUMBER,
    str: MetadataType.STRING,
}
"""As `storage.filters.type_of` says, for the very classes that a JSON parser makes."""
_DRAFTED: dict[MetadataType, tuple[str, float]] = {
    MetadataType.STRING: ("I", 0xFFFFFFFF),
    MetadataType.NUMBER: ("d", math.nan),
    MetadataType.BOOLEAN: ("B", 2),
}
"""How the values of a type are held in a draft, and what marks none."""
