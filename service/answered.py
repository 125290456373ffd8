"""What is noted of every request that was answered: a count in the metrics and a line in the log.

Not while somebody waits for the answer: notes are kept for NOTED_AFTER_S and then written in one go, which costs half
as much. A process that is killed takes the lines of its last moment with it; nothing else depends on them.
"""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import NamedTuple

from prometheus_client import Histogram

from storage.logs import QuickLog
from storage.telemetry import SECONDS_BUCKETS

NOTED_AFTER_S = 0.02
REQUEST_SECONDS = Histogram(
    "headrace_http_request_duration_seconds",
    "From the head of a request to the end of its answer.",
    ("dialect", "route", "status"),
    buckets=SECONDS_BUCKETS,
)


log = QuickLog()


class Answered(NamedTuple):
    """One request, when it was answered and how long that took."""

    dialect: str
    route: str
    status: int
    took_s: float
    at_s: float
    request_id: str
    method: str
    path: str
    body_bytes: int


class _Notes:
    """What waits, and the loop that will write it: a loop that has ended will not."""

    def __init__(self) -> None:
        self.waiting: list[Answered] = []
        self.loop: asyncio.AbstractEventLoop | None = None


_notes = _Notes()


def note(
    dialect: str, route: str, status: int, *, took_s: float, request_id: str, method: str, path: str, body_bytes: int
) -> None:
    """Note a request soon. From the event loop."""
    loop = asyncio.get_running_loop()
    if _notes.loop is not loop:
        _notes.loop = loop
        loop.call_later(NOTED_AFTER_S, write_notes)
    _notes.waiting.append(Answered(dialect, route, status, took_s, time.time(), request_id, method, path, body_bytes))


def write_notes() -> None:
    """Write what waits, now: before the metrics are read, and at the end."""
    _notes.loop = None
    waiting, _notes.waiting = _notes.waiting, []
    for one in waiting:
        _request_seconds(one.dialect, one.route, one.status).observe(one.took_s)
        log.info(
            "request.answered",
            at_s=one.at_s,
            request_id=one.request_id,
            method=one.method,
            path=one.path,
            route=one.route,
            status=one.status,
            took_ms=round(one.took_s * 1000, 3),
            body_bytes=one.body_bytes,
        )


@cache
def _request_seconds(dialect: str, route: str, status: int) -> Histogram:
    """The histogram of these labels; finding it costs more than counting, and there are few."""
    return REQUEST_SECONDS.labels(dialect, route, str(status))
