"""A client that costs little: one connection, requests written by hand, for many at once in one event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from scripts.trials.workers_crew import PATIENCE_S, Stuck

ACCOUNT = "0123456789abcdef0123456789abcdef"
INDEXES = f"/client/v4/accounts/{ACCOUNT}/vectorize/v2/indexes"
PAUSE_S = 0.02
ANSWER_S = 60.0
"""How long one answer may take before the connection is given up."""


class Refused(Exception):
    """An answer that is neither success nor "later"."""

    def __init__(self, what: str, status: int, answer: Any) -> None:
        super().__init__(f"{what} answered {status}: {answer}")
        self.status = status


class Client:
    """One client of one service. `agent` is what makes it a caller of its own to `/info`."""

    def __init__(self, port: int, agent: str = "", token: str = "") -> None:
        self._port = port
        self._token = token
        self._agent = agent
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def once(
        self, method: str, path: str, body: bytes = b"", key: str = "", *, within_s: float = ANSWER_S
    ) -> tuple[int, Any]:
        """Status and document. Raises OSError (TimeoutError is one) or EOFError when the connection breaks."""
        kind = "application/x-ndjson" if path.split("?")[0].endswith(("insert", "upsert")) else "application/json"
        head = f"{method} {INDEXES}{path} HTTP/1.1\r\nHost: local\r\nUser-Agent: {self._agent}\r\n"
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
        head += f"Authorization: Bearer {self._token}\r\n" if self._token else ""
        head += f"Idempotency-Key: {key}\r\n" if key else ""
        try:
            async with asyncio.timeout(within_s):
                if self._stream is None:
                    self._stream = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._stream
                writer.write(head.encode() + b"\r\n" + body)
                received = await reader.readuntil(b"\r\n\r\n")
                status, length = _head(received)
                return status, orjson.loads(await reader.readexactly(length))
        except BaseException:
            self.close()
            raise

    async def call(self, method: str, path: str, body: bytes = b"", key: str = "") -> Any:
        """The result, however often it takes. A write needs a key, or it may be done twice. Raises Refused, Stuck."""
        deadline = time.monotonic() + PATIENCE_S
        last: object = None
        while time.monotonic() < deadline:
            try:
                status, answer = await self.once(method, path, body, key)
            except (OSError, EOFError) as error:
                last = error
            else:
                if status == 200:
                    return answer["result"]
                if status not in (429, 503):
                    raise Refused(f"{method} {path}", status, answer.get("errors"))
                last = answer.get("errors")
            await asyncio.sleep(PAUSE_S)
        raise Stuck(f"{method} {path} got no answer for {PATIENCE_S:g} s: {last!r}")

    def close(self) -> None:
        """Let go of the connection. The next request makes another."""
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


def _head(received: bytes) -> tuple[int, int]:
    """Status and length of an answer."""
    lower = received.lower()
    place = lower.index(b"content-length: ") + len(b"content-length: ")
    return int(received[9:12]), int(lower[place : lower.index(b"\r\n", place)])
