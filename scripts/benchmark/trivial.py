"""The least a server can do: find the end of a request and answer with fixed bytes.

What the load generator reaches against it is the generator's own ceiling, with the server on the same machine.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.benchmark.server import ROOT

BODY = b'{"result":{"count":10,"matches":[' + b"x" * 2_000 + b"]}}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class Answering(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the body is whole."""
        if not self._missing:
            head, _, _ = data.partition(b"\r\n\r\n")
            self._missing = len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        self._missing -= len(data)
        if not self._missing:
            self._transport.write(ANSWER)  # type: ignore[attr-defined]


@contextmanager
def running() -> Iterator[int]:
    """Serve from a process of its own; gives the port."""
    command = [sys.executable, "-P", "-m", "scripts.benchmark.trivial"]
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


async def serve() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.create_server(("127.0.0.1", 0))
    server = await loop.create_server(Answering, sock=listener)
    print(listener.getsockname()[1], flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
