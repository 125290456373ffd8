"""Which answers count as right when a graph is measured."""

from __future__ import annotations

import numpy as np
import pytest

from storage.indexes import flat
from storage.indexes.hnsw import Space, Twins
from storage.records import Metric
from storage.segment.recall import Subject, _Asked, _nearest

COUNTS = (10, 100)


def subject_of(metric, vectors):
    lengths = flat.norms(vectors)
    space = Space.of(metric, vectors, lengths)
    labels = np.arange(len(vectors), dtype=np.uint64)
    return Subject(space=space, twins=Twins.among(space, vectors), labels=labels, vectors=vectors, norms=lengths)


def drawn(rows):
    return np.random.default_rng(7).normal(size=(rows, 8)).astype(np.float32)


def tied(rows):
    """Vectors of which many are equally far from any question."""
    return np.random.default_rng(7).integers(0, 2, size=(rows, 8)).astype(np.float32)


@pytest.mark.parametrize("metric", [*Metric])
@pytest.mark.parametrize(("make", "rows"), [(drawn, 9_000), (drawn, 120), (tied, 2_000)])
def test_the_answers_that_count_as_right_are_those_as_good_as_the_last_of_an_exact_scan(metric, make, rows):
    vectors = make(rows)
    subject = subject_of(metric, vectors)
    held = np.arange(5)
    found = np.random.default_rng(8).permutation(np.arange(5, rows))[: rows // 2]
    questions = subject.space.asked(vectors[held])

    for question, nearest in zip(vectors[held], _nearest(subject, questions, held, count=120), strict=True):
        asked = _Asked.of(subject, question, nearest, COUNTS)

        ranks = subject.ranks(question, np.arange(5, rows))
        for count in COUNTS:
            last = np.sort(ranks)[count - 1]
            assert asked.count_right(subject, found, count) == int((ranks[found - 5] <= last).sum())
