"""What is told to a caller is on disk: a commit comes before its answer, and the disk before the commit.

The kernel itself is made to fail every fsync, in a process of its own: whatever answers there did not wait for one.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import struct
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from storage.backends.sqlite.database import Database
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.workshop import Workshop
from storage.batch import pack_ids
from storage.errors import StorageError
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import Action, Change, IndexConfig, Metric
from storage.segment import format as layout
from storage.segment.write import write_segment
from storage.settings import Settings
from tests.conftest import ACCOUNT
from tests.storage.test_segment import NAME, WITHOUT_GRAPH, rows_from

CONFIG = IndexConfig(dimensions=4, metric=Metric.COSINE)
DELETION = Change(action=Action.DELETE, body=pack_ids(["a"]), rows=1)
NUMBERS = {"x86_64": (0xC000003E, 317, (74, 75)), "aarch64": (0xC00000B7, 277, (82, 83))}
"""For each machine: what the kernel calls it, and the system calls seccomp, and fsync and fdatasync."""


def fail_every_fsync() -> None:
    """From now on fsync and fdatasync are EIO in this process, in threads it has as well. There is no way back."""
    machine, seccomp, fsyncs = NUMBERS[platform.machine()]
    # One statement a line: load the machine, leave other ones alone, load the call, fail if it is one of two.
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (0x20, 0, 0, 4),
            (0x15, 0, 3, machine),
            (0x20, 0, 0, 0),
            (0x15, 2, 0, fsyncs[0]),
            (0x15, 1, 0, fsyncs[1]),
            (0x06, 0, 0, 0x7FFF0000),
            (0x06, 0, 0, 0x00050000 | errno.EIO),
        )
    )
    code = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, all_threads = 38, 1, 1
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    assert libc.syscall(seccomp, set_filter, all_threads, described) == 0, os.strerror(ctypes.get_errno())
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.fsync(0)


def in_a_process_of_its_own(work: Callable[[], Awaitable[str]]) -> str:
    """What some work says in a child, which ends without closing anything."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = asyncio.run(work())
        except BaseException:
            said = traceback.format_exc()
        os.write(sink, said.encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(sink)
    with open(source, "rb") as file:  # noqa: PTH123
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


async def append(settings: Settings) -> Callable[[], Awaitable[object]]:
    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)
    await store.append(spec, DELETION, RELAXED)
    return lambda: store.append(spec, DELETION, RELAXED)


async def create_index(settings: Settings) -> Callable[[], Awaitable[object]]:
    store = await open_store(settings)
    return lambda: store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)


async def delete_index(settings: Settings) -> Callable[[], Awaitable[object]]:
    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)
    return lambda: store.delete_index(spec)


async def take_an_index(settings: Settings) -> Callable[[], Awaitable[object]]:
    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)
    workshop = await Workshop.open(settings)
    index = await workshop.open_index(spec.id)
    assert index is not None
    return lambda: index.take("one")


COMMITS = {one.__name__.replace("_", " "): one for one in (append, create_index, delete_index, take_an_index)}


@pytest.mark.skipif(platform.machine() not in NUMBERS, reason="the numbers of its system calls are not known here")
@pytest.mark.parametrize("prepare", COMMITS.values(), ids=COMMITS)
def test_every_commit_waits_for_the_disk(settings, prepare):
    async def work() -> str:
        act = await prepare(settings)
        fail_every_fsync()
        try:
            await act()
        except (StorageError, OSError) as error:
            return f"refused: {error}"
        return "answered without an fsync"

    said = in_a_process_of_its_own(work)

    assert said.startswith("refused: "), said


async def test_a_write_is_answered_only_when_it_is_committed(settings, monkeypatch):
    at_once = Database.at_once

    async def slow(self, work):
        def pausing(statements):
            result = work(statements)
            time.sleep(0.2)  # In the thread of the connection, before the commit.
            return result

        return await at_once(self, pausing)

    store = await open_store(settings)
    spec = await store.create_index(ACCOUNT, "docs", "", CONFIG, RELAXED)
    monkeypatch.setattr(Database, "at_once", slow)
    try:
        with closing(LogReader(DataFolder(settings.data).index(spec.id))) as elsewhere:
            for number in range(1, 4):
                written = await store.append(spec, DELETION, RELAXED)

                assert (written.sequence, elsewhere.head()[0].sequence) == (number, number)
    finally:
        await store.close()


def test_every_file_of_a_segment_is_on_disk_before_the_segment_has_its_name(tmp_path, monkeypatch):
    on_disk: list[int] = []
    missing: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def traced(descriptor: int) -> None:
        fsync(descriptor)
        on_disk.append(os.fstat(descriptor).st_ino)

    def checked(path: Path, target: Path) -> Path:
        if target.name == NAME:
            missing.extend(one for one in (path, *path.rglob("*")) if one.stat().st_ino not in on_disk)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", traced)
    monkeypatch.setattr(Path, "rename", checked)
    info = write_segment(tmp_path, NAME, rows_from(1, 60), replace(WITHOUT_GRAPH, graph_rows_min=1))

    assert missing == []
    assert {path.name for path in (tmp_path / info.name / layout.SLOT).iterdir()} > {"graph.usearch"}
    assert on_disk[-1] == tmp_path.stat().st_ino
