"""Search over graphs: what they miss, what is dead, what they cannot find, is found all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.indexes import flat
from storage.indexes.hnsw import Expansions, Form, Space, Twins, build_graph, view_graph
from storage.plan import PlanKind
from storage.records import (
    Metric,
)
from storage.search import search
from storage.snapshot import Graph
from tests.storage.searching import (
    METRICS,
    ListedGraph,
    Row,
    answers,
    brute_force,
    explained,
    nearest_first,
    query_of,
    random_rows,
    snapshot_of,
)


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

    # then the list was made four times as long twice before
    assert [(hit.id, hit.score) for hit in found.hits] == brute_force(Metric.EUCLIDEAN, rows, query)
    assert [part.plan for part in found.explanations] == [PlanKind.EXACT]
    first = graph.asked[0][0]
    assert [count for count, _ in graph.asked] == [first, 4 * first, 16 * first]


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
def test_a_filter_that_shuns_the_query_is_looked_for_further_away() -> None:
    # given a namespace of half the rows, few of them near the query, and a graph that knows them out of order
    rows = random_rows(2_000, 4, seed=1)
    query = query_of([0, 0, 0, 0], 10, namespace="far", recall=0.9)
    order = nearest_first(rows, query)
    far = {*order[:60:5], *order[80:]}
    rows = [Row(row.id, row.values, "far" if number in far else "") for number, row in enumerate(rows)]
    # The fifth nearest of the namespace is beyond the first list, of which only six match.
    late = order[20]
    graph = ListedGraph([number for number in order[:100] if number != late] + [late] + order[100:])
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
    rows = [Row(row.id, row.values, "rare" if number in {3, 500, 999} else "") for number, row in enumerate(rows)]
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
    twins = Twins.among(space, vectors)
    build_graph(path, space, labels, vectors, twins=twins, form=Form(), threads=1)
    measured = {count: {0.98: 64} for count in (10, 100)}
    side = np.empty(0, dtype=np.int64)
    expansions = Expansions(measured, floor=0)
    graph = view_graph(path, space, labels, form=Form(), twins=twins, side=side, expansions=expansions)
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
