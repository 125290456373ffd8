"""Exact scoring: what the score of a match is, and how the best rows are found at the speed of memory.

The definition, for a stored vector v and a query q, best first (as the live service documents its metrics):

    cosine       v.q / (|v| |q|), from 1 down to -1; 0 when v or q is the zero vector
    euclidean    |v - q|, not squared, from 0 up
    dot-product  the negative of v.q, ascending

A score is computed in float64 from the stored float32 numbers, clamped to what float32 can hold and rounded
to it once. It depends on nothing but the two vectors, not on the part, the block or the rows beside it: every
row is summed alone and in the same order. So two processes, or the same rows before and after a merge, give
equal bytes.

`candidates` finds the best rows by a float32 matrix product and keeps every row whose score could, within a
proved bound on the rounding of that product, be among the best. It may return more rows than asked for, ties
included, but never misses one; `scores` then tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.deadlines import check
from storage.records import Metric

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
RowNumbers = NDArray[np.int64]
Mask = NDArray[np.bool_]

GATHER_COST = 4
"""How many rows a scan passes in the time in which one scattered row is fetched (measured: 4 to 5)."""

_SCAN_ROWS = 16_384  # A block of scores stays in the second-level cache; the matrix itself is not copied.
_GATHER_VALUES = 1 << 20  # 4 MiB of float32 are copied at a time, whatever the number of rows.
_EXACT_VALUES = 1 << 17  # 1 MiB of float64.

_UNIT = 2.0**-24  # The unit roundoff of float32.
LENGTH_MIN = 1e-25
LENGTH_MAX = 1e37
"""Between these lengths nothing in float32 under- or overflows beyond the bound; rows outside go by float64."""
_SCORE_MAX = float(np.finfo(np.float32).max)
_ZERO = np.float32(0)
_SPARE = 1e-9  # More than all rounding of float64 here, as a share.
_LEAST = 5e-324
"""The least number above zero: a divisor that makes zero of zero and does not touch any length of float32 numbers."""


def norms(vectors: Floats) -> Doubles:
    """The Euclidean length of each row, as every part keeps them."""
    lengths = np.empty(len(vectors), dtype=np.float64)
    for start, block in _exact_blocks(vectors, np.arange(len(vectors))):
        lengths[start : start + len(block)] = _lengths(block)
    return lengths


def scores(metric: Metric, vectors: Floats, query: Floats) -> Floats:
    """The score of each row: the definition that everything else in Headrace agrees with."""
    return scores_of(metric, vectors, query, rows=np.arange(len(vectors)))


def scores_of(metric: Metric, vectors: Floats, query: Floats, *, rows: RowNumbers) -> Floats:
    """The scores of some rows, in the order named."""
    return Question(metric, query).scores(vectors, rows)


def candidates(question: Question, vectors: Floats, lengths: Doubles, *, mask: Mask, count: int) -> RowNumbers:
    """Ascending rows of `mask`, among them all that could be in the best `count`, ties at the end included.

    `lengths` are the `norms` of all rows. Few rows of a large matrix are gathered, many are scanned in place.
    """
    assert len(mask) == len(vectors) == len(lengths)
    matching = int(np.count_nonzero(mask))
    if matching * GATHER_COST < len(mask):
        return candidates_among(question, vectors, lengths, rows=np.flatnonzero(mask), count=count)
    matrix = np.asarray(vectors)
    shortlist = Shortlist(question.metric, count)
    for start in range(0, len(matrix), _SCAN_ROWS):
        check()
        block = slice(start, start + _SCAN_ROWS)
        near, lower, upper = question.within(matrix[block], lengths[block], mask[block], shortlist.ceiling)
        shortlist.offer(near + start, lower, upper)
    return shortlist.rows()


def candidates_among(
    question: Question, vectors: Floats, lengths: Doubles, *, rows: RowNumbers, count: int
) -> RowNumbers:
    """As `candidates`, among the rows named: each once, in ascending order."""
    if len(rows) <= count:
        return rows
    matrix = np.asarray(vectors)
    shortlist = Shortlist(question.metric, count)
    step = max(1, _GATHER_VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(rows), step):
        check()
        block = rows[start : start + step]
        lower, upper = question.bounds(matrix.take(block, axis=0), lengths[block])
        near = np.flatnonzero(lower <= shortlist.ceiling)
        shortlist.offer(block[near], lower[near], upper[near])
    return shortlist.rows()


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Some rows of a part, ascending, fetched once so that every search may scan them in place."""

    rows: RowNumbers
    vectors: Floats
    lengths: Doubles

    @classmethod
    def of(cls, vectors: Floats, lengths: Doubles, rows: RowNumbers) -> Gathered:
        """Fetch these rows; `lengths` are the `norms` of all."""
        return cls(rows=rows, vectors=np.asarray(vectors)[rows], lengths=lengths[rows])

    def near(self, question: Question, *, worst: float) -> RowNumbers:
        """Those whose score could be as good as `worst`, a score, by the bound of `candidates`."""
        metric = question.metric
        rank = worst * worst if metric is Metric.EUCLIDEAN else worst if metric.lower_is_better else -worst
        lower, _ = question.bounds(self.vectors, self.lengths)
        return self.rows[lower <= _ceiling(metric, rank)]


def _exact_blocks(vectors: Floats, rows: RowNumbers) -> Iterator[tuple[int, Doubles]]:
    """The rows in float64, a bounded number at a time, each block with its place among them."""
    matrix = np.asarray(vectors)  # Plain arrays are cheaper to slice than memory maps.
    step = max(1, _EXACT_VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(rows), step):
        check()
        yield start, matrix[rows[start : start + step]].astype(np.float64)


def _dots(vectors: Doubles, query: Doubles) -> Doubles:
    # Not a matrix product: BLAS sums a row in an order that depends on how many rows there are. This sums
    # each row by itself, in an order that depends on its length only. Products of two float32 are exact here.
    sums: Doubles = np.vecdot(vectors, query)
    return sums


def _lengths(vectors: Doubles) -> Doubles:
    lengths: Doubles = np.sqrt(np.add.reduce(vectors * vectors, axis=1))
    return lengths


def _are_ordinary(lengths: Doubles) -> bool:
    return not len(lengths) or bool(lengths.min() >= LENGTH_MIN and lengths.max() <= LENGTH_MAX)


class Question:
    """A query made ready: for exact scores, and scaled for a float32 product of which the error is known.

    A row's *rank* is a number that orders rows as their scores do, lowest best: the negative cosine, the
    squared distance, or the negative dot product.
    """

    __slots__ = ("_bounded", "_margin", "_scale", "_scaled", "_scaled_length", "length", "metric", "wide")

    def __init__(self, metric: Metric, query: Floats) -> None:
        assert query.ndim == 1
        self.metric = metric
        self.wide: Doubles = query.astype(np.float64)
        self.length = float(_lengths(self.wide[np.newaxis])[0])
        self._bounded = False

    def _make_bounds(self) -> None:
        """What `bounds` needs, of which a graph's proposals need nothing."""
        self._bounded = True
        # By a power of two, to a length in [1/2, 1), or zero.
        exponent = math.frexp(self.length)[1]
        self._scaled: Floats = np.ldexp(self.wide, -exponent).astype(np.float32)
        self._scale = math.ldexp(1.0, exponent)
        self._scaled_length = math.ldexp(self.length, -exponent)
        # The error of a dot product of n terms is at most n u / (1 - n u) times the product of the lengths,
        # in whatever order it is summed. The eight terms more pay for what underflows and for the float64
        # arithmetic here and in `scores`, which is 2^29 times finer.
        terms = (len(self.wide) + 8) * _UNIT
        self._margin = terms / (1 - terms)

    def scores(self, vectors: Floats, rows: RowNumbers, lengths: Doubles | None = None) -> Floats:
        """The scores of some rows, in the order named. `lengths` are the `norms` of all, where they are at hand."""
        assert vectors.ndim == 2
        assert self.wide.shape == vectors.shape[1:]
        if len(rows) * vectors.shape[1] <= _EXACT_VALUES:
            # What a graph proposed: one block, as most are.
            few = self._exact(
                vectors.take(rows, axis=0).astype(np.float64), None if lengths is None else lengths.take(rows)
            )
            return np.add(few, 0.0, dtype=np.float32, casting="same_kind")
        result = np.empty(len(rows), dtype=np.float32)
        for start, block in _exact_blocks(vectors, rows):
            place = slice(start, start + len(block))
            result[place] = self._exact(block, None if lengths is None else lengths[rows[place]])
        # Adding zero turns -0.0 into 0.0, which prints as a number and not as a riddle.
        result += _ZERO
        return result

    def _exact(self, vectors: Doubles, lengths: Doubles | None) -> Doubles:
        match self.metric:
            case Metric.COSINE:
                scale = (_lengths(vectors) if lengths is None else lengths) * self.length
                # Of the zero vector the dot product is zero, and so is the score.
                np.maximum(scale, _LEAST, out=scale)
                dots = _dots(vectors, self.wide)
                return np.divide(dots, scale, out=dots)
            case Metric.EUCLIDEAN:
                return np.minimum(_lengths(vectors - self.wide), _SCORE_MAX)
            case Metric.DOT_PRODUCT:
                return np.minimum(np.maximum(-_dots(vectors, self.wide), -_SCORE_MAX), _SCORE_MAX)

    def bounds(self, vectors: Floats, lengths: Doubles) -> tuple[Doubles, Doubles]:
        """Between which two numbers the rank of each row lies."""
        if not self._bounded:
            self._make_bounds()
        return self._between(self._dots(vectors, lengths), lengths)

    def within(
        self, vectors: Floats, lengths: Doubles, mask: Mask, ceiling: float
    ) -> tuple[RowNumbers, Doubles, Doubles]:
        """The rows of `mask` whose rank may be `ceiling` or lower, and between which two numbers each lies.

        As `bounds` says. Most rows of a scan are far from it, and a multiplication and a comparison show that.
        """
        if not self._bounded:
            self._make_bounds()
        if self.metric is Metric.EUCLIDEAN or ceiling == np.inf or not _are_ordinary(lengths):
            lower, upper = self.bounds(vectors, lengths)
            near = np.flatnonzero((lower <= ceiling) & mask)
            return near, lower[near], upper[near]
        products = np.matmul(vectors, self._scaled)
        near = np.flatnonzero((products >= self._least_product(lengths, ceiling)) & mask)
        lower, upper = self._between(products[near].astype(np.float64), lengths[near])
        sure = lower <= ceiling
        return near[sure], lower[sure], upper[sure]

    def _least_product(self, lengths: Doubles, ceiling: float) -> Doubles:
        """What the product of a row must be at least for its rank to be `ceiling` or lower: never too much."""
        if self.metric is Metric.COSINE:
            return lengths * (-(ceiling + self._margin + _SPARE) * (self._scaled_length or 1.0))
        least: Doubles = lengths * (-self._margin * self.length * (1 + _SPARE) / self._scale)
        least -= (ceiling + abs(ceiling) * _SPARE) / self._scale
        return least

    def _between(self, dots: Doubles, lengths: Doubles) -> tuple[Doubles, Doubles]:
        error: Doubles | float
        match self.metric:
            case Metric.COSINE:
                divisor = lengths * -(self._scaled_length or 1.0)
                divisor[divisor == 0] = 1.0
                error = self._margin
                rank = np.divide(dots, divisor, out=dots)
            case Metric.DOT_PRODUCT:
                error = lengths * (self._margin * self.length)
                rank = np.multiply(dots, -self._scale, out=dots)
            case Metric.EUCLIDEAN:
                # |v|^2 - 2 v.q + |q|^2 is off by at most margin * 2 |v| |q|, which is no more than this.
                error = np.square(lengths + self.length)
                error *= self._margin / 2
                rank = lengths * lengths
                rank -= dots * (2 * self._scale)
                rank += self.length * self.length
        return rank - error, rank + error

    def _dots(self, vectors: Floats, lengths: Doubles) -> Doubles:
        if _are_ordinary(lengths):
            ordinary: Doubles = np.matmul(vectors, self._scaled).astype(np.float64)
            return ordinary
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            dots: Doubles = np.matmul(vectors, self._scaled).astype(np.float64)
        beyond = np.flatnonzero((lengths != 0) & ((lengths < LENGTH_MIN) | (lengths > LENGTH_MAX)))
        wide = self._scaled.astype(np.float64)
        step = max(1, _EXACT_VALUES // max(1, vectors.shape[1]))
        for start in range(0, len(beyond), step):
            rows = beyond[start : start + step]
            dots[rows] = _dots(vectors[rows].astype(np.float64), wide)
        return dots


class Shortlist:
    """The rows that can still be among the best `count` of those offered so far."""

    def __init__(self, metric: Metric, count: int) -> None:
        assert count >= 1
        self.ceiling = np.inf
        """No row whose rank is certainly above this is among the best."""
        self._metric = metric
        self._count = count
        self._kept: list[tuple[RowNumbers, Doubles, Doubles]] = []
        self._total = 0
        self._full = count + 1

    def offer(self, rows: RowNumbers, lower: Doubles, upper: Doubles) -> None:
        """Take rows whose rank lies between `lower` and `upper`, and drop those now out of reach."""
        if not len(rows):
            return
        self._kept.append((rows, lower, upper))
        self._total += len(rows)
        if self._total >= self._full:
            self._prune()

    def rows(self) -> RowNumbers:
        """What is left, in the order in which it was offered."""
        if len(self._kept) > 1 and self._total > self._count:
            self._prune()
        if len(self._kept) == 1:
            return self._kept[0][0]
        return np.concatenate([rows for rows, _, _ in self._kept]) if self._kept else np.empty(0, np.int64)

    def _prune(self) -> None:
        if len(self._kept) == 1:
            [(rows, lower, upper)] = self._kept
        else:
            rows, lower, upper = (np.concatenate(column) for column in zip(*self._kept, strict=True))
        last = float(np.partition(upper, self._count - 1)[self._count - 1])
        self.ceiling = min(self.ceiling, _ceiling(self._metric, last))
        near = lower <= self.ceiling
        self._kept = [(rows[near], lower[near], upper[near])]
        self._total = len(self._kept[0][0])
        # Pruning costs as much as what is kept, so it waits until that has grown by a quarter.
        self._full = self._total + self._total // 4 + 1


def _ceiling(metric: Metric, rank: float) -> float:
    """The rank above which a score, rounded to float32, is certainly worse than one of at most `rank`."""
    # Scores that differ in float64 may be one in float32, and then the id decides. So the rank becomes a
    # score, the score goes up to the next float32, and back.
    score = math.sqrt(max(rank, 0.0)) * (1 + 2.0**-50) if metric is Metric.EUCLIDEAN else rank
    rounded = np.float32(max(-_SCORE_MAX, min(score, _SCORE_MAX)))
    if rounded == _SCORE_MAX:
        return np.inf  # Everything worse is clamped to the same score.
    above = float(np.nextafter(rounded, np.float32(np.inf)))
    return above * above * (1 + 2.0**-50) if metric is Metric.EUCLIDEAN else above
