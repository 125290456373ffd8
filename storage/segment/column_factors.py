"""A property read from metadata: each distinct value once, and per row the number of its value.

The distinct values lie in a pool that is shared by a column and all columns extended from it. The pool
only grows, so a reader of an older column never sees a change. A comparison is answered once per distinct
value, by arrays (`TypedColumn`) over blocks of the pool, and then looked up per row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import orjson
from numpy.typing import NDArray

from storage.deadlines import checked
from storage.filters import COMPLEMENTS, Compare, FilterRules, narrowed, type_of, value_at
from storage.records import MetadataType
from storage.segment.column_values import TypedColumn
from storage.snapshot import Mask

CODES_MIN = 1024
"""The smallest room for codes that is made when rows are added; it doubles from there."""


@dataclass(frozen=True, slots=True)
class FactorColumn:
    """One property in `rows` rows, by any JSON type. Immutable; `extended` gives the column of more rows."""

    path: tuple[str, ...]
    rows: int
    pool: _Pool
    codes: NDArray[np.uint32]

    @classmethod
    def of(cls, path: tuple[str, ...], metadata: Sequence[bytes]) -> FactorColumn:
        """Read a property from the metadata of rows: JSON text, checked when it was accepted, or empty."""
        return cls(path, 0, _Pool(path), np.empty(0, dtype=np.uint32)).extended(metadata)

    def extended(self, metadata: Sequence[bytes]) -> FactorColumn:
        """The column of these rows and then more, given by their metadata. Reads the new rows only."""
        codes = self.pool.appended(self.codes, metadata)
        return replace(self, rows=len(codes), codes=codes)

    def bound(self, type: MetadataType) -> BoundColumn:
        """The same rows under a metadata index of a type."""
        return BoundColumn(self, type)

    def mask(self, compare: Compare, rules: FilterRules) -> Mask:
        """Say for every row whether `compare` holds where the property has no metadata index."""
        if compare.comparison in COMPLEMENTS:
            return ~self.mask(replace(compare, comparison=COMPLEMENTS[compare.comparison]), rules)
        return self.pool.satisfying(compare, rules)[self.codes]


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """A `FactorColumn` that answers for a metadata index: by values of its type only."""

    factors: FactorColumn
    type: MetadataType

    def mask(self, compare: Compare, rules: FilterRules) -> Mask:
        """Say for every row whether `compare` holds, by values of the index's type."""
        return self.factors.mask(narrowed(compare, self.type), rules)


class _Block:
    """Consecutive values of a pool, as a column of each type that was asked for."""

    def __init__(self, values: list[object]) -> None:
        self.values = values
        self._columns: dict[MetadataType, TypedColumn] = {}

    def column(self, json_type: MetadataType) -> TypedColumn:
        # Two threads may both build it; they build the same, and either is kept.
        if json_type not in self._columns:
            self._columns[json_type] = TypedColumn.of(json_type, self.values)
        return self._columns[json_type]

    def satisfying(self, compare: Compare, rules: FilterRules) -> Mask:
        """Which values satisfy a comparison that is no complement."""
        # A value compares under its own type only. So the types of the operands are all that have to be
        # asked, and any one of them when the question is only whether there is a value.
        types = {type_of(operand) for operand in compare.operands} - {None} or {MetadataType.BOOLEAN}
        mask = np.zeros(len(self.values), dtype=np.bool_)
        for json_type in filter(None, types):
            mask |= self.column(json_type).mask(compare, rules)
        return mask


class _Pool:
    """The distinct values of a property in order of appearance; the number of one is its code."""

    def __init__(self, path: tuple[str, ...]) -> None:
        self._path = path
        self._lock = Lock()
        self._values: list[object] = []
        self._codes: dict[Hashable, int] = {}
        self._room = np.empty(0, dtype=np.uint32)
        self._used = 0
        self._blocks: tuple[_Block, ...] = (_Block([]),)

    def appended(self, codes: NDArray[np.uint32], metadata: Sequence[bytes]) -> NDArray[np.uint32]:
        """These codes and then those of more rows. What lies in `codes` is neither moved nor changed."""
        with self._lock:
            more = [self._code(text) for text in checked(metadata)]
            total = len(codes) + len(more)
            # The room behind `codes` is free unless another column was extended from the same one.
            if codes.base is not self._room or len(codes) != self._used or total > len(self._room):
                self._room = np.empty(max(CODES_MIN, 2 * total), dtype=np.uint32)
                self._room[: len(codes)] = codes
            self._room[len(codes) : total] = more
            self._used = total
            return self._room[:total]

    def satisfying(self, compare: Compare, rules: FilterRules) -> Mask:
        """Which values satisfy a comparison that is no complement, by code."""
        return np.concatenate([block.satisfying(compare, rules) for block in self._current()])

    def _current(self) -> tuple[_Block, ...]:
        """Blocks that cover every value.

        New values form a block, and blocks of similar size become one. So there are few, and a value is
        sorted into arrays about log n times while n values come in, however small the steps.
        """
        with self._lock:
            blocks = list(self._blocks)
            covered = sum(len(block.values) for block in blocks)
            if covered < len(self._values):
                blocks.append(_Block(self._values[covered:]))
                while len(blocks) > 1 and len(blocks[-2].values) < 2 * len(blocks[-1].values):
                    last = blocks.pop()
                    blocks[-1] = _Block(blocks[-1].values + last.values)
                self._blocks = tuple(blocks)
            return self._blocks

    def _code(self, text: bytes) -> int:
        value = value_at(orjson.loads(text), self._path) if text else None
        key = _key(value)
        code = self._codes.setdefault(key, len(self._values))
        if code == len(self._values):
            self._values.append(value)
        return code


def _key(value: object) -> Hashable:
    """The same for values that no comparison tells apart, and only for them."""
    match value:
        case bool():
            return (bool, value)  # Python takes True and 1 for the same key.
        case None | str() | int() | float():
            return value
        case list():
            return (list, frozenset(_key(element) for element in value if type_of(element)))
        case _:
            return (dict,)
