"""The time of day of this process is off by what a file says, and jumps when the file changes; monotonic time is not.

The file, named by TORTURE_CLOCK, has one number of eight bytes: the milliseconds to add.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

VARIABLE = "TORTURE_CLOCK"


def set_clock(path: Path, ahead_ms: int) -> None:
    """Set the clocks of all processes that look at a file."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("<q", ahead_ms))


def shift() -> None:
    """Have `time.time` and `time.time_ns` add what the file says, as of now."""
    descriptor = os.open(os.environ[VARIABLE], os.O_RDONLY | os.O_CLOEXEC)
    mapped = mmap.mmap(descriptor, 8, prot=mmap.PROT_READ)
    os.close(descriptor)
    nanoseconds = time.time_ns

    def shifted_ns() -> int:
        return nanoseconds() + int(struct.unpack("<q", mapped[:8])[0]) * 1_000_000

    time.time_ns = shifted_ns
    time.time = lambda: shifted_ns() / 1e9


if VARIABLE in os.environ:
    shift()
