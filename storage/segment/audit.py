"""A segment knows its own recall: what a finished graph loses, and what a search of it must spend.

Builds lose vectors without a word (45 of 20,000 were seen), and no expansion suits every set of vectors. So
after a build the graph is asked for every vector by its own values: what it does not find goes on a side list
that every search scans, and where that list grows too long the graph is built again in a stronger form, or not
at all. Then the expansions that reach each recall are measured against the exact scan, with questions that are
about as hard as those of users.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.indexes import flat
from storage.indexes.hnsw import (
    COUNTS,
    FORMS,
    Expansions,
    Form,
    HnswGraph,
    Space,
    Twins,
    build_graph,
    candidate_count,
    view_graph,
)
from storage.records import Metric

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The expansions that are tried, in order, for each recall."""
SELF_LADDER = (16, 64, 128, 256)
"""The expansions at which vectors are asked for by their own values, until few enough are lost."""
SELF_COUNT = 10
"""A vector is found when it is among this many answers to its own values."""
SIDE_SHARE_MAX = 0.01
SIDE_ROWS_MAX = 1_000
SIDE_TWINS = 100
"""How many rows alike go on the side list where one of them does. They have the same score for every query, so as
many as are commonly asked for stand for the rest."""
SAMPLE_ROWS = 256
"""The vectors whose neighbours are compared with the exact scan."""
_SAMPLE_SEED = 20_261_121


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is known of a graph: its form, the rows it loses, the expansion at which it loses no others, and
    the expansions that reach each recall."""

    form: Form
    side: Rows
    expansion_min: int
    expansions: dict[int, dict[float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The rows a graph is made of, and the space it walks."""

    space: Space
    twins: Twins
    labels: NDArray[np.uint64]
    vectors: Floats
    norms: NDArray[np.float64]


def build_audited(
    path: Path, subject: Subject, *, recalls: Items[float], threads: int, forms: Items[Form] = FORMS
) -> Audit | None:
    """Write a graph to `path` that loses few vectors, and say what it is good for.

    None, and no file, when every form loses too many: an exact scan is right and cannot be. Raises StoreFull.
    """
    for form in forms:
        build_graph(
            path,
            subject.space,
            subject.labels,
            subject.vectors,
            twins=subject.twins,
            form=form,
            threads=threads,
        )
        graph = view_graph(
            path,
            subject.space,
            subject.labels,
            form=form,
            twins=subject.twins,
            side=np.zeros(0, np.int64),
            expansions=Expansions({}, floor=0),
        )
        lost = find_lost(graph, subject, threads=threads)
        if lost is not None:
            side, expansion_min = lost
            measured = measure_expansions(
                graph, subject, side=side, expansion_min=expansion_min, recalls=recalls, threads=threads
            )
            return Audit(form=form, side=side, expansion_min=expansion_min, expansions=measured)
        path.unlink()
    return None


def find_lost(graph: HnswGraph, subject: Subject, *, threads: int) -> tuple[Rows, int] | None:
    """The rows not found by their own values, and the expansion that found all others; None if too many are.

    A row counts as found when one of equal score is: duplicates are one unit. The zero vector of a cosine index
    is equally far from everything, so it is never looked for and always taken as lost.
    """
    rows_max = min(SIDE_ROWS_MAX, int(len(subject.vectors) * SIDE_SHARE_MAX))
    asked = np.ones(len(subject.vectors), dtype=np.bool_)
    asked[subject.twins.rows] = False
    zeros = np.zeros(0, np.int64)
    if subject.space.metric is Metric.COSINE:
        zeros = np.flatnonzero(asked & (subject.norms == 0.0))
        asked[zeros] = False
    lost = np.flatnonzero(asked)
    for expansion in SELF_LADDER:
        lost = _still_lost(graph, subject, lost, expansion=expansion, threads=threads)
        if len(lost) <= rows_max:
            units = np.union1d(lost, zeros)[:, np.newaxis]
            side = [subject.twins.behind(unit, count=SIDE_TWINS) for unit in units]
            return np.sort(np.concatenate([zeros[:0], *side])), expansion
    return None


def measure_expansions(
    graph: HnswGraph,
    subject: Subject,
    *,
    side: Rows,
    expansion_min: int,
    recalls: Items[float],
    threads: int,
) -> dict[int, dict[float, int]]:
    """The smallest expansion that reaches each recall, by number of answers; a recall not reached is absent.

    As in a search, the side list is scanned with what the graph proposes, and the best by exact score are the
    answer.
    """
    counts = [count for count in COUNTS if count < len(subject.vectors)]
    measured: dict[int, dict[float, int]] = {count: {} for count in COUNTS}
    sample = _sample(subject)
    if not counts or not len(sample):
        return measured
    questions = _questions(graph, subject, sample, threads=threads)
    worst = _worst_scores(subject, questions, counts)
    asked = subject.space.asked(questions)
    for count in counts:
        for expansion in (step for step in LADDER if step >= expansion_min):
            proposed = graph.walk(asked, count=candidate_count(count), expansion=expansion, threads=threads)
            hits = [
                _hits(subject, question, line, side, last, count)
                for question, line, last in zip(questions, proposed, worst[count], strict=True)
            ]
            recall = sum(hits) / (count * len(sample))
            for wanted in recalls:
                if recall >= wanted:
                    measured[count].setdefault(wanted, expansion)
            if len(measured[count]) == len(recalls):
                break
    return measured


def _still_lost(graph: HnswGraph, subject: Subject, rows: Rows, *, expansion: int, threads: int) -> Rows:
    space = subject.space
    lost = []
    step = max(1, (1 << 22) // space.dimensions)  # 16 MiB of float32 at a time.
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        asked = space.stored(subject.vectors[block])
        found = graph.walk(asked, count=SELF_COUNT, expansion=expansion, threads=threads)
        missed = np.flatnonzero(~(found == block[:, np.newaxis]).any(axis=1))
        lost += [block[place] for place in missed if not _equal_found(subject, block[place], found[place])]
    return np.array(lost, dtype=np.int64)


def _equal_found(subject: Subject, row: np.int64, found: Rows) -> bool:
    """Whether some row that was found has the score that this row has for its own values."""
    near = subject.vectors[found[found >= 0]]
    own = subject.vectors[row : row + 1]
    metric = subject.space.metric
    if metric is Metric.DOT_PRODUCT:
        # The largest inner product with a vector is rarely its own; in the graph's space its distance is.
        metric, near, own = Metric.EUCLIDEAN, subject.space.stored(near), subject.space.stored(own)
    best = flat.scores(metric, own, own[0])
    return bool((flat.scores(metric, near, own[0]) == best).any())


def _sample(subject: Subject) -> Rows:
    rows = np.arange(len(subject.vectors))
    if subject.space.metric is not Metric.EUCLIDEAN:
        rows = rows[subject.norms > 0]  # To the zero vector all are equally near: it would only flatter.
    generator = np.random.default_rng(_SAMPLE_SEED)
    return np.sort(generator.choice(rows, min(SAMPLE_ROWS, len(rows)), replace=False))


def _questions(graph: HnswGraph, subject: Subject, sample: Rows, *, threads: int) -> Floats:
    """Queries like those that users ask: about as far from a vector of the segment as its nearest neighbour is.

    A vector itself is too easy a question, for its links lead to its neighbours: on 20,000 words the graph gave
    0.997 of them where it gave 0.985 to words it did not hold. Each is moved in the direction in which two other
    vectors differ, so that it stays among the kind of vectors the segment has.
    """
    metric, space = subject.space.metric, subject.space
    generator = np.random.default_rng(_SAMPLE_SEED)
    others = subject.vectors[generator.integers(0, len(subject.vectors), (2, len(sample)))].astype(np.float64)
    found = graph.walk(
        space.stored(subject.vectors[sample]), count=SELF_COUNT + 1, expansion=SELF_LADDER[-1], threads=threads
    )
    questions = subject.vectors[sample].astype(np.float64)
    for place, (own, line) in enumerate(zip(questions.copy(), found, strict=True)):
        near = subject.vectors[line[line >= 0]].astype(np.float64)
        if metric is not Metric.EUCLIDEAN:
            near = _lengthened(near, float(_length(own[np.newaxis])[0]))  # Only directions count.
        distances = _length(near - own)
        nearest = distances[distances > 1e-6 * _length(own[np.newaxis])].min(initial=np.inf)
        if np.isfinite(nearest):
            questions[place] += _lengthened((others[0, place] - others[1, place])[np.newaxis], nearest)[0]
    limit = float(np.finfo(np.float32).max)
    return np.clip(questions, -limit, limit).astype(np.float32)


def _length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.square(vectors).sum(axis=1))
    return lengths


def _lengthened(vectors: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    lengths = _length(vectors)[:, np.newaxis]
    return np.divide(vectors * length, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _worst_scores(subject: Subject, questions: Floats, counts: Items[int]) -> dict[int, list[float]]:
    """The rank (lower is better) of the last right answer to each question, by number of answers."""
    worst: dict[int, list[float]] = {count: [] for count in counts}
    everything = np.ones(len(subject.vectors), dtype=np.bool_)
    for question in questions:
        near = flat.candidates(
            flat.Question(subject.space.metric, question),
            subject.vectors,
            subject.norms,
            mask=everything,
            count=max(counts),
        )
        ranks = np.sort(_ranks(subject, question, near))
        for count in counts:
            worst[count].append(float(ranks[count - 1]))
    return worst


def _hits(subject: Subject, question: Floats, line: Rows, side: Rows, worst: float, count: int) -> int:
    """How many right answers are among what the graph proposes, with its twins, and the side list."""
    listed = subject.twins.behind(line[line >= 0], count=len(line))
    ranks = _ranks(subject, question, np.union1d(listed, side))
    return min(count, int((ranks <= worst).sum()))


def _ranks(subject: Subject, question: Floats, rows: Rows) -> Floats:
    scores = flat.scores(subject.space.metric, subject.vectors[rows], question)
    return scores if subject.space.metric.lower_is_better else -scores
