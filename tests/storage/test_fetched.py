"""Rows that are selected again and again are fetched once, within a bound."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from storage import fetched
from storage.fetched import Memory, Slot
from storage.filters import Compare, Comparison
from storage.indexes import flat
from storage.indexes.codes import Codes
from storage.plan import PlanKind
from storage.records import Metric
from storage.search import is_long, prepare, search
from tests.storage.searching import Row, no_row, query_of, snapshot_of

VECTORS = np.random.default_rng(5).standard_normal((1_000, 16)).astype(np.float32)
LENGTHS = flat.norms(VECTORS)
CODES = Codes.of(VECTORS)
ROWS = np.arange(0, 1_000, 10)
BYTES = 100 * (16 + 8 + 8 + 8)


def ask(memory: Memory, slot: Slot, rows: np.ndarray = ROWS) -> fetched.Fetched | None:
    return memory.of(slot, CODES, LENGTHS, lambda: rows)


def test_what_is_asked_for_twice_is_fetched_and_found_as_if_it_were_not() -> None:
    memory, slot = Memory(1 << 20), Slot()
    question = flat.Question(Metric.COSINE, VECTORS[7])

    assert ask(memory, slot) is None
    kept = ask(memory, slot)

    assert kept is not None
    assert ask(memory, slot) is kept
    assert memory.bytes == kept.bytes == BYTES
    near = kept.candidates(question, count=10)
    assert near.tolist() == CODES.candidates_among(question, LENGTHS, rows=ROWS, count=10).tolist()


def test_what_was_not_asked_for_longest_gives_way() -> None:
    memory, slots = Memory(4 * BYTES), [Slot() for _ in range(6)]

    for slot in (*slots[:4], *slots[:4]):
        ask(memory, slot)
    ask(memory, slots[0])
    for slot in (slots[4], slots[4]):
        ask(memory, slot)

    assert [slot.fetched is not None for slot in slots] == [True, False, True, True, True, False]
    assert memory.bytes == 4 * BYTES


def test_what_went_with_its_snapshot_makes_room_first() -> None:
    memory, slots = Memory(4 * BYTES), [Slot() for _ in range(5)]
    for slot in (*slots[:4], *slots[:4]):
        ask(memory, slot)

    del slots[2], slot
    gc.collect()
    for slot in (slots[3], slots[3]):
        ask(memory, slot)

    assert [slot.fetched is not None for slot in slots] == [True] * 4
    assert memory.bytes == 4 * BYTES


def test_one_selection_does_not_take_the_room_of_all_others() -> None:
    memory, slot = Memory(4 * BYTES - 1), Slot()

    assert [ask(memory, slot) for _ in range(3)] == [None] * 3
    assert memory.bytes == 0


def test_a_search_under_a_filter_is_the_same_whether_its_rows_are_fetched_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a part with codes, one in ten of whose rows a filter selects
    monkeypatch.setattr("storage.search.MEMORY", memory := Memory(1 << 20))
    rows = [
        Row(str(number), vector.tolist(), metadata={"tenth": str(number % 10)}) for number, vector in enumerate(VECTORS)
    ]
    snapshot = snapshot_of(Metric.COSINE, [rows], dimensions=16, graph=no_row)
    tree = Compare(("tenth",), Comparison.EQ, "3")
    query = query_of(VECTORS[42].tolist(), 5, filter=tree, recall=0.9)

    # when
    found = [search(snapshot, query) for _ in range(3)]

    # then
    scores = flat.scores(Metric.COSINE, VECTORS[3::10], VECTORS[42])
    best = [str(10 * place + 3) for place in np.argsort(-scores)[:5].tolist()]
    assert [[hit.id for hit in one.hits] for one in found] == [best] * 3
    assert memory.bytes == BYTES
    assert [one.searched[0].plan.kind for one in found] == [PlanKind.EXACT] * 3
    assert not is_long(prepare(snapshot, query).work_bytes)


@pytest.mark.parametrize("bytes_min", [1, 1 << 30], ids=["codes", "values"])
def test_a_scan_in_place_of_codes_and_one_of_values_answer_alike(
    monkeypatch: pytest.MonkeyPatch, bytes_min: int
) -> None:
    monkeypatch.setattr("storage.search.CODED_BYTES_MIN", bytes_min)
    rows = [Row(str(number), vector.tolist()) for number, vector in enumerate(VECTORS)]
    snapshot = snapshot_of(Metric.COSINE, [rows], dimensions=16, graph=no_row)

    found = search(snapshot, query_of(VECTORS[42].tolist(), 7, recall=1.0))

    scores = flat.scores(Metric.COSINE, VECTORS, VECTORS[42])
    assert [hit.id for hit in found.hits] == [str(row) for row in np.argsort(-scores)[:7].tolist()]
    assert [hit.score for hit in found.hits] == np.sort(scores)[::-1][:7].tolist()
