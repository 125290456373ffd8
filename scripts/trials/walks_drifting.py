"""A build that is broken on purpose: every page of a listing is as of now, and not as of the first one.

`HEADRACE_TORTURE_PRELOAD=walks_drifting scripts/torture walks` must find it.
"""

from __future__ import annotations

from storage.backends.sqlite import listing
from storage.backends.sqlite.state import StateReader
from storage.records import Sequence

_honest = listing._chunk  # noqa: SLF001


def _drifting(reader: StateReader, prefix: str, at: Sequence, after: str, count: int) -> list[str]:
    del at
    return _honest(reader, prefix, reader.state().applied, after, count)


listing._chunk = _drifting  # noqa: SLF001
