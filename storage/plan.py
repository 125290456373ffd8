"""How one part is searched: decided from counts alone, so that it can be tested in a table and explained.

Work is measured in bytes of a sequential scan, because that is what an exact search is bound by. A graph walk
is bound by memory latency as well, so every unit of its expansion is worth a number of such bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from storage.indexes.flat import GATHER_COST
from storage.indexes.hnsw import candidate_count

FLOAT_BYTES = 4
SCAN_BYTES_FREE = 8 * 1024 * 1024
"""An exact search of no more than this is as fast as any graph walk, and exact."""
EXPANSION_BYTES = 32 * 1024
EXPANSION_DIMENSIONS = 256
"""What a scan reads in the time that one unit of expansion takes, and as much again for so many dimensions: such a
unit took 2.2 us at 100 dimensions and 4 us at 768, beside scans at 20 GB/s and at 30 GB/s."""
LIST_MAX = 16_384
"""The longest list that a graph is asked for; what needs more is scanned."""
WIDENINGS_MAX = 2
"""How often a list that came back too short is doubled before the part is scanned."""


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


def choose(*, rows: int, matching: int, count: int, dimensions: int, recall: float, expansion: int) -> Plan:
    """Plan to find `count` of the `matching` rows among `rows`.

    `expansion` is what the graph needs for `recall` when every row matches; 0 when it cannot promise that or
    there is no graph. A recall of 1 is exact. Where few rows match, the list grows until as many of it are
    expected to match as if all did.
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
    return _unless_a_scan_is_cheaper(plan, rows=rows, matching=matching, dimensions=dimensions)


def widen(plan: Plan, *, rows: int, matching: int, dimensions: int) -> Plan:
    """The next attempt after a graph gave too few matching rows: twice the list, at last the scan."""
    assert plan.kind is PlanKind.GRAPH
    if plan.widenings == WIDENINGS_MAX:
        return EXACT
    wider = replace(plan, count=2 * plan.count, expansion=2 * plan.expansion, widenings=plan.widenings + 1)
    return _unless_a_scan_is_cheaper(wider, rows=rows, matching=matching, dimensions=dimensions)


def work_bytes(plan: Plan, *, rows: int, matching: int, dimensions: int) -> int:
    """What the plan costs, in bytes of a sequential scan."""
    match plan.kind:
        case PlanKind.NONE:
            return 0
        case PlanKind.EXACT:
            return min(rows, GATHER_COST * matching) * dimensions * FLOAT_BYTES
        case PlanKind.GRAPH:
            return plan.expansion * EXPANSION_BYTES * (EXPANSION_DIMENSIONS + dimensions) // EXPANSION_DIMENSIONS


def _scaled(number: int, *, rows: int, matching: int) -> int:
    return -(-number * rows // matching)


def _unless_a_scan_is_cheaper(plan: Plan, *, rows: int, matching: int, dimensions: int) -> Plan:
    scan = work_bytes(EXACT, rows=rows, matching=matching, dimensions=dimensions)
    walk = work_bytes(plan, rows=rows, matching=matching, dimensions=dimensions)
    return EXACT if plan.count > LIST_MAX or scan <= max(SCAN_BYTES_FREE, walk) else plan
