"""For a server that another program started for itself: it stops when that program is gone, however that went.

The other program holds the far end of our standard input and never writes to it. When it ends, even killed, the kernel
closes that end, which nothing can forget to do.
"""

from __future__ import annotations

import asyncio
import os
import sys

READ_BYTES = 4096


def stop_at_end_of_input(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends. What comes in before is thrown away."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, READ_BYTES):
            loop.remove_reader(descriptor)
            stop.set()

    try:
        loop.add_reader(descriptor, read)
    except PermissionError:
        # A file, or /dev/null, which cannot be waited for: nobody holds the far end.
        stop.set()
