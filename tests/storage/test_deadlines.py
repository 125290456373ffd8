"""Deadlines: what asks for them, what has none, and that no scan goes on beyond one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from storage import deadlines
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.deadlines import ITEMS_BETWEEN_CHECKS, NEVER, checked, deadline_in, in_thread, is_past
from storage.errors import DeadlinePassed
from storage.indexes import flat
from storage.indexes.codes import Codes
from storage.indexes.flat import Question
from storage.records import MetadataType, Metric
from storage.segment.column_factors import FactorColumn
from storage.segment.column_values import TypedColumn

FOREVER_SQL = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
ROWS = np.arange(100)
VECTORS = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
LENGTHS = flat.norms(VECTORS)
CODES = Codes.of(VECTORS)
ALL = np.ones(100, dtype=np.bool_)
QUESTION = Question(Metric.COSINE, VECTORS[0])


@pytest.fixture
def late() -> Iterator[None]:
    """The deadline of this thread has passed."""
    deadlines._here.until_s = 0.0
    yield
    deadlines._here.until_s = NEVER


SCANS: dict[str, Callable[[], object]] = {
    "a scan": lambda: flat.candidates(QUESTION, VECTORS, LENGTHS, mask=ALL, count=3),
    "a scan of scattered rows": lambda: flat.candidates_among(QUESTION, VECTORS, LENGTHS, rows=ROWS, count=3),
    "a scan of codes": lambda: CODES.candidates(QUESTION, LENGTHS, mask=ALL, count=3),
    "a scan of scattered codes": lambda: CODES.candidates_among(QUESTION, LENGTHS, rows=ROWS, count=3),
    "exact scores of many": lambda: QUESTION.scores(VECTORS, np.tile(ROWS, 200)),
    "metadata": lambda: FactorColumn.of(("k",), [b'{"k":1}'] * 3),
    "values": lambda: TypedColumn.of(MetadataType.NUMBER, [1, 2]),
}


@pytest.mark.parametrize("scan", SCANS)
def test_what_reads_row_by_row_stops_at_the_deadline(late: None, scan: str):
    with pytest.raises(DeadlinePassed, match="query_timeout_ms"):
        SCANS[scan]()


@pytest.mark.parametrize("scan", SCANS)
def test_without_a_deadline_nothing_stops(scan: str):
    assert SCANS[scan]() is not None


def test_items_are_all_there():
    assert list(checked(range(3 * ITEMS_BETWEEN_CHECKS + 1))) == [*range(3 * ITEMS_BETWEEN_CHECKS + 1)]


def test_items_are_checked_every_few_thousand(late: None):
    deadlines._here.until_s = NEVER
    items = checked(range(3 * ITEMS_BETWEEN_CHECKS))
    assert next(items) == 0

    deadlines._here.until_s = 0.0
    assert [next(items) for _ in range(ITEMS_BETWEEN_CHECKS - 1)][-1] == ITEMS_BETWEEN_CHECKS - 1
    with pytest.raises(DeadlinePassed):
        next(items)


async def test_a_statement_that_would_never_end_is_ended_and_its_connection_goes_on(tmp_path: Path):
    connect(tmp_path / "a.db").execute("CREATE TABLE a (b)")
    reader = Reader(tmp_path / "a.db")

    with pytest.raises(DeadlinePassed):
        # Not by the timer of who waits: that has its own.
        await asyncio.to_thread(deadlines._work_until, time.monotonic() + 0.05, reader.rows, (FOREVER_SQL,))

    assert reader.rows("SELECT 1") == [(1,)]
    reader.close()


async def test_a_thread_that_did_late_work_has_no_deadline_for_what_it_does_next(monkeypatch: pytest.MonkeyPatch):
    with ThreadPoolExecutor(1) as one_thread:
        monkeypatch.setattr(deadlines, "_threads", one_thread)
        begun: list[int] = []
        with pytest.raises(DeadlinePassed):
            await in_thread(time.monotonic() - 1, begun.append, 1)
        await in_thread(time.monotonic() + 3600, begun.append, 2)

        assert begun == [2]
        assert not one_thread.submit(is_past).result()


def test_no_timeout_is_no_deadline():
    assert deadline_in(0) == NEVER
    assert time.monotonic() < deadline_in(3_600_000) < NEVER
    assert not is_past()
