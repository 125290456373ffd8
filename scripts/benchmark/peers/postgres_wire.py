"""The least client for PostgreSQL: one prepared statement, requests made beforehand, one selector for all connections.

What `scripts/benchmark/load.py` is for HTTP, so that a client library's own cost is in neither figure.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

# The end of every answer: ready for the next query, in no transaction.
_READY = b"Z\x00\x00\x00\x05I"
_STATEMENT = b"s\x00"


def execute_message(parameter: bytes) -> bytes:
    """Run the prepared statement with one binary parameter: Bind, Execute and Sync in one piece."""
    bind = b"\x00" + _STATEMENT + struct.pack(">hhh", 1, 1, 1) + struct.pack(">i", len(parameter)) + parameter
    bind += struct.pack(">h", 0)
    return _message(b"B", bind) + _message(b"E", b"\x00" + struct.pack(">i", 0)) + _message(b"S", b"")


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    received: bytes = b""
    started: float = 0.0


def closed_loop(
    address: str,
    settings: Sequence[str],
    statement: str,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
) -> tuple[list[float], float]:
    """Each connection sends its next request when the last is answered: latencies in ms, and the seconds taken."""
    opened = [_connect(address, settings, statement) for _ in range(connections)]
    selector = selectors.DefaultSelector()
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    latencies: list[float] = []
    sent = 0

    def send(connection: _Connection) -> None:
        nonlocal sent
        connection.started = time.perf_counter()
        connection.socket.sendall(requests[sent % len(requests)])
        sent += 1

    begun = time.perf_counter()
    for connection in opened:
        send(connection)
    under_way = connections
    while under_way:
        for key, _ in selector.select(60):
            connection = key.data
            connection.received += connection.socket.recv(1 << 16)
            if not connection.received.endswith(_READY):
                continue
            now = time.perf_counter()
            latencies.append((now - connection.started) * 1000)
            if not connection.received.startswith(b"2"):
                raise ConnectionError(f"PostgreSQL refused: {connection.received[:200]!r}")
            connection.received = b""
            if now - begun < seconds:
                send(connection)
            else:
                under_way -= 1
    took = time.perf_counter() - begun
    selector.close()
    for connection in opened:
        connection.socket.sendall(_message(b"X", b""))
        connection.socket.close()
    return latencies, took


def _connect(address: str, settings: Sequence[str], statement: str) -> _Connection:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.settimeout(60)
    one.connect(address)
    start = struct.pack(">i", 196_608) + b"user\x00postgres\x00database\x00postgres\x00\x00"
    _ask(one, struct.pack(">i", len(start) + 4) + start)
    for setting in settings:
        _ask(one, _message(b"Q", setting.encode() + b"\x00"))
    parse = _STATEMENT + statement.encode() + b"\x00" + struct.pack(">h", 0)
    _ask(one, _message(b"P", parse) + _message(b"S", b""))
    return _Connection(one)


def _ask(one: socket.socket, request: bytes) -> None:
    one.sendall(request)
    received = b""
    while not received.endswith(_READY):
        chunk = one.recv(1 << 16)
        if not chunk:
            raise ConnectionError(f"PostgreSQL hung up: {received[:200]!r}")
        received += chunk


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">i", len(content) + 4) + content
