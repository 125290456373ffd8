"""A build that is broken on purpose: readers answer from a snapshot until it is a fifth of a second old.

`HEADRACE_TORTURE_PRELOAD=fresh_stale scripts/torture fresh` must find it.
"""

from __future__ import annotations

import time

from storage.backends.sqlite.reader import IndexReader
from storage.snapshot import Snapshot

STALE_S = 0.2
_honest = IndexReader.snapshot
_opened: dict[int, tuple[float, Snapshot]] = {}


async def _stale(self: IndexReader) -> Snapshot:
    at, snapshot = _opened.get(id(self), (0.0, None))
    if snapshot is None or time.monotonic() - at > STALE_S:
        snapshot = await _honest(self)
        _opened[id(self)] = (time.monotonic(), snapshot)
    return snapshot


IndexReader.snapshot = _stale  # type: ignore[method-assign]
IndexReader.current = lambda _: None  # type: ignore[method-assign]
