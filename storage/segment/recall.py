"""What a search of a graph must spend for a recall: measured with vectors that the graph does not hold.

No expansion suits every set of vectors, so each graph is measured. A vector that is in a graph is too easy a question,
for its links lead to its neighbours: on 20,000 words the graph gave 0.997 of them where it gave 0.985 to words it did
not hold. So some vectors are held out while the others are added, the graph is asked for their nearest, which are known
from an exact scan, and then they are added too. Such questions are as hard as those of users who ask with vectors of
the kind they store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.indexes import flat
from storage.indexes.hnsw import COUNTS, Companions, HnswGraph, Space, Twins, candidate_count
from storage.records import Metric

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

LADDER = (16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)
"""The expansions that are tried, in order."""
HELD_MAX = 256
"""The vectors held out; of a small segment, one of HELD_SHARE."""
HELD_SHARE = 8
_QUESTIONS = {256: 128}  # From these expansions on, fewer questions: they are dear, and recalls vary less.
_SEED = 20_261_121
_SPARE = 20  # What float32 may mix up at the end of a list of the nearest.
_SCORES = 1 << 22  # 16 MiB of float32 at a time.


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The rows a graph is made of, and the space it walks."""

    space: Space
    twins: Twins
    labels: NDArray[np.uint64]
    vectors: Floats
    norms: NDArray[np.float64]

    def ranks(self, question: Floats, rows: Rows) -> Floats:
        """Numbers that order rows as their scores do, lower is better."""
        scores = flat.scores(self.space.metric, self.vectors[rows], question)
        return scores if self.space.metric.lower_is_better else -scores


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question: by number of answers the rank of the last right one, and the rows that are right.

    Rows that are as good as the last right one are right too. Where those may reach beyond the rows that were
    ranked, `is_open` says so, and rows have to be ranked to know.
    """

    vector: Floats
    worst: dict[int, float]
    right: dict[int, frozenset[int]]
    is_open: bool

    @classmethod
    def of(cls, subject: Subject, question: Floats, nearest: Rows, counts: Items[int]) -> _Asked:
        """Rank the nearest rows, some more of them than the greatest of `counts`."""
        ranks = subject.ranks(question, nearest)
        ordered = np.sort(ranks)
        worst = {count: float(ordered[count - 1]) for count in counts}
        right = {count: frozenset(nearest[ranks <= worst[count]].tolist()) for count in counts}
        return cls(question, worst, right, is_open=bool(ordered[-1] <= max(worst.values())))

    def count_right(self, subject: Subject, rows: Rows, count: int) -> int:
        """How many of the rows are right answers."""
        if self.is_open:
            return int((subject.ranks(self.vector, rows) <= self.worst[count]).sum())
        return len(self.right[count].intersection(rows.tolist()))


class Measured:
    """What a graph found of the right answers to each question, at each expansion tried."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._asked: list[_Asked] = []
        self._found: dict[tuple[int, int], list[Rows]] = {}
        """By number of answers and expansion: the rows found for each of the first questions."""

    def expansions(
        self, *, side: Rows, companions: Companions, expansion_min: int, recalls: Items[float]
    ) -> dict[int, dict[float, int]]:
        """The smallest expansion that reaches each recall, by number of answers; a recall not reached is absent.

        As in a search, the side list is scanned and companions come along with what the graph proposes. A recall
        counts as reached when the mean lies above it by its standard error.
        """
        reached: dict[int, dict[float, int]] = {count: {} for count in COUNTS}
        for (count, expansion), found in self._found.items():
            wanted = [recall for recall in recalls if recall not in reached[count]]
            if expansion < expansion_min or not wanted:
                continue
            whole = [np.union1d(rows, [*side, *companions.beside(rows)]).astype(np.int64) for rows in found]
            recall = self._recall(whole, count)
            reached[count] |= {one: expansion for one in wanted if recall >= one}
        return reached

    def _recall(self, found: Items[Rows], count: int) -> float:
        """The mean share of the right answers, less its standard error."""
        right = [asked.count_right(self._subject, rows, count) for asked, rows in zip(self._asked, found, strict=False)]
        shares = np.minimum(right, count) / count
        return float(shares.mean() - shares.std() / math.sqrt(len(shares)))

    @classmethod
    def of(cls, graph: HnswGraph, subject: Subject, held: Rows, *, recall_max: float, threads: int) -> Measured:
        """Ask a graph of all rows but `held` for the nearest of those, with growing expansions."""
        measured = cls(subject)
        counts = [count for count in COUNTS if count < len(subject.vectors) - len(held)]
        if not counts or not len(held):
            return measured
        questions = subject.vectors[held]
        asked = subject.space.asked(questions)
        nearest = _nearest(subject, asked, held, count=counts[-1] + _SPARE)
        for question, rows in zip(questions, nearest, strict=True):
            measured._asked.append(_Asked.of(subject, question, rows, counts))
        for count in counts:
            for expansion in _steps(count):
                found = measured._ask(graph, asked, count, expansion, threads)
                if measured._recall(found, count) >= recall_max:
                    break
        return measured

    def _ask(self, graph: HnswGraph, asked: Floats, count: int, expansion: int, threads: int) -> list[Rows]:
        number = min([HELD_MAX, *(most for step, most in _QUESTIONS.items() if expansion >= step)])
        lines = graph.walk(asked[:number], count=candidate_count(count), expansion=expansion, threads=threads)
        found = [self._subject.twins.behind(line[line >= 0], count=len(line)) for line in lines]
        self._found[count, expansion] = found
        return found


def held_out(subject: Subject) -> Rows:
    """Rows to measure with, ascending: none that has a twin, and where directions count, none without one."""
    eligible = np.ones(len(subject.vectors), dtype=np.bool_)
    eligible[subject.twins.rows] = False
    eligible[subject.twins.firsts] = False
    if subject.space.metric is not Metric.EUCLIDEAN:
        eligible &= subject.norms > 0
    rows = np.flatnonzero(eligible)
    held = min(HELD_MAX, len(rows) // HELD_SHARE)
    # In no order but this, so that the first of them are a sample as well.
    return np.random.default_rng(_SEED).choice(rows, held, replace=False)


def _steps(count: int) -> list[int]:
    """The expansions worth trying: a graph never looks at less than it is asked to list."""
    least = candidate_count(count)
    return [step for step, following in zip(LADDER, (*LADDER[1:], math.inf), strict=True) if following > least]


def _nearest(subject: Subject, asked: Floats, held: Rows, *, count: int) -> Rows:
    """The rows nearest to each question in the space of the graph, `held` left out: int64[questions, count or less]."""
    space = subject.space
    best = np.zeros((len(asked), 0), dtype=np.int64)
    distances = np.zeros((len(asked), 0), dtype=np.float32)
    others = np.ones(len(subject.vectors), dtype=np.bool_)
    others[held] = False
    step = max(1, _SCORES // len(asked))
    for block, stored in space.blocks(subject.vectors):
        rows = np.flatnonzero(others[block])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            best, distances = _merged(best, distances, part + block.start, space.distances(asked, stored[part]), count)
    return best


def _merged(best: Rows, distances: Floats, rows: Rows, more: Floats, count: int) -> tuple[Rows, Floats]:
    """The best of two sets of rows, line by line."""
    # The many are cut down first: what is copied beside the few so far is few as well.
    near, nearer = _cut(np.broadcast_to(rows, more.shape), more, count)
    return _cut(np.concatenate([best, near], axis=1), np.concatenate([distances, nearer], axis=1), count)


def _cut(rows: Rows, distances: Floats, count: int) -> tuple[Rows, Floats]:
    """The `count` nearest of each line."""
    if distances.shape[1] <= count:
        return rows, distances
    kept = np.argpartition(distances, count - 1, axis=1)[:, :count]
    return np.take_along_axis(rows, kept, axis=1), np.take_along_axis(distances, kept, axis=1)
