"""Asking a peer: one client or several, each a thread with its own session, for so long or through so many queries."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.benchmark.peers.contract import Floats, Peer, Session, Where

COUNT = 10


@dataclass(frozen=True, slots=True)
class Rated:
    """Answers a second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def rated(latencies: Sequence[float], seconds: float) -> Rated:
    """Out of the latencies in milliseconds and the seconds they took together."""
    p50, p99 = np.percentile(latencies, (50, 99))
    return Rated(rate=len(latencies) / seconds, p50=float(p50), p99=float(p99))


def together(peer: Peer, queries: Floats, effort: int, *, clients: int, seconds: float) -> Rated:
    """That many clients at once, each asking its next query when the last is answered."""
    ready = threading.Barrier(clients)
    found: list[tuple[list[float], float, float]] = []
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            session = peer.session(effort)
            # Every client starts elsewhere, so that they do not warm each other's caches.
            order = np.roll(np.arange(len(queries)), -number * len(queries) // clients)
            requests = [session.prepare(queries[place], COUNT) for place in order]
            session.ask(requests[-1])
            ready.wait(120)
            found.append(_ask(session, requests, seconds))
            session.close()
        except BaseException as error:  # It is raised again, in the thread that can tell of it.
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((one for one in failures if not isinstance(one, threading.BrokenBarrierError)), failures[0])
    latencies = [latency for one, _, _ in found for latency in one]
    return rated(latencies, max(end for _, _, end in found) - min(begun for _, begun, _ in found))


def _ask(session: Session, requests: list[Any], seconds: float) -> tuple[list[float], float, float]:
    latencies = []
    begun = now = time.perf_counter()
    place = 0
    while now - begun < seconds:
        started = now
        session.ask(requests[place])
        now = time.perf_counter()
        latencies.append((now - started) * 1000)
        place = (place + 1) % len(requests)
    return latencies, begun, now


def one_by_one(
    session: Session, queries: Floats, wheres: Sequence[Where | None], *, seconds: float
) -> tuple[list[list[int]], list[float]]:
    """Each query once, in order, as many as the time allows: what was found, and latencies in milliseconds."""
    found, latencies = [], []
    spent = 0.0
    for query, where in zip(queries, wheres, strict=True):
        request = session.prepare(query, COUNT, where)
        started = time.perf_counter()
        answer = session.ask(request)
        took = time.perf_counter() - started
        found.append(session.rows(answer))
        latencies.append(took * 1000)
        spent += took
        if spent > seconds:
            break
    return found, latencies


def recall(found: Sequence[list[int]], truth: Any) -> float:
    """The share of the nearest, or of as many as there are, that was found, in the mean."""
    shares = []
    for rows, nearest in zip(found, truth, strict=False):
        wanted = {int(row) for row in nearest[:COUNT] if row >= 0}
        if wanted:
            shares.append(len(wanted & set(rows)) / len(wanted))
    return float(np.mean(shares)) if shares else 1.0
