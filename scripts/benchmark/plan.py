"""What is to be measured, and for how long: the options of one run, and one data set under them."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.data import FILTERED_QUERIES, QUERIES, DataSet, Floats
from scripts.benchmark.load import Run
from scripts.benchmark.results import Measurement
from scripts.words import CACHE

CLIENTS = (1, 8)
LEVELS = (0.95, 0.98)
"""The recalls at which queries are measured."""
COMPARED = {"glove": 0.95, "syn768": 0.98}
"""The one of them at which subjects are compared on each set."""
PROCESSES = 2
"""Service processes, of Headrace and of the bare read path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of one run, and the lengths that follow from them."""

    sets: tuple[str, ...]
    rows: int
    peers: tuple[str, ...]
    rounds: int
    short: bool
    out: Path
    sizes: tuple[int, ...] = ()
    """Between which growth is measured; none for the usual ones."""

    @property
    def growth_rows(self) -> tuple[int, ...]:
        """The sizes between which growth is measured."""
        return self.sizes or ((1_000,) if self.short else (10_000, 100_000, 1_000_000))

    @property
    def work(self) -> Path:
        """Where data folders of the subjects lie while they are measured."""
        return CACHE / "bench" / ("work-short" if self.short else "work")

    @property
    def load_rounds(self) -> int:
        """Of loading all rows, which takes longest and varies least."""
        return min(2, self.rounds)

    @property
    def batch(self) -> int:
        """Vectors in the body of an upsert."""
        return 250 if self.short else 1_000

    @property
    def load_connections(self) -> tuple[int, ...]:
        """That load at once. The last must be one: what it leaves is in order, and is kept."""
        return (1,) if self.short else (2, 1)

    @property
    def process_counts(self) -> tuple[int, ...]:
        """The numbers of service processes with which memory is measured."""
        return (1, 2) if self.short else (1, 2, 4)

    @property
    def query_s(self) -> float:
        """One run of queries at a steady number of clients."""
        return 0.2 if self.short else 0.5

    @property
    def paced_s(self) -> float:
        """One round of queries at a steady pace."""
        return 0.5 if self.short else 6.0

    @property
    def queries(self) -> int:
        """How many different ones are asked."""
        return 200 if self.short else QUERIES

    @property
    def filtered_queries(self) -> int:
        """How many different ones are asked of each filter."""
        return 40 if self.short else FILTERED_QUERIES

    @property
    def filtered_count(self) -> int:
        """Queries of one round of one filter."""
        return 40 if self.short else 400

    @property
    def visible_s(self) -> float:
        """One round of single writes."""
        return 0.5 if self.short else 4.0

    @property
    def bulk_s(self) -> float:
        """How long a round of bulk load lasts while it is read."""
        return 0.5 if self.short else 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One data set under one plan, and the making of measurements about it."""

    plan: Plan
    data: DataSet

    @property
    def folder(self) -> Path:
        """Where the data folders of this case lie."""
        return self.plan.work / f"{self.data.name}-{self.data.rows}"

    @property
    def tail_rows_max(self) -> int:
        """An index with no more than these rows, 1 MiB of float32, outside of segments is fully indexed."""
        return self.data.rows // 2 if self.plan.short else (1 << 20) // (4 * self.data.dimensions)

    @property
    def levels(self) -> tuple[float, ...]:
        """The recalls at which queries are measured."""
        return (COMPARED[self.data.name],) if self.plan.short else LEVELS

    @property
    def queries(self) -> Floats:
        """Those that are asked."""
        return self.data.queries[: self.plan.queries]

    @property
    def settings(self) -> Mapping[str, str]:
        """Of Headrace: the defaults; in the short form such that even few rows are sealed, linked and merged."""
        if not self.plan.short:
            return {}
        seal_bytes = self.data.rows * self.data.dimensions * 4 // 3
        settings = {"graph_rows_min": 500, "seal_bytes": seal_bytes, "seal_idle_ms": 500, "merge_idle_ms": 1_000}
        return {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items()}

    def empty(self, name: str) -> Path:
        """A folder of that name that does not exist yet, in one that does."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def one(self, what: str, value: float, unit: str, *, subject: str = "headrace", **more: object) -> Measurement:
        """One figure about this case."""
        return Measurement(
            subject=subject,
            set=self.data.name,
            rows=self.data.rows,
            what=what,
            value=round(value, 4),
            unit=unit,
            **more,  # type: ignore[arg-type]
        )

    def rounds(self, what: str, values: Sequence[float], unit: str, **more: object) -> Measurement:
        """The median of rounds, with the least and the greatest."""
        ends = {"low": round(min(values), 4), "high": round(max(values), 4)} if len(values) > 1 else {}
        return self.one(what, statistics.median(values), unit, **ends, **more)  # type: ignore[arg-type]

    def runs(self, what: str, runs: Sequence[Run], *, settings: Mapping[str, object], **more: object) -> Measurement:
        """The rate and the latencies of runs of the load generator: the medians of the rounds."""
        return self.rounds(
            what,
            [run.rate for run in runs],
            "/s",
            p50_ms=round(statistics.median(run.percentile(50) for run in runs), 3),
            p99_ms=round(statistics.median(run.percentile(99) for run in runs), 3),
            settings={**settings, "generator us": round(statistics.median(run.cpu_us for run in runs), 1)},
            **more,
        )
