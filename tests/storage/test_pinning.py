"""Pinned segments: whatever happens to the files, what is open goes on answering from what was verified."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from storage import plan as planning
from storage.backends.sqlite.folder import DataFolder
from storage.filters import FilterRules
from storage.plan import PlanKind
from storage.search import Query, search
from storage.segment.pinning import pin_segments
from tests.conftest import WAIT_S, batch, running_on

DIMENSIONS, ROWS = 32, 3000


@pytest.fixture(autouse=True)
def unpinned() -> Iterator[None]:
    """The decision is one of the whole process."""
    yield
    pin_segments(False)


async def test_files_of_pinned_segments_may_change_below_them(small, monkeypatch):
    monkeypatch.setattr(planning, "SCAN_BYTES_FREE", 0)
    monkeypatch.setattr(planning, "EXPANSION_BYTES", 1)
    async with running_on(replace(small, pin_segments=True, merge_idle_ms=1 << 40, segments_max=100)) as running:
        spec = await running.index(dimensions=DIMENSIONS)
        values = np.random.default_rng(1).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
        last = await running.upsert(spec, batch([f"v{row}" for row in range(ROWS)], values))
        await running.applied(spec, last)
        async with asyncio.timeout(WAIT_S):
            while not (await running.store.snapshot(spec)).parts[:-1]:  # noqa: ASYNC110 (the worker builds them)
                await asyncio.sleep(0.02)
        await running.stop_worker()
        snapshot = await running.store.snapshot(spec)
        for path in (DataFolder(small.data).index(spec.id).segments).rglob("*.*"):
            if path.is_file():
                path.chmod(0o600)
                path.write_bytes(b"")

        for row in range(0, ROWS, 100):
            found = search(snapshot, Query(vector=values[row], count=3, rules=FilterRules(), recall=0.9))
            assert found.hits[0].id == f"v{row}"
            assert found.explanations[0].plan is PlanKind.GRAPH
            assert snapshot.parts[0].part.record(row).values == values[row].tobytes()
