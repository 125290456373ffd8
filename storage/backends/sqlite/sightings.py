"""How long folders have been there, when neither this clock nor that of the file system can be trusted.

A clock that is set, and a file server whose clock is another, make a folder of this moment look old and an old one
look like one of the future. So a folder is old when this process has seen it for long enough by a clock that nobody
sets, or when its own time says so and it has been seen for long enough not to be one that is being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SEEN_S = 5.0


class Sightings:
    """What one process has seen of one folder of folders."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._since: dict[str, float] = {}

    def older(self, seconds: float) -> list[Path]:
        """Look again, and say what is older than so many seconds."""
        now = self._clock()
        paths = list(self._folder.iterdir())
        self._since = {path.name: self._since.get(path.name, now) for path in paths}
        return [path for path in paths if self._is_older(path, now - self._since[path.name], seconds)]

    def _is_older(self, path: Path, seen_s: float, seconds: float) -> bool:
        if seen_s > seconds:
            return True
        try:
            return seen_s >= min(seconds, SEEN_S) and time.time() - path.stat().st_mtime > seconds
        except FileNotFoundError:
            return False
