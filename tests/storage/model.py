"""What an index is, said as simply as it can be: a dictionary, and a float64 formula for each metric.

The model test plays the same mutations to a real store and to this, and compares every answer. So nothing here may
come from the code it judges: not the scores, not the meaning of a filter, not the rules of insert and upsert.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.batch import Batch
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, Or
from storage.records import Counts, MetadataType, Metric

Token = tuple[str, object]
"""A value with its JSON type, so that True is not 1 and "1" is not 1."""
TYPE_OF_KIND = {
    "text": MetadataType.STRING,
    "number": MetadataType.NUMBER,
    "boolean": MetadataType.BOOLEAN,
}


@dataclass(frozen=True)
class Row:
    """One live vector."""

    namespace: str
    metadata: bytes
    values: NDArray[np.float32]


@dataclass
class Model:
    """One index."""

    metric: Metric
    rows: dict[str, Row] = field(default_factory=dict)
    types: dict[str, MetadataType] = field(default_factory=dict)
    """The metadata indexes, in order of creation."""

    def insert(self, batch: Batch) -> Counts:
        """The first of all with an id stays."""
        before = len(self.rows)
        for id, row in _rows_of(batch):
            self.rows.setdefault(id, row)
        inserted = len(self.rows) - before
        return Counts(inserted=inserted, ignored=len(batch) - inserted)

    def upsert(self, batch: Batch) -> Counts:
        """The last of all with an id stays."""
        replaced = len(set(batch.ids) & self.rows.keys())
        distinct = len(set(batch.ids))
        self.rows.update(_rows_of(batch))
        return Counts(inserted=distinct - replaced, replaced=replaced, ignored=len(batch) - distinct)

    def delete(self, ids: Iterable[str]) -> Counts:
        """What is there goes."""
        named = set(ids)
        there = named & self.rows.keys()
        for id in there:
            del self.rows[id]
        return Counts(deleted=len(there), missing=len(named) - len(there))

    def matching(self, namespace: str, tree: Filter | None, rules: FilterRules) -> list[str]:
        """The ids that a namespace and a filter select."""
        return [
            id
            for id, row in self.rows.items()
            if (not namespace or row.namespace == namespace) and self._selects(tree, row, rules)
        ]

    def ranked(self, query: NDArray[np.float32], ids: Iterable[str]) -> list[tuple[str, float]]:
        """These ids with their scores, best first, equal ones by the bytes of the id."""
        scored = [(id, self.score(id, query)) for id in ids]
        sign = -1 if self.metric is Metric.COSINE else 1
        return sorted(scored, key=lambda pair: (sign * pair[1], pair[0].encode()))

    def score(self, id: str, query: NDArray[np.float32]) -> float:
        """The score of one vector, rounded to float32 once."""
        one = [float(number) for number in self.rows[id].values]
        other = [float(number) for number in query]
        dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
        match self.metric:
            case Metric.COSINE:
                lengths = math.hypot(*one) * math.hypot(*other)
                score = dot / lengths if lengths else 0.0
            case Metric.EUCLIDEAN:
                score = math.dist(one, other)
            case Metric.DOT_PRODUCT:
                score = -dot
        return float(np.float32(score)) + 0.0

    def ids(self, prefix: str = "") -> list[str]:
        """The ids with a prefix, in the order of their bytes."""
        return sorted((id for id in self.rows if id.startswith(prefix)), key=str.encode)

    def _selects(self, tree: Filter | None, row: Row, rules: FilterRules) -> bool:
        metadata = json.loads(row.metadata) if row.metadata else {}
        return tree is None or self._holds(tree, metadata, rules)

    def _holds(self, tree: Filter, metadata: object, rules: FilterRules) -> bool:
        match tree:
            case And(children):
                return False not in [self._holds(child, metadata, rules) for child in children]
            case Or(children):
                return True in [self._holds(child, metadata, rules) for child in children]
            case Not(child):
                return not self._holds(child, metadata, rules)
            case Compare(path, comparison, operand):
                json_type = self.types.get(".".join(path))
                if json_type is None and not rules.unindexed:
                    return False
                value = _value(metadata, path)
                return _compares(value, comparison, operand, json_type, rules)


def _rows_of(batch: Batch) -> list[tuple[str, Row]]:
    return [
        (id, Row(batch.namespaces[place], batch.metadata[place], batch.values[place]))
        for place, id in enumerate(batch.ids)
    ]


def _value(metadata: object, path: tuple[str, ...]) -> object:
    for key in path:
        metadata = metadata.get(key) if isinstance(metadata, dict) else None
    return metadata


def _compares(
    value: object, comparison: Comparison, operand: object, json_type: MetadataType | None, rules: FilterRules
) -> bool:
    is_there = value is not None
    wanted = [_token(one, rules) for one in (operand if isinstance(operand, tuple) else (operand,))]
    had = [_token(one, rules) for one in (value if isinstance(value, list) and rules.arrays else [value])]
    if json_type is not None:
        had = [token for token in had if TYPE_OF_KIND.get(token[0]) is json_type]
    had = [token for token in had if token[0] in TYPE_OF_KIND]
    is_one_of = bool(set(had) & set(wanted)) or (not is_there and ("null", None) in wanted)
    match comparison:
        case Comparison.EXISTS:
            return is_there is operand
        case Comparison.EQ | Comparison.IN:
            return is_one_of
        case Comparison.NE | Comparison.NIN:
            return not is_one_of
        case _:
            [(kind, bound)] = wanted
            return kind != "boolean" and any(
                _is_ordered(comparison, token, bound) for had_kind, token in had if had_kind == kind
            )


def _is_ordered(comparison: Comparison, one, other) -> bool:
    match comparison:
        case Comparison.LT:
            return one < other
        case Comparison.LTE:
            return one <= other
        case Comparison.GT:
            return one > other
        case Comparison.GTE:
            return one >= other
    raise AssertionError(f"{comparison} has no order")


def _token(value: object, rules: FilterRules) -> Token:
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int | float):
        return "number", float(value)
    if isinstance(value, str):
        whole = value.encode()
        cut = whole[: rules.string_bytes_max] if rules.string_bytes_max else whole
        return "text", cut.decode(errors="ignore").encode()
    return "other", None
