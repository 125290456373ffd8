"""A segment knows its own recall: what a finished graph loses, and what a search of it must spend.

Builds lose vectors without a word (45 of 20,000 were seen), and no expansion suits every set of vectors. So
while a graph is built, the expansions that reach each recall are measured (`storage.segment.recall`), and after it
the graph is asked for every vector by its own values: what it does not find comes along with what it finds in its
place, and where that is too much the graph is built again in a stronger form, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.files import finish
from storage.indexes import flat
from storage.indexes.hnsw import FORMS, Companions, Expansions, Form, GraphDraft, HnswGraph, view_graph
from storage.pages import read_in_large_pages
from storage.records import Metric
from storage.segment.recall import Measured, Subject, held_out

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

SELF_LADDER = (1, 8, 16, 64, 128, 256)
"""The expansions at which vectors are asked for by their own values, until few enough are lost. A wider walk looks at
all that a narrower one looks at, so what was found once is found at every greater expansion; and the narrowest, a
third as dear as the next, finds two of three."""
EXPANSION_MIN = 16
"""No search uses less: the links to the neighbours of a lost vector are as frail as those to itself."""
SELF_COUNT = 8
"""A vector is found when it is among this many answers to its own values."""
ANCHORS_MAX = 4
"""The rows that bring a lost one along: the nearest to it that were found."""
LOST_SHARE_MAX = 0.03
SIDE_ROWS_MAX = 1_000
SIDE_TWINS = 100
"""How many rows alike come along where one of them does. They have the same score for every query, so as many as are
commonly asked for stand for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is known of a graph: its form, the rows it loses, the expansion at which it loses no others, and
    the expansions that reach each recall.

    A lost row is a companion of rows near it; where it is near nothing it is on the side list.
    """

    form: Form
    side: Rows
    companions: Companions
    expansion_min: int
    expansions: dict[int, dict[float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The rows that a graph does not find by their own values, and how it will find them: see `Audit`."""

    side: Rows
    companions: Companions
    expansion_min: int


def build_audited(
    path: Path, subject: Subject, *, recalls: Items[float], threads: int, forms: Items[Form] = FORMS
) -> Audit | None:
    """Write a graph to `path` that loses few vectors, put it on disk, and say what it is good for.

    None, and no file, when every form loses too many: an exact scan is right and cannot be. Raises StoreFull.
    """
    held = held_out(subject)
    kept = np.ones(len(subject.labels), dtype=np.bool_)
    kept[subject.twins.rows] = False
    for form in forms:
        draft = GraphDraft(subject.space, subject.labels, subject.vectors, form=form, threads=threads)
        first = kept.copy()
        first[held] = False
        draft.add(first)
        measured = Measured.of(draft.graph(subject.twins), subject, held, recall_max=max(recalls), threads=threads)
        draft.add(kept & ~first)
        draft.save(path)
        finish(path)
        read_in_large_pages(path, anew=True)
        lost = find_lost(_viewed(path, subject, form), subject, threads=threads)
        if lost is not None:
            return Audit(
                form=form,
                side=lost.side,
                companions=lost.companions,
                expansion_min=lost.expansion_min,
                expansions=measured.expansions(
                    side=lost.side,
                    companions=lost.companions,
                    expansion_min=lost.expansion_min,
                    recalls=recalls,
                ),
            )
        path.unlink()
    return None


def _viewed(path: Path, subject: Subject, form: Form) -> HnswGraph:
    return view_graph(
        path,
        subject.space,
        subject.labels,
        form=form,
        twins=subject.twins,
        side=np.zeros(0, np.int64),
        expansions=Expansions({}, floor=0),
    )


def find_lost(graph: HnswGraph, subject: Subject, *, threads: int) -> Lost | None:
    """The rows not found by their own values, and the expansion that found all others; None if too many are.

    A row counts as found when one of equal score is: duplicates are one unit. The zero vector of a cosine index
    is equally far from everything, so it is never looked for and always on the side list.
    """
    asked = np.ones(len(subject.vectors), dtype=np.bool_)
    asked[subject.twins.rows] = False
    zeros = np.zeros(0, np.int64)
    if subject.space.metric is Metric.COSINE:
        zeros = np.flatnonzero(asked & (subject.norms == 0.0))
        asked[zeros] = False
    lost = np.flatnonzero(asked)
    lines = np.zeros((0, SELF_COUNT), dtype=np.int64)
    for expansion in SELF_LADDER:
        lost, lines = _still_lost(graph, subject, lost, expansion=expansion, threads=threads)
        if expansion >= EXPANSION_MIN and len(lost) <= len(subject.vectors) * LOST_SHARE_MAX:
            # What the walk finds instead, where the row itself should be, is what brings it along.
            alone = lost[(lines < 0).all(axis=1)]
            side = _units(subject, np.union1d(alone, zeros))
            if len(side) > max(SIDE_ROWS_MAX, len(zeros) * SIDE_TWINS):
                return None
            return Lost(side=side, companions=_companions(subject, lost, lines), expansion_min=expansion)
    return None


def _units(subject: Subject, rows: Rows) -> Rows:
    """Rows with their twins, ascending."""
    units = [subject.twins.behind(row, count=SIDE_TWINS) for row in rows[:, np.newaxis]]
    return np.sort(np.concatenate([rows[:0], *units]))


def _companions(subject: Subject, lost: Rows, lines: Rows) -> Companions:
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for row, line in zip(lost, lines, strict=True):
        anchors = line[line >= 0][:ANCHORS_MAX]
        unit = subject.twins.behind(row[np.newaxis], count=SIDE_TWINS)
        pairs.append(np.stack([np.repeat(anchors, len(unit)), np.tile(unit, len(anchors))], axis=1))
    return Companions(np.concatenate(pairs))


def _still_lost(graph: HnswGraph, subject: Subject, rows: Rows, *, expansion: int, threads: int) -> tuple[Rows, Rows]:
    """Those of the rows that a walk does not find by their own values, and what it finds instead: a line each."""
    space = subject.space
    lost = [rows[:0]]
    count = min(SELF_COUNT, expansion)
    lines = [np.zeros((0, min(count, len(subject.labels))), dtype=np.int64)]
    step = max(1, (1 << 22) // space.dimensions)  # 16 MiB of float32 at a time.
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        asked = space.stored(subject.vectors[block])
        found = graph.walk(asked, count=count, expansion=expansion, threads=threads)
        missed = np.flatnonzero(~(found == block[:, np.newaxis]).any(axis=1))
        # Below the least expansion all that is missed is asked for again.
        if expansion >= EXPANSION_MIN:
            missed = missed[[not _equal_found(subject, block[place], found[place]) for place in missed]]
        lost.append(block[missed])
        lines.append(found[missed])
    return np.concatenate(lost), np.concatenate(lines)


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
