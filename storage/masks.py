"""Filters over whole parts: one mask per part of a snapshot.

The answer is that of `storage.filters.holds` for every row. Where a column is not back-filled yet, the
metadata itself is asked the same question, so that an index in the making is slower and never different.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from storage.filters import And, Compare, Filter, FilterRules, Not, Or, narrowed, path_of
from storage.records import MetadataIndex
from storage.snapshot import LivePart, Mask, Part, Snapshot

Indexes = Mapping[tuple[str, ...], MetadataIndex]


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
