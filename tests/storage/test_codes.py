"""Codes of a byte for each number, and the scan of them that never misses one of the best."""

from __future__ import annotations

import numkong
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.indexes import flat
from storage.indexes.codes import Codes
from storage.records import Metric

METRICS = [pytest.param(metric, id=metric.value) for metric in Metric]
LARGEST = float(np.finfo(np.float32).max)
Vectors = NDArray[np.float32]


def best(metric: Metric, vectors: Vectors, query: Vectors, rows: NDArray[np.int64], count: int) -> set[int]:
    """Every row named that scores at least as well as the one in place `count` of them."""
    scores = flat.scores(metric, vectors, query)[rows]
    keys = scores if metric.lower_is_better else -scores
    return set(rows[keys <= np.sort(keys)[min(count, len(keys)) - 1]].tolist())


def found(metric: Metric, vectors: Vectors, query: Vectors, mask: NDArray[np.bool_], count: int) -> list[set[int]]:
    """What a scan in place and one of gathered rows find."""
    codes, lengths, question = Codes.of(vectors), flat.norms(vectors), flat.Question(metric, query)
    scanned = codes.candidates(question, lengths, mask=mask, count=count)
    gathered = codes.candidates_among(question, lengths, rows=np.flatnonzero(mask), count=count)
    return [set(scanned.tolist()), set(gathered.tolist())]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimensions", [1, 3, 100, 768])
def test_of_many_vectors_few_are_candidates_and_the_best_are_among_them(metric: Metric, dimensions: int) -> None:
    # given
    random = np.random.default_rng(dimensions)
    vectors = random.standard_normal((20_000, dimensions)).astype(np.float32)
    query = random.standard_normal(dimensions).astype(np.float32)
    mask = random.random(20_000) < 0.5

    # when
    scanned, gathered = found(metric, vectors, query, mask, 10)

    # then
    wanted = best(metric, vectors, query, np.flatnonzero(mask), 10)
    assert wanted <= scanned
    assert wanted <= gathered
    if dimensions >= 100:
        assert len(scanned) < 500
        assert len(gathered) < 500


@settings(deadline=None)
@given(data=st.data(), metric=st.sampled_from(Metric), count=st.integers(1, 12))
def test_no_row_that_could_be_answered_is_left_out(data: st.DataObject, metric: Metric, count: int) -> None:
    # given vectors of any size, alike, opposite, and beside numbers that float32 barely holds
    dimensions = data.draw(st.integers(1, 6))
    number = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e-30, 1e-20, 3.4e38, -3.4e38, 1e20]),
        st.floats(-2, 2, width=32),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
    line = st.lists(number, min_size=dimensions, max_size=dimensions)
    vectors = np.array(data.draw(st.lists(line, min_size=1, max_size=30)), dtype=np.float32)
    query = np.array(data.draw(line), dtype=np.float32)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(vectors), max_size=len(vectors))))
    mask[0] = True

    # when
    scanned, gathered = found(metric, vectors, query, mask, count)

    # then
    wanted = best(metric, vectors, query, np.flatnonzero(mask), count)
    assert wanted <= scanned <= set(np.flatnonzero(mask).tolist())
    assert wanted <= gathered <= set(np.flatnonzero(mask).tolist())


def test_the_error_of_a_code_is_no_less_than_what_rounding_left_out() -> None:
    vectors = np.random.default_rng(3).standard_normal((500, 40)).astype(np.float32)

    codes = Codes.of(vectors)

    meant = codes.numbers * codes.measures[:, :1].astype(np.float64)
    left = np.linalg.norm(vectors.astype(np.float64) - meant, axis=1)
    assert (left <= codes.measures[:, 1]).all()
    assert (codes.measures[:, 1] <= 0.02 * np.linalg.norm(vectors, axis=1)).all()


def test_the_zero_vector_is_its_own_code() -> None:
    codes = Codes.of(np.zeros((1, 4), dtype=np.float32))

    assert codes.measures.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dimensions", [1, 7, 33, 768, 1536])
def test_products_of_codes_are_exact(dimensions: int) -> None:
    # What the bounds are built on: whole numbers, however long the vectors and extreme the numbers.
    random = np.random.default_rng(dimensions)
    numbers = np.where(random.random((100, dimensions)) < 0.5, 127, -127).astype(np.int8)
    products = np.empty((100, 1))

    numkong.cdist(numbers, numbers[:1], "dot", out=products)

    assert products[:, 0].tolist() == (numbers.astype(np.int64) @ numbers[0]).tolist()
