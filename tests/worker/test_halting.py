"""An index that contradicts itself stands still, is looked at again, and is not condemned for what was not read."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite import inspection
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.glance import glance
from storage.backends.sqlite.inspection import Finding, Part, is_certain
from storage.backends.sqlite.state import StateReader
from storage.errors import LogDamaged, StateDamaged
from tests.conftest import WAIT_S, batch, running_on, until
from worker import loop as loops
from worker import scrub, tending
from worker.jobs import BuildAnswer, BuildJob
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


async def halts(running, spec, monkeypatch) -> None:
    """Have the worker meet a page that is not one, in the middle of applying."""

    async def fails(*_: object, **__: object) -> int:
        raise MALFORMED

    with capture_logs() as events, monkeypatch.context() as patched:
        patched.setattr(tending, "apply_next", fails)
        await running.upsert(spec, batch(["b"], np.ones((1, 4))))
        await until(lambda: any(event["event"] == "index.halted" for event in events))


async def test_a_state_that_cannot_be_read_is_not_condemned_by_the_worker(running, monkeypatch):
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a"], np.ones((1, 4)))))
    read: list[str] = []

    async def unreadable(job: BuildJob) -> BuildAnswer:
        read.append(job.kind)
        return BuildAnswer(findings=(Finding(Part.STATE, str(MALFORMED), is_certain=False),))

    monkeypatch.setattr(scrub, "run_builder", unreadable)
    await halts(running, spec, monkeypatch)
    await until(lambda: read == ["compare"])
    await running.stop_worker()

    with closing(StateReader(Reader(DataFolder(running.settings.data).index(spec.id).state))) as reader:
        reader.verified_manifest()


async def test_what_stopped_the_worker_is_refused_by_services_as_well(running, monkeypatch):
    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a", "c"], np.ones((2, 4)))))
    path = DataFolder(running.settings.data).index(spec.id).state
    with closing(connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM vectors WHERE id = 'a'")
    assert await running.store.records(spec, ["a"]) == (None,), "nobody has noticed"

    await halts(running, spec, monkeypatch)

    refusals: list[StateDamaged] = []

    async def ask() -> None:
        while not refusals:
            try:
                await running.store.records(spec, ["a"])
            except StateDamaged as error:
                refusals.append(error)
            await asyncio.sleep(0.02)

    await asyncio.wait_for(ask(), WAIT_S)


async def test_a_row_of_progress_that_holds_no_numbers_stops_nobody_else(small):
    async with running_on(small) as running:
        spec, other = await running.index(), await running.index("other")
        for one in (spec, other):
            await running.applied(one, await running.upsert(one, batch(["a"], np.ones((1, 4)))))
    folder = DataFolder(small.data).index(spec.id)
    with closing(connect(folder.state, isolation_level=None)) as connection:
        connection.execute("DELETE FROM progress")
    with pytest.raises(StateDamaged, match="how far"):
        glance(folder)
    with closing(StateReader(Reader(folder.state))) as reader, pytest.raises(StateDamaged):
        reader.state()

    async with running_on(small) as running:
        await running.applied(other, await running.upsert(other, batch(["b"], np.ones((1, 4)))))


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


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("row 3 missing from index mutations_of_callers", True),
        ("Tree 2 page 17: unable to get the page. error code=11", True),
        (
            "Tree 2 page 17: unable to get the page. error code=266\nrow 3 missing from index mutations_of_callers",
            False,
        ),
        ("Tree 2 page 17: unable to get the page. error code=8458", False),
        ("Tree 2 page 17: unable to get the page. error code=7", False),
    ],
)
def test_a_page_that_the_disk_did_not_give_this_time_is_not_damage(report, expected):
    assert inspection.was_read(report) is expected


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
