"""How the worker shares itself among its indexes: what it opens, lets go of and tries again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.publishing import StateWriter
from storage.backends.sqlite.state import State, StateReader
from storage.errors import StoreFull
from storage.records import IndexSpec
from tests.conftest import WAIT_S, Running, batch, running_on, until
from worker import jobs, tending

Events = list[MutableMapping[str, Any]]


@pytest.fixture
def complaints():
    """What an operator would have to look at."""
    with capture_logs() as events:
        yield lambda: [event for event in events if event["log_level"] in ("error", "critical")]


@pytest.fixture
async def narrow(small) -> AsyncIterator[Running]:
    """A worker that keeps two indexes open."""
    async with running_on(replace(small, open_indexes_max=2)) as one:
        yield one


def state_of(running: Running, spec: IndexSpec) -> State:
    with closing(StateReader(Reader(DataFolder(running.settings.data).index(spec.id).state))) as reader:
        return reader.state()


def owned(running: Running, specs: list[IndexSpec]) -> int:
    return sum(bool(state_of(running, spec).owner) for spec in specs)


async def write(running: Running, spec: IndexSpec, id: str) -> None:
    await running.applied(spec, await running.upsert(spec, batch([id], np.ones((1, 4)))))


def failing_once(call: Callable, error: Exception) -> Callable:
    """The call, which fails the first time."""
    errors = [error]

    async def instead(*arguments, **named):
        if errors:
            raise errors.pop()
        return await call(*arguments, **named)

    return instead


async def test_no_more_indexes_are_held_than_may_be_open(narrow, complaints):
    specs = [await narrow.index(f"docs{number}") for number in range(7)]
    for spec in specs:
        await write(narrow, spec, "first")

    await until(lambda: owned(narrow, specs) <= 2)


async def test_indexes_are_let_go_and_taken_again_under_load(narrow, complaints):
    specs = [await narrow.index(f"docs{number}") for number in range(7)]
    writes = 0
    async with asyncio.timeout(WAIT_S):
        while any(state_of(narrow, spec).epoch < 2 for spec in specs):
            for spec in specs:
                await narrow.upsert(spec, batch([f"v{writes}"], np.ones((1, 4))))
            writes += 1

    for spec in specs:
        await write(narrow, spec, "last")
        assert narrow.store.progress(spec).vectors == writes + 1
    assert complaints() == []


async def test_an_index_that_could_not_be_given_back_is_taken_again(narrow, monkeypatch):
    one, *others = [await narrow.index(f"docs{number}") for number in range(3)]
    await write(narrow, one, "first")
    with monkeypatch.context() as patched, capture_logs() as events:
        patched.setattr(StateWriter, "release", failing_once(StateWriter.release, StoreFull("the disk is full")))
        for spec in others:
            await write(narrow, spec, "first")
        await write(narrow, one, "second")
        await until(lambda: sum(event["event"] == "lease.taken" for event in events) > len(others))

    for spec in (one, *others):
        await write(narrow, spec, "last")


@pytest.mark.parametrize("refused", ["publish", "start"])
async def test_a_build_that_could_not_be_published_or_started_waits_before_it_is_tried_again(
    running, small, monkeypatch, complaints, refused
):
    monkeypatch.setattr(tending, "BUILD_RETRY_S", 0.2)
    if refused == "publish":
        monkeypatch.setattr(StateWriter, "publish", failing_once(StateWriter.publish, StoreFull("the disk is full")))
    else:
        spawn = jobs.asyncio.create_subprocess_exec
        refusal = OSError(24, "Too many open files")
        monkeypatch.setattr(jobs.asyncio, "create_subprocess_exec", failing_once(spawn, refusal))
    spec = await running.index()

    for number in range(small.seal_mutations):
        await write(running, spec, f"v{number}")
    await until(lambda: state_of(running, spec).sealed_through > 0)

    assert [event["event"] for event in complaints()] == ["build.failed"]


@pytest.fixture
async def running(small) -> AsyncIterator[Running]:
    """Seals soon."""
    async with running_on(small) as one:
        yield one
