"""Exact scores, and the float32 scan that never misses one of the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.indexes import flat
from storage.records import Metric

METRICS = [pytest.param(metric, id=metric.value) for metric in Metric]
LARGEST = float(np.finfo(np.float32).max)


def score_by_hand(metric: Metric, vector: list[float], query: list[float]) -> float:
    """The definition once more, in exact sums and without numpy."""
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


def best(metric: Metric, vectors: NDArray[np.float32], query: NDArray[np.float32], count: int) -> set[int]:
    """Every row that scores at least as well as the one in place `count`."""
    scores = flat.scores(metric, vectors, query)
    keys = scores if metric.lower_is_better else -scores
    return set(np.flatnonzero(keys <= np.sort(keys)[min(count, len(keys)) - 1]).tolist())


def scan(
    metric: Metric,
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    *,
    count: int,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    mask = np.ones(len(vectors), dtype=np.bool_) if mask is None else mask
    return flat.candidates(flat.Question(metric, query), vectors, flat.norms(vectors), mask=mask, count=count)


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_is_the_definition_rounded_once_to_float32(metric: Metric) -> None:
    # given
    random = np.random.default_rng(1)
    vectors = random.standard_normal((50, 33)).astype(np.float32)
    query = random.standard_normal(33).astype(np.float32)

    # when
    scores = flat.scores(metric, vectors, query)

    # then
    by_hand = [score_by_hand(metric, vector.tolist(), query.tolist()) for vector in vectors]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, by_hand, rtol=2**-23, atol=1e-14)


@pytest.mark.parametrize(
    ("metric", "vector", "query", "score"),
    [
        pytest.param(Metric.COSINE, [3, 4], [3, 4], 1.0, id="the cosine of equal directions is exactly one"),
        pytest.param(Metric.COSINE, [1e-30, 0], [-1e38, 0], -1.0, id="the cosine does not see lengths"),
        pytest.param(Metric.COSINE, [0, 0], [3, 4], 0.0, id="the cosine of a zero vector is zero"),
        pytest.param(Metric.COSINE, [3, 4], [0, 0], 0.0, id="the cosine to a zero query is zero"),
        pytest.param(Metric.EUCLIDEAN, [0, 0], [3, 4], 5.0, id="the distance is not squared"),
        pytest.param(Metric.EUCLIDEAN, [3e38, 3e38], [-3e38, -3e38], LARGEST, id="a distance stays finite"),
        pytest.param(Metric.DOT_PRODUCT, [1, 2], [3, 4], -11.0, id="the dot product is negated"),
        pytest.param(Metric.DOT_PRODUCT, [1e38, 0], [1e38, 0], -LARGEST, id="a dot product stays finite"),
    ],
)
def test_scores_at_the_edges(metric: Metric, vector: list[float], query: list[float], score: float) -> None:
    scores = flat.scores(metric, np.array([vector], np.float32), np.array(query, np.float32))

    assert scores.tolist() == [score]


def test_a_dot_product_of_zero_has_no_minus_sign() -> None:
    [score] = flat.scores(Metric.DOT_PRODUCT, np.array([[0, 1]], np.float32), np.array([1, 0], np.float32))

    assert not np.signbit(score)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimensions", [1, 7, 100, 768])
def test_a_score_does_not_depend_on_the_rows_beside_it(metric: Metric, dimensions: int) -> None:
    # given rows enough for several blocks
    random = np.random.default_rng(2)
    vectors = random.standard_normal((3_000, dimensions)).astype(np.float32)
    query = random.standard_normal(dimensions).astype(np.float32)

    # when they are scored together, in other company, and alone
    together = flat.scores(metric, vectors, query)
    shifted = flat.scores(metric, vectors[1:], query)
    reversed_ = flat.scores(metric, vectors[::-1], query)[::-1]
    alone = np.concatenate([flat.scores(metric, vectors[row : row + 1], query) for row in range(50)])

    # then every bit is the same
    assert together[1:].tobytes() == shifted.tobytes()
    assert together.tobytes() == reversed_.tobytes()
    assert together[:50].tobytes() == alone.tobytes()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05], ids=["no row masked", "half masked", "nearly all masked"])
def test_the_scan_keeps_the_best_and_little_else(metric: Metric, share: float) -> None:
    # given more rows than one block of the scan has
    random = np.random.default_rng(3)
    vectors = random.standard_normal((40_000, 16)).astype(np.float32)
    query = random.standard_normal(16).astype(np.float32)
    mask = random.random(len(vectors)) < share

    # when
    rows = scan(metric, vectors, query, count=10, mask=mask)

    # then
    matching = np.flatnonzero(mask)
    expected = {int(matching[row]) for row in best(metric, vectors[mask], query, 10)}
    assert expected <= set(rows.tolist())
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert mask[rows].all()
    assert len(rows) < 30


@pytest.mark.parametrize("metric", METRICS)
def test_the_scan_keeps_every_tie_in_the_last_place(metric: Metric) -> None:
    # given two hundred rows that are one vector, among others, beyond the end of the first block
    random = np.random.default_rng(4)
    vectors = random.standard_normal((20_000, 8)).astype(np.float32)
    query = random.standard_normal(8).astype(np.float32)
    twins = random.choice(len(vectors), 200, replace=False)
    vectors[twins] = query * np.float32(10 if metric is Metric.DOT_PRODUCT else 1)

    # when
    rows = scan(metric, vectors, query, count=5)

    # then
    assert set(twins.tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_rows_whose_scores_differ_only_in_float64_are_all_kept(metric: Metric) -> None:
    # given vectors so close that float32 cannot tell all of their scores apart
    random = np.random.default_rng(5)
    query = random.standard_normal(64).astype(np.float32)
    vectors = np.repeat(query[np.newaxis] * np.float32(1.5), 500, axis=0)
    vectors[:, 0] += random.standard_normal(500).astype(np.float32) * np.float32(1e-6)

    # when
    rows = scan(metric, vectors, query, count=3)

    # then
    assert best(metric, vectors, query, 3) <= set(rows.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_no_matching_row_means_no_candidate(metric: Metric) -> None:
    vectors = np.ones((10, 4), np.float32)

    rows = scan(metric, vectors, vectors[0], count=3, mask=np.zeros(10, np.bool_))

    assert rows.tolist() == []


MAGNITUDES = st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e-3, 1.0, 3.0, 1e10, 1e19, 1e30, 1e38, LARGEST])


@st.composite
def scattered_vectors(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows and a query of wildly different lengths, with repeats."""
    dimensions = draw(st.integers(1, 12))
    rows = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = np.array(draw(st.lists(MAGNITUDES, min_size=rows + 1, max_size=rows + 1)))
    values = random.uniform(-1, 1, (rows + 1, dimensions))
    if draw(st.booleans()):
        values = np.round(values)
    numbers = (values * scales[:, np.newaxis]).astype(np.float32)
    numbers[random.integers(0, rows, rows // 3)] = numbers[0]
    return numbers[:-1], numbers[-1]


@given(scattered_vectors(), st.sampled_from(Metric), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_the_scan_misses_nothing_whatever_the_magnitudes(
    numbers: tuple[NDArray[np.float32], NDArray[np.float32]], metric: Metric, count: int
) -> None:
    vectors, query = numbers

    rows = scan(metric, vectors, query, count=count)

    assert best(metric, vectors, query, count) <= set(rows.tolist())


@given(scattered_vectors(), st.sampled_from(Metric))
@settings(max_examples=200, deadline=None)
def test_scores_are_finite_and_agree_with_the_definition_whatever_the_magnitudes(
    numbers: tuple[NDArray[np.float32], NDArray[np.float32]], metric: Metric
) -> None:
    vectors, query = numbers

    scores = flat.scores(metric, vectors, query)

    by_hand = np.array([score_by_hand(metric, vector.tolist(), query.tolist()) for vector in vectors])
    lengths = flat.norms(vectors) * flat.norms(query[np.newaxis])
    # Where terms cancel, the sum is as exact as its terms are large.
    slack = {Metric.COSINE: 1e-12, Metric.EUCLIDEAN: 0.0, Metric.DOT_PRODUCT: lengths * 1e-12}[metric]
    assert np.isfinite(scores).all()
    assert (np.abs(scores - by_hand) <= slack + np.abs(by_hand) * 2**-23 + 2e-45).all()
