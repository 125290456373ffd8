"""What is built next: a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.records import MetadataIndex, MetadataType, Sequence
from storage.settings import MIB, Settings
from worker.policy import Backfill, Merge, Seal, SegmentFacts, TailFacts, due, halves, tail_is_over

SETTINGS = Settings()
LETTER = MetadataIndex(id=3, property="letter", type=MetadataType.STRING)


def tail(size=0, mutations=0):
    return TailFacts(through=Sequence(9), mutations=mutations, parts=[(Sequence(8), size)] if size else [])


def bulk(*sizes):
    """A tail of mutations 1, 2, ... with rows, and one more without."""
    parts = [(Sequence(number + 1), size) for number, size in enumerate(sizes)]
    return TailFacts(through=Sequence(len(sizes) + 1), mutations=len(sizes) + 1, parts=parts)


def segment(name, rows, dead=0, columns=(), *, is_damaged=False):
    return SegmentFacts(name=name, rows=rows, dead=dead, columns=frozenset(columns), is_damaged=is_damaged)


def segments(*rows):
    return [segment(f"s{number}", count) for number, count in enumerate(rows)]


CASES = {
    "an empty index needs nothing": (tail(), [], 10**9, None),
    "a small tail stays": (tail(MIB, 10), [], 0, None),
    "a large tail is sealed": (tail(8 * MIB, 1), [], 0, Seal(Sequence(9))),
    "a tail of many mutations is sealed": (tail(10, 2_000), [], 0, Seal(Sequence(9))),
    "an idle tail of over a MiB is sealed": (tail(MIB + 1, 5), [], 5_000, Seal(Sequence(9))),
    "an idle tail of a MiB stays": (tail(MIB, 5), [], 10**9, None),
    "nothing applied since the last seal is nothing to seal": (tail(0, 0), [], 10**9, None),
    "four segments stay": (tail(), segments(10, 10, 10, 10), 0, None),
    "five of one size are merged": (
        tail(),
        segments(10, 10, 10, 10, 10),
        0,
        Merge(("s0", "s1", "s2", "s3", "s4")),
    ),
    "the smallest tier is merged first": (
        tail(),
        segments(100_000, 90_000, 10, 11, 100_001),
        0,
        Merge(("s2", "s3")),
    ),
    "of five sizes the two smallest are merged": (
        tail(),
        segments(10, 10**2, 10**3, 10**4, 10**5),
        0,
        Merge(("s0", "s1")),
    ),
    "an idle index becomes one segment": (tail(), segments(10, 100_000), 30_000, Merge(("s0", "s1"))),
    "one idle segment stays": (tail(), segments(10), 10**9, None),
    "a fifth dead stays": (tail(), [segment("a", 100, 20)], 0, None),
    "more than a fifth dead is rewritten": (tail(), [segment("a", 100, 21)], 0, Merge(("a",))),
    "a damaged derived file is made again": (tail(), [segment("a", 100, is_damaged=True)], 0, Merge(("a",))),
}


@pytest.mark.parametrize(("tail", "segments", "idle_ms", "expected"), CASES.values(), ids=CASES.keys())
def test_this_is_built_next(tail, segments, idle_ms, expected):
    assert due(tail, segments, [], idle_ms=idle_ms, settings=SETTINGS) == expected


def test_a_column_that_is_missing_is_back_filled_before_anything_is_merged():
    five = [segment(str(number), 10, columns=[3] if number < 4 else []) for number in range(5)]

    assert due(tail(), five, [LETTER], idle_ms=10**9, settings=SETTINGS) == Backfill("4", LETTER)


def test_a_seal_comes_before_everything():
    due_now = due(tail(8 * MIB, 1), [segment("a", 10, 9)], [LETTER], idle_ms=0, settings=SETTINGS)

    assert due_now == Seal(Sequence(9))


@pytest.mark.parametrize(
    ("tail", "segments", "through"),
    [
        (bulk(*[MIB] * 40), [], 10),
        (bulk(*[MIB] * 40), segments(5), 14),
        (bulk(*[MIB] * 40), segments(5, 5, 5), 41),
        (bulk(*[MIB] * 40), segments(5, 5, 5, 5, 5), 41),
        (bulk(*[MIB] * 20), [], 10),
        (bulk(*[MIB] * 15), [], 16),
        (bulk(30 * MIB, 30 * MIB), [], 1),
        (bulk(60 * MIB), [], 1),
        (bulk(MIB, 60 * MIB), [], 2),
    ],
)
def test_a_bulk_load_is_sealed_in_equal_pieces_while_there_is_room_for_more_segments(tail, segments, through):
    assert due(tail, segments, [], idle_ms=0, settings=SETTINGS) == Seal(Sequence(through))


@pytest.mark.parametrize(
    ("tail", "through", "segments", "middle"),
    [
        pytest.param(bulk(*[MIB] * 40), 40, 0, 20, id="a large one"),
        pytest.param(bulk(*[MIB] * 40), 32, 0, 16, id="a piece of a larger one"),
        pytest.param(bulk(*[MIB] * 31), 31, 0, 0, id="not one of less than 32 MiB"),
        pytest.param(bulk(40 * MIB, 8 * MIB), 2, 0, 0, id="not one that cannot be divided"),
        pytest.param(bulk(*[MIB] * 40), 40, 10, 20, id="while there may be more segments"),
        pytest.param(bulk(*[MIB] * 40), 40, 11, 0, id="not when there are many"),
    ],
)
def test_a_large_seal_is_done_in_halves_side_by_side(tail, through, segments, middle):
    whole = Seal(Sequence(through))

    done = halves(whole, tail, segments, SETTINGS)

    assert done == ((Seal(Sequence(middle)), Seal(Sequence(through), after=Sequence(middle))) if middle else (whole,))


def test_nothing_is_done_in_halves_where_builds_have_one_thread_and_only_seals_are():
    merge = Merge(("a", "b"))
    large = bulk(*[MIB] * 40)

    assert halves(Seal(Sequence(40)), large, 0, replace(SETTINGS, builder_threads=1)) == (Seal(Sequence(40)),)
    assert halves(merge, large, 0, SETTINGS) == (merge,)


def test_applying_waits_once_the_tail_reaches_its_bound():
    assert not tail_is_over(SETTINGS.tail_bytes_max - 1, SETTINGS)
    assert tail_is_over(SETTINGS.tail_bytes_max, SETTINGS)
