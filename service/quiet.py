"""Log lines that others can cause: so many in a while and no more.

Who sends rubbish as fast as the network carries it must not fill the disk with lines about it. What is left out is
counted, and the next line that is written says how many there were. The metrics count every one.
"""

from __future__ import annotations

import time

LINES_MAX = 100
"""How many lines of one event are written in WINDOW_S."""
WINDOW_S = 10.0
SILENT = -1


class Lines:
    """The lines of one event of one process: at most LINES_MAX in WINDOW_S."""

    def __init__(self) -> None:
        self._began_s = 0.0
        self._written = 0
        self._left_out = 0

    def take(self) -> int:
        """SILENT when this line has to be left out; else how many were left out before it."""
        now_s = time.monotonic()
        if now_s - self._began_s >= WINDOW_S:
            self._began_s, self._written = now_s, 0
        if self._written >= LINES_MAX:
            self._left_out += 1
            return SILENT
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
