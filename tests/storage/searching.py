"""Parts, graphs and brute force for the tests of search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.batch import Batch
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, holds
from storage.indexes.codes import Codes
from storage.indexes.flat import Gathered
from storage.plan import PlanKind
from storage.records import (
    AccountId,
    IndexConfig,
    IndexId,
    IndexSpec,
    Label,
    MetadataIndex,
    Metric,
    Sequence,
)
from storage.search import Query, search
from storage.snapshot import Graph, LivePart, Mask, Snapshot
from storage.tail import Tail, TailPart

METRICS = [pytest.param(metric, id=metric.value) for metric in Metric]
RULES = FilterRules()
LARGEST = float(np.finfo(np.float32).max)
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One vector as the tests think of it."""

    id: str
    values: list[float]
    namespace: str = ""
    metadata: dict[str, Any] | None = None
    live: bool = True


class PartWithGraph:
    """The rows of a tail with a graph and codes beside them, as a segment is."""

    def __init__(self, part: TailPart, graph: Graph, name: str = "segment") -> None:
        self._part = part
        self.graph = graph
        self.name = name
        self.codes = Codes.of(part.vectors)
        self.side = Gathered.of(part.vectors, part.norms, getattr(graph, "side", np.zeros(0, np.int64)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class ListedGraph:
    """A graph that finds the rows of a list, and keeps account of what it was asked."""

    def __init__(self, rows: Iterable[int], *, side: Iterable[int] = (), expansion: int = 1) -> None:
        self.rows = np.array(list(rows), dtype=np.int64)
        self.side = np.array(list(side), dtype=np.int64)
        self.asked: list[tuple[int, int]] = []
        self._expansion = expansion

    def expansion(self, *, count: int, recall: float) -> int:
        assert count >= 1
        assert 0 < recall <= 1
        return self._expansion

    def search(self, query: Vectors, *, count: int, expansion: int, best: int = 0) -> NDArray[np.int64]:
        assert query.dtype == np.float32
        self.asked.append((count, expansion))
        return self.rows[:count]


def spec_of(metric: Metric, dimensions: int) -> IndexSpec:
    return IndexSpec(
        id=IndexId("0" * 32),
        account=AccountId("account"),
        name="docs",
        description="",
        config=IndexConfig(dimensions=dimensions, metric=metric),
        created_us=0,
        modified_us=0,
    )


def tail_of(rows: list[Row], *, dimensions: int) -> TailPart:
    tail = Tail(dimensions)
    tail.append(
        Sequence(1),
        Label(1),
        Batch(
            ids=tuple(row.id for row in rows),
            namespaces=tuple(row.namespace for row in rows),
            metadata=tuple(json.dumps(row.metadata).encode() if row.metadata else b"" for row in rows),
            values=np.array([row.values for row in rows], dtype=np.float32).reshape(len(rows), dimensions),
        ),
    )
    return tail.part()


def live_mask(rows: list[Row]) -> Mask:
    return np.array([row.live for row in rows], dtype=np.bool_)


def snapshot_of(
    metric: Metric,
    parts: list[list[Row]],
    *,
    dimensions: int,
    graph: Callable[[list[Row]], Graph] | None = None,
    indexes: tuple[MetadataIndex, ...] = (),
) -> Snapshot:
    """A snapshot of parts; with `graph`, every part but the last has one."""
    live_parts = []
    for number, rows in enumerate(parts):
        tail, live = tail_of(rows, dimensions=dimensions), live_mask(rows)
        part: Any = tail
        if graph is not None and number < max(1, len(parts) - 1):
            part = PartWithGraph(tail, graph(rows), name=f"segment {number}")
        live_parts.append(LivePart(part, live, int(live.sum())))
    return Snapshot(spec_of(metric, dimensions), Sequence(1), 1, tuple(live_parts), indexes)


def brute_force(metric: Metric, rows: Iterable[Row], query: Query) -> list[tuple[str, float]]:
    """The whole answer once more, a row at a time and without numpy's sums."""
    asked = query.vector.tolist()
    found = []
    for row in rows:
        if not row.live or (query.namespace and row.namespace != query.namespace):
            continue
        if query.filter is not None and not holds(query.filter, row.metadata or {}, query.rules, {}):
            continue
        values = np.array(row.values, dtype=np.float32).tolist()
        found.append((row.id, float(np.float32(score_by_hand(metric, values, asked)))))
    found.sort(key=lambda hit: (hit[1] if metric.lower_is_better else -hit[1], hit[0].encode()))
    return found[query.offset : query.offset + query.count]


def score_by_hand(metric: Metric, vector: list[float], query: list[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(vector, query, strict=True))
    match metric:
        case Metric.COSINE:
            lengths = math.hypot(*vector) * math.hypot(*query)
            score = dot / lengths if lengths else 0.0
        case Metric.EUCLIDEAN:
            score = math.hypot(*(a - b for a, b in zip(vector, query, strict=True)))
        case Metric.DOT_PRODUCT:
            score = -dot
    return max(-LARGEST, min(LARGEST, score))


def query_of(values: Iterable[float], count: int, **more: Any) -> Query:
    return Query(vector=np.array(list(values), dtype=np.float32), count=count, rules=RULES, **more)


def answers(snapshot: Snapshot, query: Query) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in search(snapshot, query).hits]


def random_rows(count: int, dimensions: int, *, seed: int, prefix: str = "") -> list[Row]:
    values = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return [Row(f"{prefix}{number}", row) for number, row in enumerate(values.tolist())]


# Small whole numbers times a power of two: sums and products are exact, so that the order of summing cannot
# matter and ties are real ties. The powers reach to the ends of float32.
NUMBERS = st.integers(-3, 3).map(float)
SCALES = st.sampled_from([0.0, 2.0**-149, 2.0**-126, 2.0**-100, 2.0**-40, 1.0, 2.0**40, 2.0**100, 2.0**126])
FILTERS: list[Filter | None] = [
    None,
    Compare(("colour",), Comparison.EQ, "red"),
    Compare(("colour",), Comparison.NE, "red"),
    And((Compare(("size",), Comparison.GTE, 2.0), Not(Compare(("colour",), Comparison.EXISTS, True)))),
]


def no_row(rows: list[Row]) -> ListedGraph:
    return ListedGraph([])


def explained(snapshot: Snapshot, query: Query) -> list[tuple[PlanKind, int, int]]:
    return [(part.plan, part.matching, part.candidates) for part in search(snapshot, query).explanations]


def nearest_first(rows: list[Row], query: Query) -> list[int]:
    """The numbers of all rows, dead ones too, by their distance from the query."""
    distances = [score_by_hand(Metric.EUCLIDEAN, row.values, query.vector.tolist()) for row in rows]
    return sorted(range(len(rows)), key=distances.__getitem__)
