"""A whole data folder on tmp_path, with a worker that runs in the test's own loop."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from storage.batch import Batch, pack_ids, pack_vectors
from storage.interfaces import Store
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import AccountId, Action, Appended, Change, IndexConfig, IndexSpec, Metric
from storage.runtime import leave
from storage.settings import Settings
from worker.loop import Loop

ACCOUNT = AccountId("acc")
WAIT_S = 300.0
"""Not a speed limit: how long a test waits before it calls a thing that should happen stuck. On a machine that is busy
with other things a builder, of the lowest priority, took more than a minute to start."""


@dataclass
class Running:
    """A store and a worker on one data folder."""

    settings: Settings
    store: Store
    stop: asyncio.Event
    worker: asyncio.Task[None] | None = None

    async def index(self, name="docs", dimensions=4, metric=Metric.COSINE) -> IndexSpec:
        config = IndexConfig(dimensions=dimensions, metric=metric)
        return await self.store.create_index(ACCOUNT, name, "", config, RELAXED)

    async def upsert(self, spec: IndexSpec, batch: Batch, *, action=Action.UPSERT) -> Appended:
        change = Change(action=action, body=pack_vectors(batch), rows=len(batch))
        return await self.store.append(spec, change, RELAXED)

    async def delete(self, spec: IndexSpec, ids) -> Appended:
        return await self.store.append(spec, Change(action=Action.DELETE, body=pack_ids(ids), rows=len(ids)), RELAXED)

    async def applied(self, spec: IndexSpec, appended: Appended) -> None:
        assert await self.store.wait_applied(spec, appended.sequence, WAIT_S), "the worker did not get there"

    async def start_worker(self) -> None:
        loop = await Loop.start(self.settings)
        self.stop.clear()
        self.worker = asyncio.create_task(loop.run(self.stop), name="worker")

    async def stop_worker(self) -> None:
        if self.worker is not None:
            self.stop.set()
            await self.worker
            self.worker = None


@asynccontextmanager
async def running_on(settings: Settings) -> AsyncIterator[Running]:
    """Run a store and a worker until the block ends."""
    store = await open_store(settings)
    running = Running(settings=settings, store=store, stop=asyncio.Event())
    try:
        await running.start_worker()
        yield running
    finally:
        await running.stop_worker()
        await store.close()
        leave(settings.data)


async def until(holds: Callable[[], object]) -> None:
    """Wait for what happens by itself: in another task or process, of which a file or a log may be all there is."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.01)


def batch(ids, values, namespaces=None, metadata=None) -> Batch:
    """A batch with defaults for what a test does not care about."""
    ids = tuple(ids)
    return Batch(
        ids=ids,
        namespaces=tuple(namespaces or [""] * len(ids)),
        metadata=tuple(metadata or [b""] * len(ids)),
        values=np.asarray(values, dtype=np.float32).reshape(len(ids), -1),
    )


def pytest_configure() -> None:
    """Tests that are ended from outside, by `timeout` say, clean up as on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything that tests start, and is killed, leaves its sockets, metrics and scratch: gone at the end."""
    tmp_path_factory.getbasetemp()  # Stays where it was: what failed can be looked at.
    with (
        tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setenv("TMPDIR", folder)
        patched.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings for a data folder of the test's own; `small` is for tests that want seals and merges."""
    return Settings(data=tmp_path / "data")


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Everything in the background happens soon and with little."""
    return replace(
        settings,
        seal_bytes=64 * 1024,
        seal_mutations=50,
        graph_rows_min=500,
        merge_idle_ms=500,
        seal_idle_ms=200,
        segments_max=3,
        grace_ms=500,
        sweep_ms=500,
        builder_threads=1,
    )


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A store and a worker with default settings."""
    async with running_on(settings) as one:
        yield one
