"""Memory that was freed and that the system does not have back yet."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Return what was freed to the system; the C library keeps much of it for later. It takes milliseconds.

    Where the C library cannot (it is one of glibc's own calls), nothing happens.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
