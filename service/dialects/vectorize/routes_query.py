"""Queries: the nearest vectors to a vector, or to a stored one."""

from __future__ import annotations

import itertools
import time

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from service.dialects.vectorize.answers import explanation_answer, match_answer
from service.dialects.vectorize.envelope import success
from service.dialects.vectorize.names import check_id
from service.dialects.vectorize.parameters import index_of
from service.dialects.vectorize.questions import Question, Shape, query_vector, read_question
from service.dialects.vectorize.reading import json_body
from service.keys import SETTINGS, STORE
from service.metrics import QUERY_SECONDS
from storage.deadlines import deadline_in, in_thread
from storage.limits import Limits
from storage.records import IndexSpec
from storage.search import Found, Query, is_long, prepare, preparing_bytes, run
from storage.snapshot import Snapshot

SAMPLED = 16
"""Of so many queries the stages of one are counted: five counts cost a fortieth of a query."""
_STAGES = {stage: QUERY_SECONDS.labels(stage) for stage in ("parse", "snapshot", "plan", "search", "answer")}


_query_numbers = itertools.count()


class Stages:
    """How long each stage of a query took. One belongs to one query, and one of SAMPLED is counted in the metrics."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._is_counted = next(_query_numbers) % SAMPLED == 0
        self._since = time.perf_counter()

    def ended(self, stage: str) -> None:
        """Name what was done since the last call."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._since
        if self._is_counted:
            _STAGES[stage].observe(now - self._since)
        self._since = now


async def query(request: web.Request) -> web.Response:
    """The best matches, best first, with exact scores."""
    spec = index_of(request)
    settings = request.app[SETTINGS]
    body = await json_body(request)
    until_s = deadline_in(settings.query_timeout_ms)
    stages = Stages()
    question = read_question(request, body, settings.limits, recall=settings.recall)
    shape = question.shape
    vector = await _vector(request, spec, question, until_s)
    stages.ended("parse")
    snapshot = await request.app[STORE].snapshot(spec, until_s=until_s)
    stages.ended("snapshot")
    if vector is None:
        return success(_answer(snapshot, shape, Found((), ()), stages, settings.limits))
    found = await search_off_loop_if_long(
        snapshot,
        Query(
            vector=vector,
            count=shape.top_k,
            offset=shape.offset,
            namespace=shape.namespace,
            filter=shape.filter,
            rules=shape.rules,
            recall=shape.recall,
        ),
        stages,
        until_s,
    )
    return success(_answer(snapshot, shape, found, stages, settings.limits))


async def search_off_loop_if_long(snapshot: Snapshot, asked: Query, stages: Stages, until_s: float) -> Found:
    """Search where it costs least: a warm query on the loop, and what would hold up others in a thread.

    Raises DeadlinePassed, in a thread: on the loop nothing else could notice.
    """
    if is_long(preparing_bytes(snapshot, asked)):
        # Properties without a column are read from the metadata of every row.
        prepared = await in_thread(until_s, prepare, snapshot, asked)
    else:
        prepared = prepare(snapshot, asked)
    stages.ended("plan")
    # A large exact scan takes milliseconds; a thread lets the loop answer others meanwhile.
    found = await in_thread(until_s, run, prepared) if is_long(prepared.work_bytes) else run(prepared)
    stages.ended("search")
    return found


async def _vector(
    request: web.Request, spec: IndexSpec, question: Question, until_s: float
) -> NDArray[np.float32] | None:
    """The numbers to compare with; None when the query names a vector that is not there."""
    if question.vector is not None:
        return query_vector(question.vector, spec.config.dimensions)
    vector_id = question.shape.body.vector_id
    assert vector_id is not None
    check_id(vector_id, request.app[SETTINGS].limits)
    [record] = await request.app[STORE].records(spec, (vector_id,), until_s=until_s)
    return None if record is None else np.frombuffer(record.values, dtype="<f4").astype(np.float32)


def _answer(snapshot: Snapshot, shape: Shape, found: Found, stages: Stages, limits: Limits) -> dict[str, object]:
    values, metadata, indexes = shape.body.return_values, shape.body.return_metadata, snapshot.metadata_indexes
    bytes_max = limits.metadata_index_bytes_max
    matches = [match_answer(hit, values, metadata, indexes, bytes_max) for hit in found.hits]
    stages.ended("answer")
    answer: dict[str, object] = {"count": len(matches), "matches": matches}
    if shape.timing:
        answer["timing"] = {f"{stage}Ms": round(took * 1000, 3) for stage, took in stages.seconds.items()}
    if shape.explain:
        answer["explain"] = {
            "recall": shape.recall,
            "matching": sum(part.matching for part in found.explanations),
            "segments": [explanation_answer(part) for part in found.explanations],
        }
    return answer
