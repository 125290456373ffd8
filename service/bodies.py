"""Reading a request's body within bounds.

Nothing is read before the handler asks: a request that is refused for its token, its route or its declared
size costs no memory. What is read is counted, per request and over the whole process, as it arrives: a length
that is a lie takes nothing from others. A sender that stalls, drips or never ends is given up on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a sender is waited for. Only waiting counts: the time in which we were busy is not the sender's."""

    stall_s: float = 30
    """How long it may send nothing in the middle of a body."""
    grace_s: float = 10
    """How long it may be slower than `bytes_per_second`."""
    bytes_per_second: float = 1024
    """0 for no bound."""
    total_s: float = 600
    """How long a whole body may take."""

    def left_s(self, *, length: int, waited_s: float) -> float:
        """How long to wait for the next bytes, after so many bytes and so much waiting."""
        due_s = self.grace_s + length / self.bytes_per_second if self.bytes_per_second else math.inf
        return max(0.0, min(self.stall_s, min(due_s, self.total_s) - waited_s))


class BodyBudget:
    """The bytes of bodies that one process holds at a time, and its patience with who sends them."""

    def __init__(self, bytes_max: int, patience: Patience | None = None) -> None:
        self.bytes_max = bytes_max
        self.patience = patience or Patience()
        self.held = 0

    def take(self, count: int) -> None:
        """Hold `count` more bytes. Raises HTTPServiceUnavailable when the process may not hold that many."""
        self.check(count)
        self.held += count

    def check(self, count: int) -> None:
        """Raises HTTPServiceUnavailable when the process may not hold `count` more bytes now."""
        if self.held + count > self.bytes_max:
            raise web.HTTPServiceUnavailable(
                text=f"{self.held} of {self.bytes_max} bytes for request bodies are in use and {count} more "
                "are asked for; try again shortly, or send smaller batches",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )

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
        self._waited_s = 0.0

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
        self._budget.check(declared)
        await self._ask_to_continue()
        while chunk := await self._next_chunk():
            self._take(len(chunk))
            if self._taken > self._bytes_max:
                raise self._too_large(self._taken)
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
        if content.is_eof():
            # A small body arrives with the head of its request: there is nothing to wait for.
            return content.read_nowait()
        clock = asyncio.get_running_loop().time
        left_s = self._budget.patience.left_s(length=self._taken, waited_s=self._waited_s)
        began_s = clock()
        try:
            async with asyncio.timeout(left_s):
                return await content.readany()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(
                text=f"{self._taken} bytes of the body arrived in {self._waited_s + left_s:.0f} s, which is too slow "
                "to go on waiting; send the request again, or less in each"
            ) from error
        except ConnectionError as error:
            # Nobody reads this answer; but who hangs up is no failure of ours, in the log or in the metrics.
            raise web.HTTPBadRequest(text="the connection ended in the middle of the body") from error
        finally:
            self._waited_s += clock() - began_s

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
