"""Reading a request's body within bounds.

Nothing is read before the handler asks: a request that is refused for its token, its route or its declared
size costs no memory. What is read is counted, per request and over the whole process, and a sender that
stalls is given up on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from aiohttp import web

CHUNK_TIMEOUT_S = 30
"""How long a sender may send nothing in the middle of a body."""
RETRY_AFTER_S = 1


class BodyBudget:
    """The bytes of bodies that one process holds at a time."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0

    def take(self, count: int) -> None:
        """Hold `count` more bytes. Raises HTTPServiceUnavailable when the process may not hold that many."""
        if self.held + count > self.bytes_max:
            raise web.HTTPServiceUnavailable(
                text=f"{self.held} of {self.bytes_max} bytes for request bodies are in use and {count} more "
                "are asked for; try again shortly, or send smaller batches",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self.held += count

    def give_back(self, count: int) -> None:
        """Let go of bytes taken before."""
        self.held -= count
        assert self.held >= 0


class BodyReader:
    """Reads one body at most, and holds its place in the budget until the request is answered."""

    def __init__(self, request: web.Request, budget: BodyBudget, *, bytes_max: int) -> None:
        self._request = request
        self._budget = budget
        self._bytes_max = bytes_max
        self._taken = 0

    async def read(self) -> bytes:
        """The whole body. Raises what `chunks` does."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises HTTPRequestEntityTooLarge, HTTPServiceUnavailable, HTTPRequestTimeout, HTTPBadRequest.
        """
        declared = self._request.content_length or 0
        if declared > self._bytes_max:
            raise self._too_large(declared)
        self._take(declared)
        await self._ask_to_continue()
        length = 0
        while chunk := await self._next_chunk():
            length += len(chunk)
            if length > self._bytes_max:
                raise self._too_large(length)
            if length > self._taken:
                self._take(length - self._taken)
            yield chunk

    def release(self) -> None:
        """Give the budget back. Safe before `read` and twice."""
        self._budget.give_back(self._taken)
        self._taken = 0

    def _take(self, count: int) -> None:
        self._budget.take(count)
        self._taken += count

    async def _next_chunk(self) -> bytes:
        content = self._request.content
        try:
            if content.is_eof():
                # A small body arrives with the head of its request: there is nothing to wait for.
                return content.read_nowait()
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                return await content.readany()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(
                text=f"no byte of the body arrived for {CHUNK_TIMEOUT_S} s; send the request again"
            ) from error
        except ConnectionError as error:
            # Nobody reads this answer; but who hangs up is no failure of ours, in the log or in the metrics.
            raise web.HTTPBadRequest(text="the connection ended in the middle of the body") from error

    async def _ask_to_continue(self) -> None:
        # Here, not where aiohttp would do it: that is before the token was looked at.
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request.writer.output_size = 0

    def _too_large(self, found: int) -> web.HTTPRequestEntityTooLarge:
        return web.HTTPRequestEntityTooLarge(
            max_size=self._bytes_max,
            actual_size=found,
            text=f"the body has {found} bytes or more, and at most {self._bytes_max} are read; send less",
        )


async def leave_unread(request: web.Request) -> None:
    """Answer `Expect: 100-continue` later, when the body is wanted. See `BodyReader`."""


@contextmanager
def body_of(request: web.Request, budget: BodyBudget, *, bytes_max: int) -> Iterator[BodyReader]:
    """Read a body and work with it; its bytes count until the block ends."""
    reader = BodyReader(request, budget, bytes_max=bytes_max)
    try:
        yield reader
    finally:
        reader.release()
