"""The scrub: what rots while nobody opens it is found, mended where it can be, and refused where it cannot."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.errors import LogDamaged, SegmentDamaged, StateDamaged
from tests.conftest import Running, batch, running_on

DIMENSIONS = 32


@pytest.fixture
async def running(small):
    """A worker that scrubs all the time, and merges nothing unless it is damaged."""
    async with running_on(replace(small, scrub_interval_ms=100, merge_idle_ms=1 << 40, segments_max=100)) as one:
        yield one


async def until(holds, message: str) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited a minute in vain: {message}")


async def sealed(running: Running):
    """An index with a segment that has a graph, and the folder of that segment."""
    spec = await running.index(dimensions=DIMENSIONS)
    values = np.random.default_rng(1).normal(size=(1200, DIMENSIONS)).astype(np.float32)
    last = await running.upsert(spec, batch([f"v{row}" for row in range(1200)], values))
    await running.applied(spec, last)
    state = DataFolder(running.settings.data).index(spec.id).state
    await until(lambda: segments(state), "a segment")
    await running.store.snapshot(spec)
    [name] = segments(state)
    return spec, DataFolder(running.settings.data).index(spec.id).segments / name


def segments(state: Path) -> list[str]:
    with closing(Reader(state)) as reader:
        return [name for (name,) in reader.rows("SELECT name FROM segments")]


def flip(path: Path) -> None:
    """As a disk forgets: in place."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


async def refusal(ask, wanted: type[Exception]) -> Exception:
    for _ in range(3000):
        try:
            await ask()
        except wanted as error:
            return error
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited a minute for {wanted.__name__} in vain")


async def test_a_graph_that_rots_is_found_and_built_again(running):
    spec, segment = await sealed(running)
    flip(segment / "slots" / "0" / "graph.usearch")

    state = DataFolder(running.settings.data).index(spec.id).state
    await until(lambda: segments(state) and segments(state) != [segment.name], "a new segment")
    snapshot = await running.store.snapshot(spec)
    assert snapshot.vectors == 1200


async def test_vectors_that_rot_are_refused_by_name(running):
    spec, segment = await sealed(running)
    flip(segment / "slots" / "0" / "vectors.f32")

    error = await refusal(lambda: running.store.snapshot(spec), SegmentDamaged)
    assert "in doubt are" in str(error)
    assert "'v" in str(error)


async def test_a_state_that_rots_is_answered_from_no_more(running):
    spec, _ = await sealed(running)
    path = DataFolder(running.settings.data).index(spec.id).state
    with closing(connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE vectors SET id = 'stranger' WHERE id = 'v7'")

    await refusal(lambda: running.store.records(spec, ["v7"]), StateDamaged)
    await refusal(lambda: running.store.records(spec, ["v8"]), StateDamaged)


async def test_a_log_that_rots_takes_no_writes_and_the_others_do(running):
    spec, _ = await sealed(running)
    other = await running.index("other")
    path = DataFolder(running.settings.data).index(spec.id).log
    with closing(connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE mutations SET rows = rows + 1 WHERE sequence = 1")

    async def write() -> None:
        await running.upsert(spec, batch(["one"], [[1.0] * DIMENSIONS]))

    await refusal(write, LogDamaged)
    with suppress(LogDamaged):
        assert (await running.store.snapshot(spec)).vectors >= 1200
    await running.upsert(other, batch(["one"], [[1, 2, 3, 4]]))
