"""What many indexes took is given back when nobody uses them any more."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from storage import memory
from storage.backends.sqlite import opened
from storage.memory import give_back_at_rest, give_back_memory, keep_freed_memory
from tests.conftest import WAIT_S, batch
from worker import loop as working

ROOT = Path(__file__).parents[2]


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
    keep_freed_memory()


async def test_a_process_gives_back_once_after_every_spell_of_work(monkeypatch):
    used = iter([0.0, 0.0, 5.0, 9.0, 9.0, 9.0, 12.0, 12.0])
    here, given, ended = asyncio.get_running_loop(), [], asyncio.Event()
    told: list[float] = []

    def process_time() -> float:
        try:
            told.append(next(used))
        except StopIteration:
            here.call_soon_threadsafe(ended.set)
        return told[-1]

    monkeypatch.setattr(memory, "REST_S", 0.001)
    monkeypatch.setattr(memory.time, "process_time", process_time)
    monkeypatch.setattr(memory, "give_back_memory", lambda: given.append(len(told)))

    resting = asyncio.create_task(give_back_at_rest())
    async with asyncio.timeout(WAIT_S):
        await ended.wait()
    resting.cancel()

    # Work was seen at the third, fourth and seventh look: the looks that found none after it gave back.
    assert given == [5, 8]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the calls are those of glibc")
def test_freed_blocks_are_kept_and_taken_again():
    program = """
        import resource
        from storage.memory import keep_freed_memory

        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        def work():
            blocks = [bytearray(8 << 20) for _ in range(3)]
            for block in blocks:
                block[::4096] = bytes(2048)

        keep_freed_memory()
        work()
        before = faults()
        for _ in range(20):
            work()
        print(faults() - before)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True)

    # Anew every time, they would be 120,000 pages.
    assert int(done.stdout) < 10_000
