"""A segment knows its own recall: what a finished graph loses, and what a search of it must spend.

Builds lose vectors without a word (45 of 20,000 were seen), and no expansion suits every set of vectors. So
while a graph is built, the expansions that reach each recall are measured (`storage.segment.recall`), and after it
the graph is asked for every vector by its own values: what it does not find goes on a side list that every search
scans, and where that list grows too long the graph is built again in a stronger form, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.indexes import flat
from storage.indexes.hnsw import FORMS, Expansions, Form, GraphDraft, HnswGraph, view_graph
from storage.records import Metric
from storage.segment.recall import Measured, Subject, held_out

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

SELF_LADDER = (16, 64, 128, 256)
"""The expansions at which vectors are asked for by their own values, until few enough are lost."""
SELF_COUNT = 10
"""A vector is found when it is among this many answers to its own values."""
SIDE_SHARE_MAX = 0.01
SIDE_ROWS_MAX = 1_000
SIDE_TWINS = 100
"""How many rows alike go on the side list where one of them does. They have the same score for every query, so as
many as are commonly asked for stand for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is known of a graph: its form, the rows it loses, the expansion at which it loses no others, and
    the expansions that reach each recall."""

    form: Form
    side: Rows
    expansion_min: int
    expansions: dict[int, dict[float, int]]


def build_audited(
    path: Path, subject: Subject, *, recalls: Items[float], threads: int, forms: Items[Form] = FORMS
) -> Audit | None:
    """Write a graph to `path` that loses few vectors, and say what it is good for.

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
        lost = find_lost(_viewed(path, subject, form), subject, threads=threads)
        if lost is not None:
            side, expansion_min = lost
            expansions = measured.expansions(side=side, expansion_min=expansion_min, recalls=recalls)
            return Audit(form=form, side=side, expansion_min=expansion_min, expansions=expansions)
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
