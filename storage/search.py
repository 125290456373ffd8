"""Answering a query: mask, plan and search every part, score what was found exactly, merge.

Liveness, namespace and filter are one mask per part, applied before anything is counted, so as many hits come
back as were asked for whenever so many rows match. Every score is the exact one of `storage.indexes.flat`;
hits are ordered by score, best first, and then by the bytes of the id. At recall 1 the answer equals brute
force. Below it, a graph may miss a near row, but never return a dead one, a wrong score or too few.

`search` is `run` after `prepare`. A service that must not block its event loop asks `preparing_bytes` and
then `Prepared.work_bytes` what each will cost, and takes what `is_long` to a thread.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage import plan as planning
from storage.deadlines import check
from storage.fetched import MEMORY
from storage.filters import Filter, FilterRules, path_of, paths
from storage.indexes import flat
from storage.indexes.flat import Question
from storage.masks import Selection, selections
from storage.plan import Plan, PlanKind, Reading
from storage.records import Metric
from storage.snapshot import LivePart, Part, Snapshot

LONG_BYTES = 96 * 1024 * 1024
"""Some three milliseconds of work, in bytes scanned: more than an event loop should stand still for. On a machine whose
cores are all busy, waking a thread and being woken by it takes longer than the scan of a tail, which is up to this."""
COLUMN_ROW_BYTES = 16
"""What reading one row of a column or namespace costs, in bytes scanned."""
METADATA_ROW_BYTES = 16 * 1024
"""What reading one property out of metadata costs: JSON is parsed, half a microsecond a row and more."""
FEW_ROWS = 64
"""Rows that are ordered faster one by one than with arrays."""
CODED_BYTES_MIN = 16 * 1024 * 1024
"""Of parts with this much of values and more, codes are scanned in place: 100,000 vectors of 768 dimensions took 3.8 ms
instead of 13, and of 100 dimensions two processes at once answered a fifth more queries. What is smaller stays in the
processor's cache, and its values are as fast or faster: 10,000 of 100 dimensions took 0.2 ms instead of 0.34."""
PREPARED_MAX = 64
"""Plans of queries without a filter that a snapshot remembers."""

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
_NO_ROWS = np.empty(0, dtype=np.int64)
_NO_SCORES = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for: hits `offset` to `offset + count`, best first.

    `namespace` "" looks in all of them. `recall` is the share of the true nearest that is wanted; 1 is exact.
    """

    vector: NDArray[np.float32]
    count: int
    offset: int = 0
    namespace: str = ""
    filter: Filter | None = None
    rules: FilterRules
    recall: float = 0.98

    def __post_init__(self) -> None:
        assert self.count >= 1
        assert self.offset >= 0
        assert self.vector.dtype == np.float32
        assert self.vector.ndim == 1

    @property
    def wanted(self) -> int:
        """How many of the best must be known to answer."""
        return self.count + self.offset


class Hit(NamedTuple):
    """One answer; `part` and `row` say where the rest of it lies."""

    id: str
    score: float
    part: Part
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartExplanation:
    """What was done in one part. `candidates` is how many rows were scored exactly."""

    name: str
    rows: int
    live: int
    matching: int
    plan: PlanKind
    expansion: int
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPart:
    """A part with its rows selected and its plan made."""

    live_part: LivePart
    selection: Selection
    reading: Reading
    plan: Plan

    @property
    def matching(self) -> int:
        """How many rows are asked about."""
        return self.selection.count


class Searched(NamedTuple):
    """A part, how it was searched in the end, and how many of its rows were scored exactly."""

    prepared: PreparedPart
    plan: Plan
    candidates: int


@dataclass(frozen=True, slots=True)
class Found:
    """The hits, best first, and how they were found."""

    hits: tuple[Hit, ...]
    searched: tuple[Searched, ...]

    @property
    def explanations(self) -> tuple[PartExplanation, ...]:
        """What was done in each part; made only for those who ask."""
        return tuple(
            PartExplanation(
                name=prepared.live_part.part.name,
                rows=prepared.live_part.part.rows,
                live=prepared.live_part.live_count,
                matching=prepared.matching,
                plan=plan.kind,
                expansion=plan.expansion,
                candidates=candidates,
            )
            for prepared, plan, candidates in self.searched
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A query of which only the search is left to do."""

    question: Question
    query: Query
    parts: tuple[PreparedPart, ...]

    @property
    def work_bytes(self) -> int:
        """What `run` is expected to cost, in bytes scanned."""
        dimensions = len(self.query.vector)
        return sum(
            planning.work_bytes(
                part.plan,
                rows=part.live_part.part.rows,
                matching=part.matching,
                dimensions=dimensions,
                reading=part.reading,
            )
            for part in self.parts
        )


def search(snapshot: Snapshot, query: Query) -> Found:
    """The best matches in the snapshot: min(count, matching rows - offset) of them."""
    return run(prepare(snapshot, query))


def is_long(work_bytes: int) -> bool:
    """Whether that much work belongs in a thread rather than on an event loop."""
    return work_bytes > LONG_BYTES


def preparing_bytes(snapshot: Snapshot, query: Query) -> int:
    """What `prepare` is expected to cost, in bytes scanned. Properties without a column are dear."""
    if selections(snapshot).knows(query.namespace, query.filter, query.rules):
        return 0
    row_bytes = COLUMN_ROW_BYTES if query.namespace else 0
    if query.filter is not None:
        indexed = {path_of(index.property) for index in snapshot.metadata_indexes}
        for path in paths(query.filter):
            # Where metadata is not looked into, a property without an index matches nothing, for nothing.
            if path in indexed or query.rules.unindexed:
                row_bytes += COLUMN_ROW_BYTES if path in indexed else METADATA_ROW_BYTES
    return sum(live_part.part.rows for live_part in snapshot.parts) * row_bytes


def prepare(snapshot: Snapshot, query: Query) -> Prepared:
    """Select the rows of every part and plan how to search them."""
    assert len(query.vector) == snapshot.spec.config.dimensions
    question = Question(snapshot.spec.config.metric, query.vector)
    if query.filter is None and not query.namespace:
        # Most queries: what they select, and so their plan, is that of the query before.
        key = (query.wanted, query.recall)
        parts: tuple[PreparedPart, ...] | None = snapshot.prepared.get(key)
        if parts is None:
            parts = tuple(_prepare_part(live_part, _live(live_part), query) for live_part in snapshot.parts)
            if len(snapshot.prepared) >= PREPARED_MAX:
                snapshot.prepared.clear()
            snapshot.prepared[key] = parts
    else:
        selected = selections(snapshot).of(snapshot, query.namespace, query.filter, query.rules)
        parts = tuple([_prepare_part(*one, query) for one in zip(snapshot.parts, selected, strict=True)])
    return Prepared(question=question, query=query, parts=parts)


def run(prepared: Prepared) -> Found:
    """Search every part and merge what was found."""
    query, found, searched = prepared.query, [], []
    for part in prepared.parts:
        plan, rows, scores = _search_part(prepared.question, part, query)
        searched.append(Searched(part, plan, len(rows)))
        if len(rows):
            found.append((part.live_part.part, rows, scores))
    hits = _merge(prepared.question.metric, found, wanted=query.wanted)
    return Found(hits[query.offset :] if query.offset else hits, tuple(searched))


def _live(live_part: LivePart) -> Selection:
    return Selection(live_part.part.rows, live_part.live_count, live_part.live)


def _prepare_part(live_part: LivePart, selection: Selection, query: Query) -> PreparedPart:
    part, reading = live_part.part, _reading(live_part.part, selection)
    plan = planning.choose(
        rows=part.rows,
        matching=selection.count,
        count=query.wanted,
        dimensions=len(query.vector),
        recall=query.recall,
        expansion=part.graph.expansion(count=query.wanted, recall=query.recall) if part.graph else 0,
        reading=reading,
    )
    return PreparedPart(live_part=live_part, selection=selection, reading=reading, plan=plan)


def _reading(part: Part, selection: Selection) -> Reading:
    if not _reads_codes(part, selection):
        return planning.FLOATS
    return planning.CODES if selection.slot.fetched is None else planning.FETCHED


def _search_part(question: Question, prepared: PreparedPart, query: Query) -> tuple[Plan, Rows, Scores]:
    """Rows among which are the best of the part, their exact scores, and the plan that found them."""
    part, matching = prepared.live_part.part, prepared.matching
    plan, rows, scores = prepared.plan, _NO_ROWS, _NO_SCORES
    enough = planning.enough(query.wanted, rows=part.rows, matching=matching)
    while plan.kind is PlanKind.GRAPH:
        check()
        proposed = _proposed(prepared, query, plan)
        if len(proposed) >= enough:
            rows, scores = _with_side(question, prepared, query, proposed)
            break
        plan = planning.widen(
            plan,
            rows=part.rows,
            matching=matching,
            dimensions=len(query.vector),
            found=len(proposed),
            count=query.wanted,
            reading=prepared.reading,
        )
    if plan.kind is PlanKind.EXACT:
        rows = _candidates(question, part, prepared.selection, count=query.wanted)
        scores = question.scores(part.vectors, rows, part.norms)
    return plan, rows, scores


def _candidates(question: Question, part: Part, selection: Selection, *, count: int) -> Rows:
    """Rows among which are the best: few are gathered, many are scanned in place."""
    codes = part.codes if _reads_codes(part, selection) else None
    if codes is None:
        if _is_scattered(part, selection):
            return flat.candidates_among(question, part.vectors, part.norms, rows=selection.rows, count=count)
        return flat.candidates(question, part.vectors, part.norms, mask=selection.mask, count=count)
    if not _is_scattered(part, selection):
        return codes.candidates(question, part.norms, mask=selection.mask, count=count)
    fetched = MEMORY.of(selection.slot, codes, part.norms, lambda: selection.rows)
    if fetched is not None:
        return fetched.candidates(question, count=count)
    return codes.candidates_among(question, part.norms, rows=selection.rows, count=count)


def _is_scattered(part: Part, selection: Selection) -> bool:
    return selection.count * flat.GATHER_COST < part.rows


def _reads_codes(part: Part, selection: Selection) -> bool:
    """Whether codes are faster than values: where rows are scattered, and where there are many."""
    if part.codes is None:
        return False
    return _is_scattered(part, selection) or part.vectors.nbytes >= CODED_BYTES_MIN


def _proposed(prepared: PreparedPart, query: Query, plan: Plan) -> Rows:
    """The matching rows that the graph finds."""
    part = prepared.live_part.part
    assert part.graph is not None
    if prepared.matching == part.rows:
        return part.graph.search(query.vector, count=plan.count, expansion=plan.expansion, best=query.wanted)
    rows = part.graph.search(query.vector, count=plan.count, expansion=plan.expansion)
    return rows[prepared.selection.mask[rows]]


def _with_side(question: Question, prepared: PreparedPart, query: Query, rows: Rows) -> tuple[Rows, Scores]:
    """What the graph proposed, and the rows it is known not to find that are as good, with their scores."""
    part = prepared.live_part.part
    scores = question.scores(part.vectors, rows, part.norms)
    side = part.side
    if not len(side.rows):
        return rows, scores
    lost = side.rows
    if len(rows) >= query.wanted:
        key = scores if question.metric.lower_is_better else -scores
        last = int(np.argpartition(key, query.wanted - 1)[query.wanted - 1])
        lost = side.near(question, worst=float(scores[last]))
    lost = lost[prepared.selection.mask[lost]]
    if len(lost):
        lost = np.setdiff1d(lost, rows, assume_unique=True)
    if not len(lost):
        return rows, scores
    missed = question.scores(part.vectors, lost, part.norms)
    return np.concatenate([rows, lost]), np.concatenate([scores, missed])


def _merge(metric: Metric, found: Items[tuple[Part, Rows, Scores]], *, wanted: int) -> tuple[Hit, ...]:
    """The best of all parts: by score, equal scores by id."""
    if not found:
        return ()
    if len(found) == 1 and len(found[0][1]) <= FEW_ROWS:
        return _best_of_few(metric, *found[0], wanted=wanted)
    score = np.concatenate([scores for _, _, scores in found]) if len(found) > 1 else found[0][2]
    key = score if metric.lower_is_better else -score
    near = np.arange(len(key))
    if len(key) > wanted:
        # Only rows that can be answered are asked for their ids; those in a tie for the last place all are.
        near = np.flatnonzero(key <= np.partition(key, wanted - 1)[wanted - 1])
    hits: list[tuple[float, Hit]] = []
    start = 0
    for part, rows, _ in found:
        here = near[np.searchsorted(near, start) : np.searchsorted(near, start + len(rows))] if len(found) > 1 else near
        for row, place_key, value in zip(
            rows[here - start].tolist(), key[here].tolist(), score[here].tolist(), strict=True
        ):
            hits.append((place_key, Hit(part.id_of(row), value, part, row)))
        start += len(rows)
    # Python orders text by code point, which is the order of its UTF-8 bytes. Ids differ, so parts are never compared.
    hits.sort()
    return tuple(hit for _, hit in hits[:wanted])


def _best_of_few(metric: Metric, part: Part, rows: Rows, scores: Scores, *, wanted: int) -> tuple[Hit, ...]:
    """As `_merge`, of a list as a graph proposes it."""
    key = scores if metric.lower_is_better else -scores
    order = key.argsort()
    places = key.take(order)
    if len(order) > wanted:
        # Only rows that can be answered are asked for their ids; those in a tie for the last place all are.
        order = order[: places.searchsorted(places[wanted - 1], side="right")]
    near = rows.take(order).tolist()
    ordered = zip(places.tolist(), part.ids_of(near), scores.take(order).tolist(), near, strict=False)
    # Ids differ, so rows are never compared.
    return tuple([Hit(id, score, part, row) for _, id, score, row in sorted(ordered)[:wanted]])
