"""The scrub: what rots while nobody opens it is found, mended where it can be, and refused where it cannot."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from structlog.testing import capture_logs

import worker.scrub
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.errors import LogDamaged, SegmentDamaged, StateDamaged
from tests.conftest import Running, batch, running_on, until
from worker.jobs import BuildFailed
from worker.scrub import MARK, Scrubber

DIMENSIONS = 32


@pytest.fixture
async def running(small):
    """A worker that scrubs all the time, and merges nothing unless it is damaged."""
    async with running_on(replace(small, scrub_interval_ms=100, merge_idle_ms=1 << 40, segments_max=100)) as one:
        yield one


async def sealed(running: Running):
    """An index with a segment that has a graph, and the folder of that segment."""
    spec = await running.index(dimensions=DIMENSIONS)
    values = np.random.default_rng(1).normal(size=(1200, DIMENSIONS)).astype(np.float32)
    last = await running.upsert(spec, batch([f"v{row}" for row in range(1200)], values))
    await running.applied(spec, last)
    state = DataFolder(running.settings.data).index(spec.id).state
    await until(lambda: segments(state))
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
    await until(lambda: segments(state) and segments(state) != [segment.name])
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


async def test_a_worker_that_is_started_again_and_again_scrubs_all_the_same(settings):
    often = replace(settings, scrub_interval_ms=3_600_000)
    with capture_logs() as events:
        async with running_on(often) as running:
            spec = await running.index(dimensions=DIMENSIONS)
            await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, DIMENSIONS)))))
        mark = DataFolder(often.data).index(spec.id).path / MARK
        long_ago = mark.stat().st_mtime - 4_000
        os.utime(mark, (long_ago, long_ago))

        async with running_on(often) as running:
            await running.applied(spec, await running.upsert(spec, batch(["b"], np.ones((1, DIMENSIONS)))))
            await until(lambda: mark.stat().st_mtime > long_ago)
        async with running_on(often) as running:
            await running.applied(spec, await running.upsert(spec, batch(["c"], np.ones((1, DIMENSIONS)))))

    assert [event["findings"] for event in events if event["event"] == "scrub.finished"] == [0]


async def test_indexes_are_scrubbed_one_after_the_other(running, monkeypatch):
    under_way: list[str] = []
    most = 0
    run = worker.scrub.run_builder

    async def counted(job):
        nonlocal most
        under_way.append(job.index)
        most = max(most, len(under_way))
        answer = await run(job)
        under_way.remove(job.index)
        return answer

    monkeypatch.setattr(worker.scrub, "run_builder", counted)
    with capture_logs() as events:
        for number in range(3):
            spec = await running.index(f"docs{number}", dimensions=DIMENSIONS)
            await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, DIMENSIONS)))))
        await until(lambda: sum(event["event"] == "scrub.finished" for event in events) > 5)

    assert most == 1
    assert len({event["index"] for event in events if event["event"] == "scrub.finished"}) == 3


async def test_a_scrub_that_failed_long_after_it_was_due_is_not_tried_again_at_once(tmp_path, small, monkeypatch):
    async def fails(_):
        raise BuildFailed("it was killed")

    monkeypatch.setattr(worker.scrub, "run_builder", fails)
    index = SimpleNamespace(spec=SimpleNamespace(id="a", config=None), folder=SimpleNamespace(path=tmp_path))
    settings = replace(small, scrub_interval_ms=3_600_000)
    late = Scrubber(index, settings, {"a": time.monotonic() - 5 * 3600}, wanted=lambda: None)
    assert late.due_at() < time.monotonic()

    await late.read()

    assert late.due_at() > time.monotonic()
