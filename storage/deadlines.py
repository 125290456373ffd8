"""Reads that end in time: who waits for one is told, and the work that was done for them stops.

A deadline is a moment of `time.monotonic()`. Waiting ends there at once. Work in a thread cannot be stopped from
outside, so it asks, `check`, between steps of some milliseconds; work that waits for a thread is never begun. The
deadline belongs to the thread for as long as it does that work, so that what is deep inside need not be handed it, and
what has no deadline, as all of the worker, pays one look.

Reads have threads of their own: however many take long, writes and health checks find one.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import islice
from typing import TypeVar

from storage.errors import DeadlinePassed

NEVER = math.inf
READ_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio has for everything else."""
ITEMS_BETWEEN_CHECKS = 4096
"""Of things that are looked at one by one: a few milliseconds."""

Result = TypeVar("Result")
Item = TypeVar("Item")


class _Deadline(threading.local):
    """The deadline of the work that a thread does now."""

    until_s = NEVER


_here = _Deadline()
_threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")


def deadline_in(timeout_ms: int) -> float:
    """The moment so far from now; NEVER for 0."""
    return time.monotonic() + timeout_ms / 1000 if timeout_ms else NEVER


def end() -> None:
    """Take no more reads: the process is done, and threads that have nothing to do end."""
    _threads.shutdown(wait=False, cancel_futures=True)


def is_past() -> bool:
    """Whether what this thread does now has gone on for too long."""
    until_s = _here.until_s
    return until_s != NEVER and time.monotonic() >= until_s


def check() -> None:
    """Stop here if what this thread does now has gone on for too long. Raises DeadlinePassed."""
    if is_past():
        raise passed()


def checked(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with a `check` every few thousand."""
    rest = iter(items)
    while some := list(islice(rest, ITEMS_BETWEEN_CHECKS)):
        check()
        yield from some


def passed() -> DeadlinePassed:
    """What is raised when the time is up."""
    return DeadlinePassed(
        "this took longer than query_timeout_ms allows and was given up; try again, ask for less, or let it take longer"
    )


@asynccontextmanager
async def waiting(until_s: float) -> AsyncIterator[None]:
    """Wait in the block until then and no longer. Raises DeadlinePassed."""
    try:
        async with asyncio.timeout(None if until_s == NEVER else until_s - time.monotonic()):
            yield
    except TimeoutError as error:
        raise passed() from error


async def in_thread(until_s: float, work: Callable[..., Result], *arguments: object) -> Result:
    """Do work in a thread for reads until then. Raises DeadlinePassed, and what the work raises."""
    loop = asyncio.get_running_loop()
    async with waiting(until_s):
        return await loop.run_in_executor(_threads, _work_until, until_s, work, arguments)


def _work_until(until_s: float, work: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    _here.until_s = until_s
    try:
        check()
        return work(*arguments)
    finally:
        _here.until_s = NEVER
