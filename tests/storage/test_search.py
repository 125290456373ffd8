"""Search: as many hits as match, with exact scores, whatever the graphs find."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage import plan as planning
from storage.batch import Batch
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, holds
from storage.indexes import flat
from storage.indexes.hnsw import Expansions, Form, Space, build_graph, view_graph
from storage.plan import PlanKind
from storage.records import (
    AccountId,
    IndexConfig,
    IndexId,
    IndexSpec,
    Label,
    MetadataIndex,
    MetadataType,
    Metric,
    Sequence,
)
from storage.search import Query, is_long, prepare, preparing_bytes, search
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
    """The rows of a tail with a graph beside them, as a segment is."""

    def __init__(self, part: TailPart, graph: Graph, name: str = "segment") -> None:
        self._part = part
        self.graph = graph
        self.name = name

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

    def search(self, query: Vectors, *, count: int, expansion: int) -> NDArray[np.int64]:
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


@st.composite
def rows_in_parts(draw: st.DrawFn) -> list[list[Row]]:
    one_row = st.builds(
        lambda values, scale, namespace, metadata, live: Row(
            "", [value * scale for value in values], namespace, metadata, live
        ),
        st.lists(NUMBERS, min_size=3, max_size=3),
        SCALES,
        st.sampled_from(["", "a", "b"]),
        st.sampled_from([None, {"colour": "red"}, {"colour": "blue", "size": 2}, {"size": 3}, {"size": "3"}]),
        st.booleans(),
    )
    parts = draw(st.lists(st.lists(one_row, max_size=25), min_size=1, max_size=3))
    names = iter(
        draw(st.permutations([f"{text}{number}" for number in range(25) for text in ("", "é", "￿")]))
    )
    return [
        [Row(next(names), row.values, row.namespace, row.metadata, row.live) for row in part]
        for part in parts
    ]


def no_row(rows: list[Row]) -> ListedGraph:
    return ListedGraph([])


@given(
    parts=rows_in_parts(),
    metric=st.sampled_from(Metric),
    asked=st.lists(NUMBERS, min_size=3, max_size=3),
    scale=SCALES,
    count=st.integers(1, 30),
    offset=st.integers(0, 5),
    namespace=st.sampled_from(["", "", "a", "unheard of"]),
    tree=st.sampled_from(FILTERS),
    graphs=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_an_exact_search_is_brute_force(
    parts: list[list[Row]],
    metric: Metric,
    asked: list[float],
    scale: float,
    count: int,
    offset: int,
    namespace: str,
    tree: Filter | None,
    graphs: bool,
) -> None:
    # given
    snapshot = snapshot_of(metric, parts, dimensions=3, graph=no_row if graphs else None)
    query = query_of(
        (value * scale for value in asked), count, offset=offset, namespace=namespace, filter=tree, recall=1.0
    )

    # when
    found = answers(snapshot, query)

    # then
    assert found == brute_force(metric, (row for part in parts for row in part), query)


@pytest.fixture
def dear_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make graphs worth their while on the few rows of a test."""
    monkeypatch.setattr(planning, "SCAN_BYTES_FREE", 0)
    monkeypatch.setattr(planning, "EXPANSION_BYTES", 1)


def explained(snapshot: Snapshot, query: Query) -> list[tuple[PlanKind, int, int]]:
    return [(part.plan, part.matching, part.candidates) for part in search(snapshot, query).explanations]


def nearest_first(rows: list[Row], query: Query) -> list[int]:
    """The numbers of all rows, dead ones too, by their distance from the query."""
    distances = [score_by_hand(Metric.EUCLIDEAN, row.values, query.vector.tolist()) for row in rows]
    return sorted(range(len(rows)), key=distances.__getitem__)


@pytest.mark.parametrize("metric", METRICS)
def test_many_rows_in_many_parts_are_brute_force(metric: Metric) -> None:
    # given blocks enough for the scan to drop what is out of reach, and duplicates across parts
    parts = [random_rows(700, 16, seed=number, prefix=f"{number}-") for number in range(3)]
    parts[2][:300] = [Row(f"twin-{row.id}", row.values) for row in parts[0][:300]]
    snapshot = snapshot_of(metric, parts, dimensions=16)
    query = query_of(parts[0][17].values, 40)

    assert answers(snapshot, query) == brute_force(metric, (row for part in parts for row in part), query)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_scores_come_in_the_order_of_the_bytes_of_their_ids(metric: Metric) -> None:
    # given the same vector under ids that UTF-16, say, would sort otherwise, in two parts
    ids = ["b", "\U0001f600", "\uffff", "a", "é", "z", "aa"]
    parts = [[Row(one, [1.0, 2.0]) for one in ids[:4]], [Row(one, [1.0, 2.0]) for one in ids[4:]]]
    snapshot = snapshot_of(metric, parts, dimensions=2)

    found = answers(snapshot, query_of([3.0, 1.0], 6))

    assert [one for one, _ in found] == ["a", "aa", "b", "z", "é", "\uffff"]


def test_pages_by_offset_are_pieces_of_one_answer() -> None:
    rows = random_rows(50, 4, seed=1)
    snapshot = snapshot_of(Metric.COSINE, [rows[:20], rows[20:]], dimensions=4)
    whole = answers(snapshot, query_of([1, 0, 0, 0], 50))

    pages = [answers(snapshot, query_of([1, 0, 0, 0], 7, offset=offset)) for offset in range(0, 60, 7)]

    assert [hit for page in pages for hit in page] == whole
    assert len(whole) == 50


@pytest.mark.parametrize("recall", [0.5, 1.0])
def test_an_index_without_parts_or_rows_has_no_hits(recall: float) -> None:
    query = query_of([1, 0], 3, recall=recall)

    assert answers(snapshot_of(Metric.COSINE, [], dimensions=2), query) == []
    assert answers(snapshot_of(Metric.COSINE, [[]], dimensions=2), query) == []


def test_a_namespace_nobody_is_in_has_no_hits_and_is_not_searched() -> None:
    snapshot = snapshot_of(Metric.COSINE, [random_rows(9, 2, seed=1)], dimensions=2)

    found = search(snapshot, query_of([1, 0], 3, namespace="nobody's"))

    assert found.hits == ()
    assert [part.plan for part in found.explanations] == [PlanKind.NONE]


def test_a_hit_says_where_the_rest_of_it_lies() -> None:
    rows = [Row("far", [-1.0, 0.0]), Row("near", [1.0, 0.0], "ns", {"n": 1})]
    snapshot = snapshot_of(Metric.EUCLIDEAN, [rows], dimensions=2)

    [hit] = search(snapshot, query_of([1, 0], 1)).hits

    record = hit.part.record(hit.row)
    assert (hit.id, hit.score, record.id, record.namespace, record.metadata) == (
        "near",
        0.0,
        "near",
        "ns",
        b'{"n": 1}',
    )


def test_the_explanation_counts_what_was_done() -> None:
    # given
    rows = [Row("dead", [1, 0], live=False), Row("here", [1, 0], "ns"), Row("there", [1, 0])]
    snapshot = snapshot_of(Metric.COSINE, [rows, []], dimensions=2)

    # when
    here, empty = search(snapshot, query_of([1, 0], 5, namespace="ns")).explanations

    # then
    assert (here.name, here.rows, here.live, here.matching) == ("tail", 3, 2, 1)
    assert (here.plan, here.expansion, here.candidates) == (PlanKind.EXACT, 0, 1)
    assert (empty.plan, empty.rows, empty.candidates) == (PlanKind.NONE, 0, 0)


@pytest.mark.usefixtures("dear_scans")
def test_at_recall_one_no_graph_is_asked() -> None:
    # given a graph that would answer wrong
    rows = random_rows(200, 4, seed=1)
    graph = ListedGraph(range(100, 200))
    snapshot = snapshot_of(Metric.EUCLIDEAN, [rows], dimensions=4, graph=lambda _: graph)
    query = query_of(rows[0].values, 5, recall=1.0)

    # when
    found = answers(snapshot, query)

    # then
    assert found == brute_force(Metric.EUCLIDEAN, rows, query)
    assert graph.asked == []


@pytest.mark.usefixtures("dear_scans")
@pytest.mark.parametrize("metric", METRICS)
def test_what_a_graph_proposes_is_scored_and_ordered_exactly(metric: Metric) -> None:
    # given a graph whose list has the best rows in any order
    rows = random_rows(500, 4, seed=1)
    query = query_of(rows[0].values, 10, recall=0.9)
    exact = brute_force(metric, rows, query)
    number_of = {row.id: number for number, row in enumerate(rows)}
    listed = sorted(number_of[one] for one, _ in exact)
    graph = ListedGraph([*listed, *(number for number in range(40) if number not in listed)])
    snapshot = snapshot_of(metric, [rows], dimensions=4, graph=lambda _: graph)

    # when
    found = search(snapshot, query)

    # then
    assert [(hit.id, hit.score) for hit in found.hits] == exact
    assert [part.plan for part in found.explanations] == [PlanKind.GRAPH]


@pytest.mark.usefixtures("dear_scans")
def test_rows_that_the_graph_cannot_find_are_always_scanned() -> None:
    # given the nearest two rows on the side list, one of them dead, and a graph that does not know them
    rows = random_rows(300, 4, seed=1)
    query = query_of([9, 9, 9, 9], 3, recall=0.9)
    rows[20] = Row("lost", [9, 9, 9, 9])
    rows[10] = Row("lost and dead", [9, 9, 9, 9], live=False)
    known = [number for number in nearest_first(rows, query) if number not in {10, 20}]
    graph = ListedGraph(known, side=[10, 20])
    snapshot = snapshot_of(Metric.EUCLIDEAN, [rows], dimensions=4, graph=lambda _: graph)

    # when
    found = search(snapshot, query)

    # then
    assert [(hit.id, hit.score) for hit in found.hits] == brute_force(Metric.EUCLIDEAN, rows, query)
    assert found.hits[0].id == "lost"
    assert [part.plan for part in found.explanations] == [PlanKind.GRAPH]


@pytest.mark.usefixtures("dear_scans")
def test_a_graph_that_finds_only_dead_rows_is_given_up_for_the_scan() -> None:
    # given
    rows = random_rows(2_000, 4, seed=1)
    rows = [Row(row.id, row.values, live=number % 2 == 0) for number, row in enumerate(rows)]
    graph = ListedGraph(range(1, 2_000, 2))
    snapshot = snapshot_of(Metric.EUCLIDEAN, [rows], dimensions=4, graph=lambda _: graph)
    query = query_of([0, 0, 0, 0], 10, recall=0.9)

    # when
    found = search(snapshot, query)

    # then the list was doubled twice before
    assert [(hit.id, hit.score) for hit in found.hits] == brute_force(Metric.EUCLIDEAN, rows, query)
    assert [part.plan for part in found.explanations] == [PlanKind.EXACT]
    first = graph.asked[0][0]
    assert [count for count, _ in graph.asked] == [first, 2 * first, 4 * first]


@pytest.mark.usefixtures("dear_scans")
def test_a_graph_that_comes_back_with_too_few_is_asked_for_more() -> None:
    # given the nearest 45 of two thousand dead: the first list of 31 has no live row, the next one enough
    rows = random_rows(2_000, 4, seed=1)
    query = query_of([0, 0, 0, 0], 10, recall=0.9)
    order = nearest_first(rows, query)
    dead = set(order[:45])
    rows = [Row(row.id, row.values, live=number not in dead) for number, row in enumerate(rows)]
    graph = ListedGraph(order)
    snapshot = snapshot_of(Metric.EUCLIDEAN, [rows], dimensions=4, graph=lambda _: graph)

    # when
    found = search(snapshot, query)

    # then
    assert [(hit.id, hit.score) for hit in found.hits] == brute_force(Metric.EUCLIDEAN, rows, query)
    assert [part.plan for part in found.explanations] == [PlanKind.GRAPH]
    assert len(graph.asked) == 2


@pytest.mark.usefixtures("dear_scans")
def test_every_match_is_found_when_fewer_match_than_are_asked_for() -> None:
    # given three rows in the namespace, none of which the graph finds
    rows = random_rows(1_000, 4, seed=1)
    rows = [
        Row(row.id, row.values, "rare" if number in {3, 500, 999} else "") for number, row in enumerate(rows)
    ]
    graph = ListedGraph(range(4, 400))
    snapshot = snapshot_of(Metric.COSINE, [rows], dimensions=4, graph=lambda _: graph)
    query = query_of([1, 1, 1, 1], 10, namespace="rare", recall=0.9)

    assert answers(snapshot, query) == brute_force(Metric.COSINE, rows, query)


@pytest.mark.usefixtures("dear_scans")
def test_a_graph_whose_quality_is_not_known_is_not_asked() -> None:
    rows = random_rows(100, 4, seed=1)
    graph = ListedGraph(range(100), expansion=0)
    snapshot = snapshot_of(Metric.COSINE, [rows], dimensions=4, graph=lambda _: graph)

    assert explained(snapshot, query_of([1, 1, 1, 1], 10, recall=0.9))[0][0] is PlanKind.EXACT
    assert graph.asked == []


def real_graph(path: Path, metric: Metric, rows: list[Row]) -> Callable[[list[Row]], Graph]:
    """A usearch graph of the rows that is searched with an expansion of 64."""
    vectors = np.array([row.values for row in rows], dtype=np.float32)
    space = Space.of(metric, vectors, flat.norms(vectors))
    labels = np.arange(1, len(rows) + 1, dtype=np.uint64)
    build_graph(path, space, labels, vectors, form=Form(), threads=1)
    measured = {count: {0.98: 64} for count in (10, 100)}
    side = np.empty(0, dtype=np.int64)
    graph = view_graph(path, space, labels, form=Form(), side=side, expansions=Expansions(measured, floor=0))
    return lambda _: graph


@pytest.mark.usefixtures("dear_scans")
@pytest.mark.parametrize("metric", METRICS)
def test_a_real_graph_finds_nearly_all_and_scores_them_exactly(metric: Metric, tmp_path: Path) -> None:
    # given
    rows = random_rows(2_000, 16, seed=1)
    graph = real_graph(tmp_path / "graph.usearch", metric, rows)
    snapshot = snapshot_of(metric, [rows], dimensions=16, graph=graph)
    number_of = {row.id: number for number, row in enumerate(rows)}
    vectors = np.array([row.values for row in rows], dtype=np.float32)
    found_of_exact = 0

    # when
    for asked in random_rows(20, 16, seed=2):
        query = query_of(asked.values, 10, recall=0.98)
        found = search(snapshot, query)

        # then
        assert [part.plan for part in found.explanations] == [PlanKind.GRAPH]
        scores = flat.scores(metric, vectors[[number_of[hit.id] for hit in found.hits]], query.vector)
        assert [hit.score for hit in found.hits] == scores.tolist()
        exact = brute_force(metric, rows, query)
        found_of_exact += len({one for one, _ in exact} & {hit.id for hit in found.hits})
    assert found_of_exact >= 0.95 * 200


@pytest.mark.usefixtures("dear_scans")
@pytest.mark.parametrize("metric", METRICS)
def test_a_query_whose_nearest_rows_are_all_deleted_is_still_answered(metric: Metric, tmp_path: Path) -> None:
    # given a graph of all rows, then the 15 % nearest to the query deleted
    rows = random_rows(2_000, 16, seed=1)
    graph = real_graph(tmp_path / "graph.usearch", metric, rows)
    query = query_of(random_rows(1, 16, seed=2)[0].values, 10, recall=0.98)
    nearest = {one for one, _ in brute_force(metric, rows, query_of(query.vector.tolist(), 300))}
    rows = [Row(row.id, row.values, live=row.id not in nearest) for row in rows]
    snapshot = snapshot_of(metric, [rows], dimensions=16, graph=graph)

    # when
    found = answers(snapshot, query)

    # then
    exact = brute_force(metric, rows, query)
    assert len(found) == 10
    assert not nearest & {one for one, _ in found}
    assert len(set(found) & set(exact)) >= 9


def test_the_work_of_a_query_is_known_before_it_is_done() -> None:
    # given
    rows = random_rows(100, 4, seed=1)
    index = MetadataIndex(id=1, property="colour", type=MetadataType.STRING)
    snapshot = snapshot_of(Metric.COSINE, [rows], dimensions=4, indexes=(index,))
    by_column = Compare(("colour",), Comparison.EQ, "red")
    by_metadata = Compare(("size",), Comparison.EQ, 1.0)

    # when
    everything = query_of([1, 1, 1, 1], 5)
    column = query_of([1, 1, 1, 1], 5, filter=by_column)
    metadata = query_of([1, 1, 1, 1], 5, filter=And((by_column, by_metadata)))

    # then
    assert preparing_bytes(snapshot, everything) == 0
    assert 0 < preparing_bytes(snapshot, column) < preparing_bytes(snapshot, metadata)
    assert prepare(snapshot, everything).work_bytes == 100 * 4 * 4
    assert prepare(snapshot, column).work_bytes == 0
    assert is_long(1 << 30)
    assert not is_long(1 << 20)
