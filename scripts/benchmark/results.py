"""What a benchmark found: a flat list of measurements, so that tables and plots are made by picking from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure. `value` is the median of the rounds, `low` and `high` are the least and the greatest of them.

    Where a figure has a recall, it was measured on the same answers. `note` says what a reader must know to compare
    fairly: that a peer runs in process, that fewer queries were asked.
    """

    subject: str
    """Who was measured: "headrace", a peer's name, or "limit: ..."."""
    set: str
    """The data: "glove" or "syn768"."""
    rows: int
    what: str
    """What was measured: "query", "filtered", "load.acknowledged", "visible", "rss", ..."""
    value: float
    unit: str = ""
    """"/s", "ms", "MB", "s", "bytes/vector", ..."""
    low: float | None = None
    high: float | None = None
    recall: float | None = None
    clients: int | None = None
    filter: str = ""
    """For filtered queries: "random 10 %", "near 1 %", "far 0.1 %"."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was not measured is left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", {})}


def pick(measurements: Iterable[Measurement], **wanted: object) -> list[Measurement]:
    """Those whose fields have the values wanted."""
    return [one for one in measurements if all(getattr(one, name) == value for name, value in wanted.items())]


def from_dicts(found: Iterable[Mapping[str, Any]]) -> list[Measurement]:
    """Measurements as they were written by `as_dict`, here or in the environment of a peer."""
    return [Measurement(**one) for one in found]
