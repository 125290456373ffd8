"""Vectors in a byte for each number: a quarter of the bytes to read, and still every answer is the exact one.

A *code* is a vector divided by its *scale*, a 127th of its greatest component, and rounded to whole numbers. What the
rounding left out of it has a known length, its *error*; so the product of two codes says between which two numbers the
product of the vectors lies. As in `storage.indexes.flat`, every row is kept whose score could be among the best, and
the float32 values of those few decide: of 10,000 vectors of 768 dimensions, some twenty.

It pays most where rows are scattered, for then each is waited for: a thousand of 768 dimensions took 0.13 ms where
their float32 values took 0.40 ms, ten thousand 1.3 ms instead of 3.5 to 7.6 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

from storage.deadlines import check
from storage.indexes.flat import LENGTH_MAX, LENGTH_MIN, Question, Shortlist
from storage.records import Metric

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Numbers = NDArray[np.int8]
RowNumbers = NDArray[np.int64]
Mask = NDArray[np.bool_]

GREATEST = 127
_SCAN_ROWS = 16_384  # Ranks of a block stay in the second-level cache.
_GATHER_BYTES = 1 << 18  # So do the codes that are fetched at a time.
_ENCODED_NUMBERS = 1 << 15  # 256 KiB of float64.
_SPARE = 1e-12  # More than all rounding of float64 here, as a share of the product of two lengths.


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """The codes of the rows of a part: int8[rows, dimensions], and float32[rows, 2] with scale and error of each."""

    numbers: Numbers
    measures: Floats

    @classmethod
    def of(cls, vectors: Floats) -> Codes:
        """Encode vectors. One that float32 barely holds gets an infinite error: it is decided by its values."""
        rows, dimensions = vectors.shape
        numbers = np.empty((rows, dimensions), dtype=np.int8)
        measures = np.empty((rows, 2), dtype=np.float32)
        step = max(1, _ENCODED_NUMBERS // max(1, dimensions))
        for start in range(0, rows, step):
            block = slice(start, start + step)
            _encode(vectors[block], numbers[block], measures[block])
        return cls(numbers, measures)

    @property
    def row_bytes(self) -> int:
        """What one row takes."""
        return int(self.numbers.shape[1]) + self.measures.itemsize * int(self.measures.shape[1])

    @property
    def bytes(self) -> int:
        """What all rows take."""
        return len(self.numbers) * self.row_bytes

    def among(self, rows: RowNumbers) -> Codes:
        """The codes of some rows, in the order named, side by side."""
        return Codes(self.numbers.take(rows, axis=0), self.measures.take(rows, axis=0))

    def candidates(self, question: Question, lengths: Doubles, *, mask: Mask | None, count: int) -> RowNumbers:
        """As `flat.candidates`: the rows of `mask` that could be in the best `count`. `lengths` are those of all.

        No mask is one of every row.
        """
        asked = _Asked.of(question)
        shortlist = Shortlist(question.metric, count)
        for start in range(0, len(self.numbers), _SCAN_ROWS):
            check()
            block = slice(start, start + _SCAN_ROWS)
            lower, upper = asked.bounds(_products(self.numbers[block], asked), self.measures[block], lengths[block])
            is_near = lower <= shortlist.ceiling
            near = np.flatnonzero(is_near if mask is None else is_near & mask[block])
            shortlist.offer(near + start, lower[near], upper[near])
        return shortlist.rows()

    def candidates_among(self, question: Question, lengths: Doubles, *, rows: RowNumbers, count: int) -> RowNumbers:
        """As `candidates`, among the rows named: each once, in ascending order."""
        if len(rows) <= count:
            return rows
        asked = _Asked.of(question)
        shortlist = Shortlist(question.metric, count)
        step = max(1, _GATHER_BYTES // max(1, self.numbers.shape[1]))
        fetched = np.empty((min(step, len(rows)), self.numbers.shape[1]), dtype=np.int8)
        for start in range(0, len(rows), _SCAN_ROWS):
            check()
            block = rows[start : start + _SCAN_ROWS]
            products = np.empty((len(block), 1))
            for first in range(0, len(block), step):
                some = block[first : first + step]
                # Rows are in range. To say so is to have them written where they belong, and not by way of a copy.
                numbers = self.numbers.take(some, axis=0, out=fetched[: len(some)], mode="clip")
                numkong.cdist(numbers, asked.numbers, "dot", out=products[first : first + step])
            lower, upper = asked.bounds(products[:, 0], self.measures.take(block, axis=0), lengths[block])
            if shortlist.ceiling < np.inf:
                near = np.flatnonzero(lower <= shortlist.ceiling)
                block, lower, upper = block[near], lower[near], upper[near]
            shortlist.offer(block, lower, upper)
        return shortlist.rows()


def _encode(vectors: Floats, numbers: Numbers, measures: Floats) -> None:
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.add.reduce(wide * wide, axis=1))
    scales = (np.abs(wide).max(axis=1, initial=0.0) / GREATEST).astype(np.float32)
    ordinary = (lengths >= LENGTH_MIN) & (lengths <= LENGTH_MAX)
    scales[~ordinary] = 0
    divisors = np.where(ordinary, scales, np.float32(1)).astype(np.float64)
    codes = np.rint(wide / divisors[:, np.newaxis])
    # The scale was rounded, so the greatest component may lie a hair above.
    codes[~ordinary] = 0
    np.clip(codes, -GREATEST, GREATEST, out=codes)
    numbers[:] = codes
    codes *= divisors[:, np.newaxis]
    np.subtract(wide, codes, out=wide)
    errors = np.sqrt(np.add.reduce(wide * wide, axis=1)) * (1 + _SPARE)
    errors[~ordinary & (lengths > 0)] = np.inf
    measures[:, 0] = scales
    # Rounded up, for it is a bound.
    measures[:, 1] = np.nextafter(errors.astype(np.float32), np.float32(np.inf))
    measures[lengths == 0, 1] = 0


def _products(numbers: Numbers, asked: _Asked) -> Doubles:
    products: Doubles = np.empty((len(numbers), 1))
    numkong.cdist(numbers, asked.numbers, "dot", out=products)
    return products[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A query as a code: `reach` is the length of what the code holds of it, `error` of what it does not."""

    metric: Metric
    numbers: Numbers
    scale: float
    error: float
    reach: float
    length: float

    @classmethod
    def of(cls, question: Question) -> _Asked:
        wide = question.wide
        scale = float(np.abs(wide).max(initial=0.0)) / GREATEST
        codes = np.rint(wide / (scale or 1.0))
        rest = wide - codes * scale
        error = math.sqrt(float(rest @ rest)) * (1 + _SPARE)
        return cls(
            metric=question.metric,
            numbers=codes.astype(np.int8)[np.newaxis],
            scale=scale,
            error=error,
            # Not zero even where the query is: infinity times it has to be more than anything.
            reach=max((question.length + error), 1e-300),
            length=question.length,
        )

    def bounds(self, products: Doubles, measures: Floats, lengths: Doubles) -> tuple[Doubles, Doubles]:
        """Between which two numbers the rank of each row lies, by the product of its code with that of the query.

        With v = a + e and q = b + f, codes and what they leave out, v.q is a.b + v.f + e.b.
        """
        dots = products * (measures[:, 0] * np.float64(self.scale))
        error = lengths * (self.error + _SPARE * self.length)
        error += measures[:, 1] * np.float64(self.reach)
        rank: Any
        match self.metric:
            case Metric.COSINE:
                divisor = lengths * -(self.length or 1.0)
                divisor[divisor == 0] = -1.0
                rank = np.divide(dots, divisor, out=dots)
                error /= -divisor
            case Metric.DOT_PRODUCT:
                rank = np.negative(dots, out=dots)
            case Metric.EUCLIDEAN:
                rank = lengths * lengths
                rank += self.length * self.length
                error += rank * _SPARE
                error *= 2
                dots *= 2
                rank -= dots
        return rank - error, rank + error
