"""The load generator: prebuilt requests over keep-alive connections, from a process of its own.

It does little per request, so that it can share the machine with what it measures: requests are bytes made
beforehand, one selector serves every connection, and of an answer only its length is looked at while the clock runs.
`Run.cpu_us` says what it took of a core per request, which is how a report shows that it was not the bottleneck.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LENGTH = b"content-length: "
_HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Run:
    """What came back: latencies in milliseconds in the order of the answers, and the bodies where they were kept."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    bodies: dict[int, bytes] = field(default_factory=dict)
    """By the number of the request: the last answer to each."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of a core that generating took, per request."""
        return self.cpu_seconds * 1e6 / len(self.latencies)

    def percentile(self, percent: float) -> float:
        """Of the latencies, in milliseconds."""
        return float(np.percentile(self.latencies, percent))


def post(path: str, body: bytes, *, content_type: str = "application/json") -> bytes:
    """A request with a body, ready to be sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str) -> bytes:
    """A request without a body, ready to be sent."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float = 0.0, count: int = 0) -> Run:
    """Every connection sends its next request as soon as the last is answered, for so long or for so many requests.

    Requests are taken in turn, and again from the first when they end.
    """
    return _Generator(port, requests, connections).run(seconds=seconds, count=count)


def paced(port: int, requests: Sequence[bytes], *, connections: int, seconds: float, rate: float) -> Run:
    """Requests start when their time has come, `rate` a second, whether or not earlier ones are answered.

    A request that finds no connection free waits, and its latency counts from when it should have started.
    """
    dice = np.random.default_rng(1)
    starts = np.cumsum(dice.exponential(1 / rate, int(rate * seconds)))
    return _Generator(port, requests, connections).run(starts=starts)


class _Connection:
    __slots__ = ("expected", "number", "received", "socket", "started")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.expected = 0
        self.number = -1
        self.started = 0.0


class _Generator:
    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self._requests = requests
        self._connections = [_Connection(port) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._run = Run()
        self._next = 0

    def run(self, *, seconds: float = 0.0, count: int = 0, starts: NDArray[np.float64] | None = None) -> Run:
        idle = deque(self._connections)
        begun, cpu = time.perf_counter(), time.process_time()
        due: deque[float] = deque() if starts is None else deque((begun + starts).tolist())
        ends = begun + seconds if seconds else float("inf")
        total = count or (len(due) if starts is not None else 1 << 62)
        while True:
            now = time.perf_counter()
            while idle and self._next < total and now < ends and (starts is None or due[0] <= now):
                self._send(idle.popleft(), due.popleft() if starts is not None else time.perf_counter())
            if len(idle) == len(self._connections) and (self._next >= total or now >= ends):
                break
            # With everything idle the next start may be awaited; with something under way, its answer too.
            wait = max(0.0, due[0] - now) if starts is not None and due and idle else None
            for key, _ in self._selector.select(wait):
                if self._receive(key.data):
                    idle.append(key.data)
        self._run.seconds, self._run.cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()
        return self._run

    def _send(self, connection: _Connection, started: float) -> None:
        connection.number = self._next % len(self._requests)
        connection.started = started
        self._next += 1
        connection.socket.sendall(self._requests[connection.number])

    def _receive(self, connection: _Connection) -> bool:
        """Take what has arrived; whether the answer is whole."""
        chunk = connection.socket.recv(1 << 20)
        if not chunk:
            raise ConnectionError("the server closed the connection in the middle of a run")
        connection.received = connection.received + chunk if connection.received else chunk
        if not connection.expected:
            end = connection.received.find(_HEAD_END)
            if end < 0:
                return False
            head = connection.received[:end].lower()
            place = head.find(_LENGTH) + len(_LENGTH)
            connection.expected = end + len(_HEAD_END) + int(head[place : place + 12].partition(b"\r")[0])
        if len(connection.received) < connection.expected:
            return False
        self._run.latencies.append((time.perf_counter() - connection.started) * 1000)
        self._run.refused += connection.received[9:12] != b"200"
        # Keeping the last answer to each request costs one reference.
        self._run.bodies[connection.number] = connection.received
        connection.received, connection.expected = b"", 0
        return True


def body_of(answer: bytes) -> bytes:
    """The body of a kept answer."""
    return answer.partition(_HEAD_END)[2]
