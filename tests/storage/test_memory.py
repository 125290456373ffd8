"""What many indexes took is given back when nobody uses them any more."""

from __future__ import annotations

import asyncio
import ctypes

from storage.backends.sqlite import opened
from storage.memory import give_back_memory
from tests.conftest import WAIT_S, batch
from worker import loop as working


async def test_both_sides_give_memory_back_once_what_was_open_is_closed(running, monkeypatch):
    given, of_worker = asyncio.Event(), asyncio.Event()
    here = asyncio.get_running_loop()
    monkeypatch.setattr(opened, "give_back_memory", lambda: here.call_soon_threadsafe(given.set))
    monkeypatch.setattr(working, "give_back_memory", lambda: here.call_soon_threadsafe(of_worker.set))
    monkeypatch.setattr(opened, "IDLE_S", 0.1)
    monkeypatch.setattr(opened, "LOOK_S", 0.05)
    monkeypatch.setattr(working, "IDLE_S", 0.1)
    monkeypatch.setattr(working, "MANY", 1)

    spec = await running.index()
    await running.applied(spec, await running.upsert(spec, batch(["a"], [[1, 0, 0, 0]])))

    async with asyncio.timeout(WAIT_S):
        await given.wait()
        await of_worker.wait()
    [found] = await running.store.records(spec, ["a"])
    assert found is not None


def test_a_c_library_that_cannot_give_back_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())

    give_back_memory()
