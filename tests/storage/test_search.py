"""Search: as many hits as match, with exact scores; parts without a graph, or at recall 1."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.filters import And, Compare, Comparison, Filter
from storage.plan import PlanKind
from storage.records import (
    MetadataIndex,
    MetadataType,
    Metric,
)
from storage.search import is_long, prepare, preparing_bytes, search
from tests.storage.searching import (
    FILTERS,
    METRICS,
    NUMBERS,
    SCALES,
    Row,
    answers,
    brute_force,
    no_row,
    query_of,
    random_rows,
    snapshot_of,
)


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
    names = iter(draw(st.permutations([f"{text}{number}" for number in range(25) for text in ("", "é", "￿")])))
    return [[Row(next(names), row.values, row.namespace, row.metadata, row.live) for row in part] for part in parts]


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
