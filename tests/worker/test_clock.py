"""A clock that was ten years ahead, and is right again: what it left behind is given back all the same."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.state import StateReader
from storage.batch import pack_vectors
from storage.limits import RELAXED
from storage.records import Action, Change, IndexSpec
from tests.conftest import Running, batch, running_on, until

TEN_YEARS_S = 315_576_000


class Clock:
    """The time of day of this process, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0
        nanoseconds, seconds = time.time_ns, time.time
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + self.ahead_s * 1_000_000_000)
        monkeypatch.setattr(time, "time", lambda: seconds() + self.ahead_s)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def forgetful(small):
    # One seal, when everything is written.
    return replace(small, seal_mutations=18, grace_ms=100, cursor_ttl_ms=300, mutation_retain_ms=300)


async def write(running: Running, spec: IndexSpec, begin: int, count: int = 3) -> None:
    """A vector and its removal in each of some mutations, under idempotency keys."""
    for number in range(begin, begin + count):
        body = pack_vectors(batch([f"kept-{number}", f"gone-{number}"], np.ones((2, 4))))
        change = Change(action=Action.UPSERT, body=body, rows=2, idempotency_key=f"key-{number}")
        await running.store.append(spec, change, RELAXED)
        last = await running.delete(spec, [f"gone-{number}"])
    await running.applied(spec, last)


def state_count(running: Running, spec: IndexSpec, what: str) -> int:
    with closing(StateReader(Reader(DataFolder(running.settings.data).index(spec.id).state))) as reader:
        return reader.rows(f"SELECT count(*) FROM {what}")[0][0]


def log_count(running: Running, spec: IndexSpec, what: str) -> int:
    with closing(LogReader(DataFolder(running.settings.data).index(spec.id))) as log:
        return log.rows(f"SELECT count(*) FROM {what}")[0][0]


@pytest.mark.parametrize("log_retain_ms", [0, 200])
async def test_what_was_written_under_a_clock_ahead_is_given_back_when_it_is_right_again(
    forgetful, clock, log_retain_ms
):
    async with running_on(replace(forgetful, log_retain_ms=log_retain_ms)) as running:
        spec = await running.index()
        await write(running, spec, 0)
        clock.ahead_s = TEN_YEARS_S
        await write(running, spec, 3)
        clock.ahead_s = 0
        await write(running, spec, 6)

        await until(lambda: log_count(running, spec, "bodies") == 0)
        await until(lambda: state_count(running, spec, "outcomes") == 0)
        await until(lambda: state_count(running, spec, "vectors WHERE removed > 0") == 0)
        # The last row is the anchor of the chain.
        await until(lambda: log_count(running, spec, "mutations") == 1)
        assert log_count(running, spec, "idempotency") <= 1
        assert state_count(running, spec, "vectors") == 9


async def test_a_deleted_index_goes_though_its_folder_is_of_the_future(forgetful, clock):
    async with running_on(forgetful) as running:
        spec = await running.index()
        await write(running, spec, 0)
        folders = [DataFolder(forgetful.data).index(spec.id).path, DataFolder(forgetful.data).trash / spec.id]
        clock.ahead_s = -TEN_YEARS_S
        await running.store.delete_index(spec)
        await until(lambda: not any(folder.exists() for folder in folders))
