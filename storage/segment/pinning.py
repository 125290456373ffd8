"""Segments as copies in memory, for who wants nothing to happen when a file changes below a mapping.

Whether they are is one decision for a process, taken before it opens anything.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_is_wanted = False


def pin_segments(wanted: bool) -> None:
    """Have segments that are opened from now on copied instead of mapped."""
    global _is_wanted
    _is_wanted = wanted


def is_pinning() -> bool:
    """Whether segments are copied."""
    return _is_wanted


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """A path to a copy in memory that nobody can change; what maps it in the block keeps it. Raises OSError."""
    descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as file:
            while os.sendfile(descriptor, file.fileno(), None, 1 << 30):
                pass
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
