"""Figures of many indexes for the metrics page, read on connections of their own."""

from __future__ import annotations

import time
from collections.abc import Iterable

from storage.backends.sqlite.builds import read_note
from storage.backends.sqlite.database import Reader, file_bytes
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.state import StateReader
from storage.errors import StorageError
from storage.interfaces import Measures
from storage.records import IndexSpec, MutationState


def measure(data: DataFolder, specs: Iterable[IndexSpec]) -> tuple[tuple[IndexSpec, Measures], ...]:
    """The figures of these indexes; one that cannot be read, or is being deleted, is left out."""
    found = []
    for spec in specs:
        try:
            found.append((spec, _measure(data.index(spec.id))))
        except StorageError:
            continue
    return tuple(found)


def _measure(folder: IndexFolder) -> Measures:
    state_reader, log = StateReader(Reader(folder.state)), LogReader(folder)
    try:
        state = state_reader.state()
        [(segments, segment_bytes)] = state_reader.rows("SELECT count(*), coalesce(sum(bytes), 0) FROM segments")
        head, _ = log.head()
        [(set_aside,)] = state_reader.rows("SELECT count(*) FROM outcomes WHERE state = ?", (MutationState.FAILED,))
        oldest = log.rows("SELECT created_ms FROM mutations WHERE sequence = ?", (state.applied + 1,))
    finally:
        state_reader.close()
        log.close()
    return Measures(
        vectors=state.vectors,
        segments=segments,
        queue_depth=max(0, head.sequence - state.applied),
        lag_ms=max(0, time.time_ns() // 1_000_000 - oldest[0][0]) if oldest else 0,
        set_aside=set_aside,
        bounded_builds=len(read_note(folder.path).bytes_max),
        bytes={
            "log": file_bytes(folder.log) + file_bytes(folder.log.with_name("log.db-wal")),
            "state": file_bytes(folder.state) + file_bytes(folder.state.with_name("state.db-wal")),
            "segments": segment_bytes,
        },
    )
