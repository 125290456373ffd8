"""Memory that was freed and that the system does not have back yet.

The C library gives a large block back as soon as it is freed, and takes it anew page by page, each of them cleared by
the system when it is first written to. A body of 3 MB passes through half a dozen such blocks: to read it out of the
log took 4.5 ms of processor time, 1.0 ms where blocks are kept; a worker under a load at 768 dimensions took a third
less. So what is freed is kept while there is work, and given back when there has been none for a while.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from contextlib import suppress

KEPT_BYTES_MAX = 32 * 1024 * 1024
"""The largest block that is kept, and how much is kept at the end of each arena. No C library of GNU allows more."""
ARENAS_MAX = 2
"""Arenas keep memory from each other; threads of one interpreter seldom allocate at the same moment."""
REST_S = 10.0
"""How long a process must have had next to nothing to do before it gives back."""
BUSY_SHARE = 0.02
"""The share of one processor above which it has something to do."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # Of <malloc.h>.


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for this process; before it starts threads.

    Where the C library cannot (these are glibc's own calls), nothing happens.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)


def give_back_memory() -> None:
    """Return what was freed to the system; the C library keeps much of it for later. It takes milliseconds.

    Where the C library cannot (it is one of glibc's own calls), nothing happens.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


async def give_back_at_rest() -> None:
    """Give back once after every spell of work. Runs until it is cancelled."""
    has_worked, before = False, time.process_time()
    while True:
        await asyncio.sleep(REST_S)
        used, before = before, time.process_time()
        if before - used > BUSY_SHARE * REST_S:
            has_worked = True
        elif has_worked:
            has_worked = False
            await asyncio.to_thread(give_back_memory)
