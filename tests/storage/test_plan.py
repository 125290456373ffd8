"""The plan of one part, from counts alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.plan import (
    EXACT,
    LIST_MAX,
    NONE,
    WIDENINGS_MAX,
    Plan,
    PlanKind,
    choose,
    enough,
    widen,
    work_bytes,
)


def plan(
    *,
    rows: int = 100_000,
    matching: int = 100_000,
    count: int = 10,
    dimensions: int = 768,
    recall: float = 0.98,
    expansion: int = 32,
) -> Plan:
    return choose(
        rows=rows,
        matching=matching,
        count=count,
        dimensions=dimensions,
        recall=recall,
        expansion=expansion,
    )


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        pytest.param(plan(matching=0), PlanKind.NONE, id="nothing matches"),
        pytest.param(plan(matching=0, recall=1), PlanKind.NONE, id="nothing matches, exactly"),
        pytest.param(plan(recall=1), PlanKind.EXACT, id="recall one"),
        pytest.param(plan(expansion=0), PlanKind.EXACT, id="no graph, or none that is good enough"),
        pytest.param(plan(rows=2_000, matching=2_000), PlanKind.EXACT, id="few rows"),
        pytest.param(plan(matching=500), PlanKind.EXACT, id="few of many match"),
        pytest.param(plan(), PlanKind.GRAPH, id="all of many match"),
        pytest.param(plan(matching=95_000), PlanKind.GRAPH, id="some are deleted"),
        pytest.param(plan(matching=10_000), PlanKind.GRAPH, id="a tenth matches"),
        pytest.param(plan(count=50_000), PlanKind.EXACT, id="half of all is asked for"),
        pytest.param(plan(expansion=5_000), PlanKind.EXACT, id="the walk costs more than the scan"),
    ],
)
def test_the_cheapest_way_that_keeps_the_promise_is_chosen(chosen: Plan, kind: PlanKind) -> None:
    assert chosen.kind is kind


def test_a_list_is_longer_where_fewer_rows_match() -> None:
    whole, tenth = plan(expansion=40), plan(matching=10_000, expansion=40)

    assert (whole.count, whole.expansion) == (30, 40)
    assert (tenth.count, tenth.expansion) == (300, 400)


def test_an_expansion_is_never_shorter_than_the_list() -> None:
    chosen = plan(count=100, expansion=8)

    assert chosen.expansion == chosen.count == 200


def test_a_list_that_was_too_short_is_made_longer_and_then_given_up_for_the_scan() -> None:
    attempts = [plan()]
    while attempts[-1].kind is PlanKind.GRAPH:
        attempts.append(widen(attempts[-1], rows=100_000, matching=100_000, dimensions=768))

    assert len(attempts) == 2 + WIDENINGS_MAX
    assert [attempt.count for attempt in attempts] == [30, 120, 480, 0]
    assert attempts[-1] == EXACT


@pytest.mark.parametrize(("found", "times"), [(0, 4), (1, 4), (11, 4), (15, 3), (18, 3), (23, 2), (24, 2), (29, 2)])
def test_a_list_is_made_longer_by_how_little_of_it_matched(found: int, times: int) -> None:
    first = plan(matching=50_000)

    wider = widen(first, rows=100_000, matching=50_000, dimensions=768, found=found, count=10)

    assert (wider.count, wider.expansion) == (times * first.count, times * first.expansion)


@pytest.mark.parametrize(
    ("rows", "matching", "count", "found"),
    [
        pytest.param(100_000, 100_000, 10, 10, id="every row matches"),
        pytest.param(100_000, 50_000, 10, 25, id="nearly as many as by chance"),
        pytest.param(100_000, 50_000, 100, 166, id="and where many are wanted"),
        pytest.param(100_000, 20, 10, 20, id="all there are"),
        pytest.param(5, 5, 10, 5, id="and fewer than are wanted"),
    ],
)
def test_how_many_rows_of_a_list_must_match(rows: int, matching: int, count: int, found: int) -> None:
    assert enough(count, rows=rows, matching=matching) == found


def test_a_wider_list_that_costs_more_than_the_scan_is_not_tried() -> None:
    tried = plan(rows=10_000, matching=10_000, expansion=150)
    assert tried.kind is PlanKind.GRAPH

    assert widen(tried, rows=10_000, matching=10_000, dimensions=768) == EXACT


@given(
    rows=st.integers(1, 10**8),
    share=st.floats(0, 1),
    count=st.integers(1, 120_000),
    dimensions=st.integers(1, 8192),
    recall=st.floats(0.01, 1),
    expansion=st.integers(0, 20_000),
)
def test_a_plan_is_bounded_whatever_the_counts(
    rows: int, share: float, count: int, dimensions: int, recall: float, expansion: int
) -> None:
    matching = round(rows * share)
    counts = {"rows": rows, "matching": matching, "dimensions": dimensions}

    chosen = choose(**counts, count=count, recall=recall, expansion=expansion)

    assert (chosen == NONE) == (matching == 0)
    assert 0 <= chosen.count <= min(LIST_MAX, chosen.expansion)
    assert work_bytes(chosen, **counts) <= work_bytes(EXACT, **counts)
    for _ in range(WIDENINGS_MAX + 1):
        if chosen.kind is PlanKind.GRAPH:
            chosen = widen(chosen, **counts)
    assert chosen in (NONE, EXACT)
