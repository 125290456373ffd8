"""The metrics of a service process, and the page that shows them.

Labels are bounded: a route is one of our own paths, a status a number of HTTP, and of the indexes only the
first INDEXES_MAX are shown. What an index holds is asked of the store when the page is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.answered import write_notes
from service.keys import STORE
from storage.interfaces import Disk, Measures
from storage.records import IndexSpec

INDEXES_MAX = 100

QUERY_SECONDS = Histogram(
    "headrace_query_seconds",
    "The stages of a query.",
    ("stage",),
    buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0),
)
CONNECTIONS_REFUSED = Counter(
    "headrace_connections_refused_total",
    "Connections that were turned away or cut.",
    ("reason",),
)


class IndexFigures(Collector):
    """What the store measured, as gauges."""

    def __init__(self, measured: Sequence[tuple[IndexSpec, Measures]], disk: Disk) -> None:
        self._measured = measured
        self._disk = disk

    def collect(self) -> Iterator[Metric]:
        """Every gauge once, with a sample for each index."""
        yield self._gauge("headrace_index_vectors", "Live vectors.", ((spec, m.vectors) for spec, m in self._measured))
        yield self._gauge(
            "headrace_segments", "Segments of the index.", ((spec, m.segments) for spec, m in self._measured)
        )
        yield self._gauge(
            "headrace_mutation_queue_depth",
            "Mutations that are logged and not applied.",
            ((spec, m.queue_depth) for spec, m in self._measured),
        )
        yield self._gauge(
            "headrace_mutation_lag_seconds",
            "The age of the oldest mutation that is not applied.",
            ((spec, m.lag_ms / 1000) for spec, m in self._measured),
        )
        yield self._gauge(
            "headrace_mutations_set_aside",
            "Mutations that failed for good, of those that are remembered.",
            ((spec, m.set_aside) for spec, m in self._measured),
        )
        yield self._gauge(
            "headrace_bounded_builds",
            "Kinds of builds that did not fit the memory and go on in smaller pieces.",
            ((spec, m.bounded_builds) for spec, m in self._measured),
        )
        yield self._bytes()
        disk = self._disk
        yield GaugeMetricFamily("headrace_disk_free_bytes", "Free bytes on the disk of the data.", disk.free_bytes)
        yield GaugeMetricFamily("headrace_disk_reserve_bytes", "Bytes kept for a full disk.", disk.kept_bytes)
        yield GaugeMetricFamily("headrace_disk_full", "1 while only what frees room is written.", int(disk.is_full))

    def _gauge(self, name: str, text: str, samples: Iterable[tuple[IndexSpec, float]]) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, text, labels=("index",))
        for spec, value in samples:
            gauge.add_metric((_label(spec),), value)
        return gauge

    def _bytes(self) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily("headrace_index_bytes", "Bytes on disk.", labels=("index", "kind"))
        for spec, measures in self._measured:
            for kind, count in sorted(measures.bytes.items()):
                gauge.add_metric((_label(spec), kind), count)
        return gauge


async def metrics(request: web.Request) -> web.Response:
    """The page: the figures of every process that shares the data, and of the indexes."""
    write_notes()
    registry = CollectorRegistry()
    registry.register(IndexFigures(await request.app[STORE].measure(INDEXES_MAX), request.app[STORE].disk()))
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        page = generate_latest(registry)
    else:
        page = generate_latest(REGISTRY) + generate_latest(registry)
    return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _label(spec: IndexSpec) -> str:
    return f"{spec.account}/{spec.name}"
