"""How one part is searched: decided from counts alone, so that it can be tested in a table and explained.

Work is measured in bytes of a sequential scan, because that is what an exact search is bound by. A graph walk
is bound by memory latency as well, so every unit of its expansion is worth a number of such bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from storage.indexes.flat import GATHER_COST
from storage.indexes.hnsw import candidate_count

SCAN_BYTES_FREE = 8 * 1024 * 1024
"""An exact search of no more than this is as fast as any graph walk, and exact."""
EXPANSION_BYTES = 32 * 1024
EXPANSION_DIMENSIONS = 256
"""What a scan reads in the time that one unit of expansion takes, and as much again for so many dimensions: such a
unit took 2.2 us at 100 dimensions and 4 us at 768, beside scans at 20 GB/s and at 30 GB/s."""
CODED_ROW_BYTES = 384
"""What a scan of codes does for each row besides reading its code, in bytes scanned."""


class Reading(NamedTuple):
    """What a scan reads: how many bytes for each number, and how many more its other work for a row is worth.

    Of `gather_cost` rows a scan passes all in the time in which one that lies scattered is fetched.
    """

    number_bytes: int
    row_bytes: int
    gather_cost: int


FLOATS = Reading(4, 0, GATHER_COST)
CODES = Reading(1, CODED_ROW_BYTES, GATHER_COST)
FETCHED = Reading(1, CODED_ROW_BYTES, 1)
"""Codes that were fetched before and lie side by side."""
LIST_MAX = 16_384
"""The longest list that a graph is asked for; what needs more is scanned."""
WIDENINGS_MAX = 2
"""How often a list that came back too short is made longer before the part is scanned."""
WIDER_MAX = 4
"""How many times as long it becomes at most: the fewer of it match, the less they say of how far to look."""


class PlanKind(StrEnum):
    """The ways to search a part. The spellings are shown by `explain`."""

    NONE = "none"
    EXACT = "exact"
    GRAPH = "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt at a part: for GRAPH, how long a list to ask for and with which expansion."""

    kind: PlanKind
    count: int = 0
    expansion: int = 0
    widenings: int = 0


NONE = Plan(kind=PlanKind.NONE)
EXACT = Plan(kind=PlanKind.EXACT)


def choose(
    *, rows: int, matching: int, count: int, dimensions: int, recall: float, expansion: int, reading: Reading = FLOATS
) -> Plan:
    """Plan to find `count` of the `matching` rows among `rows`.

    `expansion` is what the graph needs for `recall` when every row matches; 0 when it cannot promise that or
    there is no graph. A recall of 1 is exact. Where few rows match, the list grows until as many of it are
    expected to match as if all did. A scan reads what `reading` says.
    """
    assert 0 <= matching <= rows
    assert count >= 1
    if matching == 0:
        return NONE
    if recall >= 1 or expansion == 0:
        return EXACT
    listed = _scaled(candidate_count(count), rows=rows, matching=matching)
    walk = max(_scaled(expansion, rows=rows, matching=matching), listed)
    plan = Plan(kind=PlanKind.GRAPH, count=listed, expansion=walk)
    return _unless_a_scan_is_cheaper(plan, rows=rows, matching=matching, dimensions=dimensions, reading=reading)


def enough(count: int, *, rows: int, matching: int) -> int:
    """How many rows of a list must match, when `count` are wanted, for the walk to have looked far enough.

    Where every row matches, or as often near the query as elsewhere, a list has about `candidate_count` of them. A
    filter that shuns the surroundings of the query leaves fewer, and then the walk ended before it reached the best:
    among those that it did find, it may well have been enough for an answer, but not for the recall asked for.
    """
    if matching == rows:
        return min(count, matching)
    # A list that matches by chance seldom has so few: it is two standard deviations where a tenth of all matches.
    return min(matching, max(count, candidate_count(count) * 5 // 6))


def widen(
    plan: Plan, *, rows: int, matching: int, dimensions: int, found: int = 0, count: int = 0, reading: Reading = FLOATS
) -> Plan:
    """The next attempt after only `found` rows of a list matched: a longer list, at last the scan.

    It is as much longer as it takes for half as many again to match as in a list of rows that match by chance, when
    `count` are wanted: what a filter shuns is lost unevenly. At least twice, at most `WIDER_MAX` times.
    """
    assert plan.kind is PlanKind.GRAPH
    if plan.widenings == WIDENINGS_MAX:
        return EXACT
    times = min(WIDER_MAX, max(2, -(-3 * candidate_count(count) // (2 * found)))) if found else WIDER_MAX
    wider = replace(plan, count=times * plan.count, expansion=times * plan.expansion, widenings=plan.widenings + 1)
    return _unless_a_scan_is_cheaper(wider, rows=rows, matching=matching, dimensions=dimensions, reading=reading)


def work_bytes(plan: Plan, *, rows: int, matching: int, dimensions: int, reading: Reading = FLOATS) -> int:
    """What the plan costs, in bytes of a sequential scan."""
    match plan.kind:
        case PlanKind.NONE:
            return 0
        case PlanKind.EXACT:
            passed = min(rows, reading.gather_cost * matching)
            return passed * dimensions * reading.number_bytes + matching * reading.row_bytes
        case PlanKind.GRAPH:
            return plan.expansion * EXPANSION_BYTES * (EXPANSION_DIMENSIONS + dimensions) // EXPANSION_DIMENSIONS


def _scaled(number: int, *, rows: int, matching: int) -> int:
    return -(-number * rows // matching)


def _unless_a_scan_is_cheaper(plan: Plan, *, rows: int, matching: int, dimensions: int, reading: Reading) -> Plan:
    scan = work_bytes(EXACT, rows=rows, matching=matching, dimensions=dimensions, reading=reading)
    walk = work_bytes(plan, rows=rows, matching=matching, dimensions=dimensions)
    return EXACT if plan.count > LIST_MAX or scan <= max(SCAN_BYTES_FREE, walk) else plan
