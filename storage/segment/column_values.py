"""The values of one property that have one JSON type, as arrays, and the comparisons over them.

This is where filters are fast: a comparison is one pass of numpy over small integers or doubles. Rows
whose value is missing, of another type or an array carry a mark that no comparison meets. The elements of
arrays that have the type lie in arrays of their own, each with the row it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from storage.filters import (
    Compare,
    Comparison,
    FilterRules,
    Scalar,
    cut,
    narrowed,
    number,
    type_of,
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
        states: list[State] = []
        scalars: list[Scalar] = []
        element_rows: list[int] = []
        elements: list[Scalar] = []
        for row, value in enumerate(values):
            state = _state(value, type)
            states.append(state)
            scalars.append(value if state is State.VALUE else None)  # type: ignore[arg-type]
            if isinstance(value, list):
                kept = [element for element in value if type_of(element) is type]
                elements += kept
                element_rows += [row] * len(kept)
        arrays = _arrays(type, scalars, elements)
        return cls(type, np.array(states, dtype="u1"), arrays[0], np.array(element_rows, dtype="<u4"), arrays[1])

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


def _state(value: object, json_type: MetadataType) -> State:
    if value is None:
        return State.MISSING
    if type_of(value) is json_type:
        return State.VALUE
    return State.ARRAY if isinstance(value, list) else State.OTHER


def _arrays(json_type: MetadataType, scalars: list[Scalar], elements: list[Scalar]) -> tuple[Values, Values]:
    """Both lists as values; they share the strings. A scalar that is None is marked as none."""
    match json_type:
        case MetadataType.STRING:
            distinct = sorted({text for text in (*scalars, *elements) if isinstance(text, str)})
            texts = Texts.of(distinct)
            codes: dict[Scalar, int] = {text: code for code, text in enumerate(distinct)}
            none, width = len(distinct), code_type(len(distinct))
            return (
                Strings(texts, np.array([codes.get(text, none) for text in scalars], dtype=width)),
                Strings(texts, np.array([codes[text] for text in elements], dtype=width)),
            )
        case MetadataType.NUMBER:
            return Numbers(_doubles(scalars)), Numbers(_doubles(elements))
        case MetadataType.BOOLEAN:
            return Booleans(_bits(scalars)), Booleans(_bits(elements))


def _doubles(scalars: list[Scalar]) -> NDArray[np.float64]:
    return np.array([number(one) if isinstance(one, int | float) else np.nan for one in scalars], dtype="<f8")


def _bits(scalars: list[Scalar]) -> NDArray[np.uint8]:
    return np.array([2 if one is None else int(bool(one)) for one in scalars], dtype="u1")
