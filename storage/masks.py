"""Filters over whole parts: one mask per part of a snapshot.

The answer is that of `storage.filters.holds` for every row. Where a column is not back-filled yet, the
metadata itself is asked the same question, so that an index in the making is slower and never different.

A snapshot is immutable, so what a filter selects in it is remembered: most filters are asked again and again, such as
the one of a tenant. What selects few rows is kept as their numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from sys import getsizeof
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from storage.deadlines import check
from storage.fetched import Slot
from storage.filters import And, Compare, Filter, FilterRules, Not, Or, narrowed, path_of
from storage.records import MetadataIndex
from storage.snapshot import LivePart, Mask, Part, Snapshot

SELECTION_SHARE_MAX = 8
"""One row in so many, or fewer, are kept as numbers, which then take no more bytes than a mask."""
SELECTIONS_BYTES_MAX = 16 * 1024 * 1024
"""What the selections that one snapshot remembers may hold."""
KEYS_MAX = 256
"""The filters of which a snapshot knows without looking what they are."""
SELECTION_BYTES = 1024
"""What a selection holds besides its rows; so a snapshot remembers no more than some thousands."""

Indexes = Mapping[tuple[str, ...], MetadataIndex]
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of a part that are asked about: a mask, or where they are few, their numbers in ascending order."""

    of: int
    count: int
    kept: Mask | RowNumbers
    slot: Slot = field(default_factory=Slot)
    """Where the rows are kept side by side, once they were asked for twice."""

    @classmethod
    def from_mask(cls, mask: Mask) -> Selection:
        """Count a mask, and keep it or the numbers in it."""
        count = int(np.count_nonzero(mask))
        return cls(len(mask), count, np.flatnonzero(mask) if count * SELECTION_SHARE_MAX <= len(mask) else mask)

    @property
    def mask(self) -> Mask:
        """Which rows, one truth value for each of the part. Read it, never write it."""
        if self.kept.dtype == np.bool_:
            return self.kept.view(np.bool_)
        mask = np.zeros(self.of, dtype=np.bool_)
        mask[self.kept] = True
        return mask

    @property
    def rows(self) -> RowNumbers:
        """Their numbers, ascending."""
        return np.flatnonzero(self.kept) if self.kept.dtype == np.bool_ else self.kept.view(np.int64)


class Selections:
    """What filters selected in one snapshot; the one not used for longest goes first. Any thread may ask."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Selection, ...]] = OrderedDict()
        # What a filter is, is worth finding out once: who asks many queries of one filter has one tree for all.
        self._keys: dict[tuple[str, int, int], tuple[Filter | None, FilterRules, Hashable]] = {}
        self._bytes = 0
        self._lock = Lock()

    def of(self, snapshot: Snapshot, namespace: str, tree: Filter | None, rules: FilterRules) -> tuple[Selection, ...]:
        """One selection for each part: what `matching` says."""
        key = self._key(namespace, tree, rules)
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        made = tuple([Selection.from_mask(mask) for mask in matching(snapshot, namespace, tree, rules)])
        self._keep(key, made)
        return made

    def knows(self, namespace: str, tree: Filter | None, rules: FilterRules) -> bool:
        """Whether an answer is remembered."""
        return self._key(namespace, tree, rules) in self._kept

    def _key(self, namespace: str, tree: Filter | None, rules: FilterRules) -> Hashable:
        identity = (namespace, id(tree), id(rules))
        known = self._keys.get(identity)
        if known is None:
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()
            # Held with its key, so that nothing else can have its identity.
            known = self._keys[identity] = (tree, rules, _key(namespace, tree, rules))
        return known[2]

    def _keep(self, key: Hashable, made: tuple[Selection, ...]) -> None:
        size = _bytes(key, made)
        if size > SELECTIONS_BYTES_MAX:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = made
            self._bytes += size
            while self._bytes > SELECTIONS_BYTES_MAX:
                self._bytes -= _bytes(*self._kept.popitem(last=False))


def selections(snapshot: Snapshot) -> Selections:
    """What filters selected in this snapshot; it is dropped with it."""
    kept: Selections = snapshot.selections.get("") or snapshot.selections.setdefault("", Selections())
    return kept


def _key(namespace: str, tree: Filter | None, rules: FilterRules) -> Hashable:
    return (namespace, rules, tree and _shape(tree))


def _shape(tree: Filter) -> Hashable:
    """What tells a filter from every other one: for True and 1 are equal, and a filter finds them in other rows."""
    match tree:
        case Compare(path, comparison, operand):
            return (path, comparison, operand, tuple([type(one) for one in tree.operands]))
        case Not(child):
            return (Not, _shape(child))
        case And(children) | Or(children):
            return (type(tree), *[_shape(child) for child in children])


def _bytes(key: Hashable, made: tuple[Selection, ...]) -> int:
    return SELECTION_BYTES + _key_bytes(key) + sum([one.kept.nbytes for one in made])


def _key_bytes(key: Hashable) -> int:
    return sum([_key_bytes(one) for one in key]) + 56 if isinstance(key, tuple) else getsizeof(key)


def matching(snapshot: Snapshot, namespace: str, tree: Filter | None, rules: FilterRules) -> tuple[Mask, ...]:
    """Say for every part which rows are live, in the namespace (empty: in any) and satisfy the filter.

    The masks may be the snapshot's own: they are read, never written.
    """
    indexes = _by_path(snapshot.metadata_indexes)
    return tuple(_matching(live_part, namespace, tree, rules, indexes) for live_part in snapshot.parts)


def filter_mask(tree: Filter, part: Part, rules: FilterRules, indexes: tuple[MetadataIndex, ...]) -> Mask:
    """Say for every row of a part, dead ones included, whether a filter holds."""
    return _mask(tree, part, rules, _by_path(indexes))


def _matching(live_part: LivePart, namespace: str, tree: Filter | None, rules: FilterRules, indexes: Indexes) -> Mask:
    mask = live_part.live
    if namespace:
        mask = mask & live_part.part.namespace_mask(namespace)
    if tree is not None and mask.any():
        mask = mask & _mask(tree, live_part.part, rules, indexes)
    return mask


def _mask(tree: Filter, part: Part, rules: FilterRules, indexes: Indexes) -> Mask:
    check()
    match tree:
        case And(children):
            mask = np.ones(part.rows, dtype=np.bool_)
            for child in children:
                mask &= _mask(child, part, rules, indexes)
                if not mask.any():
                    break
            return mask
        case Or(children):
            mask = np.zeros(part.rows, dtype=np.bool_)
            for child in children:
                mask |= _mask(child, part, rules, indexes)
            return mask
        case Not(child):
            return ~_mask(child, part, rules, indexes)
        case Compare(path):
            return _compared(tree, part, rules, indexes.get(path))


def _compared(compare: Compare, part: Part, rules: FilterRules, index: MetadataIndex | None) -> Mask:
    if index is not None:
        column = part.column(index)
        if column is not None:
            return column.mask(compare, rules)
        return part.property_column(compare.path).mask(narrowed(compare, index.type), rules)
    if not rules.unindexed:
        return np.zeros(part.rows, dtype=np.bool_)
    return part.property_column(compare.path).mask(compare, rules)


def _by_path(indexes: tuple[MetadataIndex, ...]) -> Indexes:
    return {path_of(index.property): index for index in indexes}
