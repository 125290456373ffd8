"""What keeps halves from being seen: one transaction for rows and progress, one name for one build."""

from __future__ import annotations

import asyncio
from contextlib import closing

import numpy as np

from storage.backends.sqlite.database import Database, Reader
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.state import StateReader
from storage.backends.sqlite.workshop import Workshop
from storage.segment.read import open_segment
from tests.conftest import Running, batch
from worker.jobs import run_builder
from worker.lease import Registration
from worker.policy import Seal
from worker.tending import Tending


async def test_every_commit_of_a_worker_leaves_a_whole_state(running: Running, monkeypatch):
    spec = await running.index()
    path = DataFolder(running.settings.data).index(spec.id).state
    seen: list[int] = []
    at_once = Database.at_once

    async def looked_at(self, work):
        result = await at_once(self, work)
        if self.path == path:
            with closing(StateReader(Reader(path))) as reader:
                seen.append(reader.verified_manifest().state.applied)
        return result

    monkeypatch.setattr(Database, "at_once", looked_at)
    for number in range(5):
        await running.upsert(spec, batch([f"new{number}", "same"], np.full((2, 4), number + 1)))
        written = await running.delete(spec, [f"new{number - 1}"])
        await running.applied(spec, written)

    assert seen[-1] == 10


async def test_two_workers_that_build_the_same_rows_do_not_touch_each_others_files(running: Running):
    spec = await running.index()
    written = await running.upsert(spec, batch([str(number) for number in range(40)], np.ones((40, 4))))
    await running.applied(spec, written)
    await running.stop_worker()
    workshop = await Workshop.open(running.settings)
    registrations = [await Registration.join(workshop.data) for _ in range(2)]
    tendings = []
    for registration in registrations:
        index = await workshop.open_index(spec.id)
        assert index is not None
        await index.take(registration.id)
        tendings.append(Tending(index, running.settings, registration, asyncio.Semaphore(1), lambda: None))

    try:
        orders = [tending._order(Seal(written.sequence)) for tending in tendings]
        answers = await asyncio.gather(*(run_builder(order) for order in orders))

        for order, answer in zip(orders, answers, strict=True):
            assert answer.segment is not None
            folder = tendings[0].index.folder.segments / order.name
            assert open_segment(folder, spec.config, checksum=answer.segment.checksum).rows == 40
    finally:
        for tending, registration in zip(tendings, registrations, strict=True):
            await tending.close()
            await registration.leave()
        await workshop.close()
