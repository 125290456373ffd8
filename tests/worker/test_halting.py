"""An index that contradicts itself stands still, is looked at again, and is not condemned for what was not read."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite import inspection
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.inspection import is_certain
from storage.backends.sqlite.state import StateReader
from storage.backends.sqlite.workshop import WorkIndex
from storage.errors import LogDamaged, StateDamaged
from tests.conftest import batch, until
from worker import loop as loops
from worker import tending
from worker.loop import HALT_MAX_S, HALT_S, Halt

MALFORMED = StateDamaged("log.db cannot be read as a database: database disk image is malformed")


async def test_an_index_that_could_not_be_read_for_a_while_goes_on_by_itself(running, monkeypatch):
    spec = await running.index()
    monkeypatch.setattr(loops, "HALT_S", 0.01)
    real, errors = tending.apply_next, [MALFORMED, MALFORMED]

    async def instead(*arguments, **named):
        if errors:
            raise errors.pop()
        return await real(*arguments, **named)

    monkeypatch.setattr(tending, "apply_next", instead)
    # Each look reads all of the state again, which can be read: nothing is condemned.
    with capture_logs() as events:
        await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))
        await until(lambda: any(event["event"] == "index.resumed" for event in events))
    assert [event["event"] for event in events].count("index.halted") == 2
    await running.applied(spec, await running.upsert(spec, batch(["b"], np.ones((1, 4)))))


async def test_a_state_that_cannot_be_read_is_not_condemned_by_the_worker(running, monkeypatch):
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))

    def unreadable(_: WorkIndex) -> None:
        raise MALFORMED

    async def fails(*_: object, **__: object) -> int:
        raise MALFORMED

    with capture_logs() as events, monkeypatch.context() as patched:
        patched.setattr(WorkIndex, "_compare", unreadable)
        patched.setattr(tending, "apply_next", fails)
        await running.upsert(spec, batch(["b"], np.ones((1, 4))))
        await until(lambda: any(event["event"] == "index.halted" for event in events))
    with closing(StateReader(Reader(DataFolder(running.settings.data).index(spec.id).state))) as reader:
        reader.verified_manifest()


def test_looks_at_a_halted_index_become_rare():
    halt, waits = None, []
    for _ in range(12):
        halt = Halt.after(halt)
        waits.append(halt.wait_s)
    assert waits[:3] == [HALT_S, 2 * HALT_S, 4 * HALT_S]
    assert waits[-1] == HALT_MAX_S


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StateDamaged("state.db is damaged: its row of progress is not what was written"), True),
        (LogDamaged("the body of mutation 3 was never written"), True),
        (MALFORMED, False),
        (ValueError("anything that is no refusal"), True),
    ],
)
def test_only_what_was_read_and_is_wrong_is_certain(error, expected):
    assert is_certain(error) is expected


async def test_a_malformed_database_is_certain_only_when_all_of_it_can_be_read(running, monkeypatch):
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))
    await running.stop_worker()
    await running.store.close()
    folder = DataFolder(running.settings.data).index(spec.id)

    def malformed(*_: object, **__: object) -> None:
        raise MALFORMED

    def unread(_: object) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(inspection, "inspect_state", malformed)
    assert [one.is_certain for one in inspection.inspect_index(folder) if one.part is inspection.Part.STATE] == [True]
    monkeypatch.setattr(inspection, "sum_file", unread)
    assert [one.is_certain for one in inspection.inspect_index(folder) if one.part is inspection.Part.STATE] == [False]
