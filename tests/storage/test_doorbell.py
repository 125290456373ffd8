"""Doorbells: rings arrive, dead peers are forgotten, a full queue is rung again."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from storage import doorbell
from storage.doorbell import Doorbell, Side
from storage.records import IndexId
from storage.runtime import runtime_folder

INDEX = IndexId("a" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return runtime_folder(tmp_path)


async def test_a_ring_reaches_every_process_of_the_other_side_and_none_of_its_own(folder):
    heard: dict[str, list[IndexId]] = {"first": [], "second": [], "same": []}
    arrived = asyncio.Event()

    def second(index: IndexId) -> None:
        heard["second"].append(index)
        arrived.set()

    bells = [
        Doorbell(folder, Side.WORKER, heard["first"].append),
        Doorbell(folder, Side.WORKER, second),
        Doorbell(folder, Side.SERVICE, heard["same"].append),
        Doorbell(folder, Side.SERVICE, lambda _: None),
    ]
    for bell in bells:
        bell.open()

    bells[-1].ring(INDEX)
    async with asyncio.timeout(30):
        await arrived.wait()
        # The first bell's socket was readable before the second's: one more turn of the loop has read both.
        await asyncio.sleep(0)

    assert heard == {"first": [INDEX], "second": [INDEX], "same": []}
    for bell in bells:
        bell.close()
        bell.close()
    assert not list(folder.glob("*.sock"))


async def test_the_bell_of_a_dead_process_is_taken_down(folder):
    dead = folder / "worker-1-dead.sock"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.bind(str(dead))
    left.close()
    bell = Doorbell(folder, Side.SERVICE, lambda _: None)
    bell.open()

    bell.ring(INDEX)

    assert not dead.exists()
    bell.close()


async def test_a_ring_that_does_not_fit_is_repeated(folder):
    slow = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    slow.bind(str(folder / "worker-1-slow.sock"))
    slow.setblocking(False)
    bell = Doorbell(folder, Side.SERVICE, lambda _: None)
    bell.open()
    names = [IndexId(f"{number:032x}") for number in range(2_000)]

    for name in names:
        bell.ring(name)
    arrived: set[str] = set()
    async with asyncio.timeout(60):
        while len(arrived) < len(names):
            try:
                arrived.add(slow.recv(64).decode())
            except BlockingIOError:
                await asyncio.sleep(0.001)

    assert arrived == set(names)
    bell.close()
    slow.close()


async def test_a_ring_that_can_never_arrive_is_not_repeated(folder, monkeypatch):
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deaf.bind(str(folder / "worker-1-deaf.sock"))
    bell = Doorbell(folder, Side.SERVICE, lambda _: None)
    bell.open()
    repeats: list[object] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *args: repeats.append(args))

    bell.ring(INDEX)

    assert repeats == []
    bell.close()
    deaf.close()


async def test_without_a_descriptor_to_look_with_those_that_were_there_are_rung_for(folder, monkeypatch):
    there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    there.bind(str(folder / "worker-1-there.sock"))
    there.setblocking(False)
    bell = Doorbell(folder, Side.SERVICE, lambda _: None)
    bell.open()
    bell.ring(INDEX)
    assert there.recv(64).decode() == INDEX

    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(doorbell, "PEERS_REFRESH_S", -1.0)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", exhausted)
        bell.ring(INDEX)

    assert there.recv(64).decode() == INDEX
    bell.close()
    there.close()
