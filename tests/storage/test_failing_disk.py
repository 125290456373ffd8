"""A disk that fails: nothing is acknowledged on a log that may not be on disk, and no failure is unforeseen."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite import log as logs
from storage.backends.sqlite import opened
from storage.backends.sqlite.database import Database, translated
from storage.backends.sqlite.driver import OperationalError
from storage.chain import read_witness
from storage.errors import StoreFailed, StoreFull
from tests.conftest import Running, batch


def failing(times: int, real, error: BaseException):
    """A method of a database that fails so often, for logs."""
    left = [error] * times

    async def instead(database: Database, *arguments):
        if database.path.name == "log.db" and left:
            raise left.pop()
        return await real(database, *arguments)

    return instead


async def write(running: Running, spec, id: str = "a") -> None:
    await running.applied(spec, await running.upsert(spec, batch([id], np.ones((1, 4)))))


async def test_after_a_sync_that_failed_nothing_is_acknowledged_before_the_log_is_proved(running, monkeypatch):
    spec = await running.index()
    await write(running, spec)
    lost = StoreFailed("the sync failed")
    with capture_logs() as events, monkeypatch.context() as patched:
        patched.setattr(Database, "at_once", failing(1, Database.at_once, lost))
        patched.setattr(Database, "checkpoint", failing(2, Database.checkpoint, lost))
        for _ in range(3):
            with pytest.raises(StoreFailed):
                await running.upsert(spec, batch(["b"], np.ones((1, 4))))
        assert not [event for event in events if event["event"] == "log.proved"]
        assert await running.store.head(spec) == 1
        await write(running, spec, "c")
    assert [event["event"] for event in events].count("log.proved") == 1
    found = await running.store.records(spec, ["a", "b", "c"])
    assert [one is None for one in found] == [False, True, False]


async def test_a_log_is_proved_on_a_new_connection(running, monkeypatch):
    spec = await running.index()
    await write(running, spec)
    real, opened_anew = Database.open, []

    async def noted(path):
        opened_anew.append(path.name)
        return await real(path)

    with monkeypatch.context() as patched:
        patched.setattr(Database, "at_once", failing(1, Database.at_once, StoreFailed("the sync failed")))
        with pytest.raises(StoreFailed):
            await running.upsert(spec, batch(["b"], np.ones((1, 4))))
    monkeypatch.setattr(logs.Database, "open", noted)
    await write(running, spec, "b")
    assert opened_anew == ["log.db"]


async def test_a_log_is_proved_though_what_was_open_cannot_be_closed(running, monkeypatch):
    spec = await running.index()
    await write(running, spec)
    lost = StoreFailed("the sync failed")
    real, closed = Database.close, []

    async def fails_the_first_time(database: Database) -> None:
        await real(database)
        closed.append(database)
        if len(closed) == 1:
            raise lost

    with monkeypatch.context() as patched:
        patched.setattr(Database, "at_once", failing(1, Database.at_once, lost))
        patched.setattr(Database, "close", fails_the_first_time)
        for _ in range(2):
            with pytest.raises(StoreFailed):
                await running.upsert(spec, batch(["b"], np.ones((1, 4))))
        await write(running, spec, "b")
    assert len(closed) == len({*closed}) == 2


async def test_a_log_that_cannot_be_opened_keeps_no_descriptor(running, monkeypatch):
    spec = await running.index()
    real = os.open

    def fails(path, *rest, **named) -> int:
        if os.fspath(path).endswith("HEAD"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        with pytest.raises(StoreFailed, match="Too many open files"):
            await running.upsert(spec, batch(["a"], np.ones((1, 4))))
    assert not [path for path in opened_files() if path.endswith("log.lock")]
    await write(running, spec)


def opened_files() -> list[str]:
    """The paths of what this process has open."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The one that lists them.
            found.append(str(one.readlink()))
    return found


async def test_a_full_disk_does_not_make_a_log_suspect(running, monkeypatch):
    spec = await running.index()
    with capture_logs() as events, monkeypatch.context() as patched:
        patched.setattr(Database, "at_once", failing(1, Database.at_once, StoreFull("no room")))
        with pytest.raises(StoreFull):
            await running.upsert(spec, batch(["b"], np.ones((1, 4))))
        await write(running, spec)
    assert not [event for event in events if event["event"] == "log.proved"]


async def test_a_write_is_acknowledged_though_its_witness_cannot_be_written(running, monkeypatch):
    spec = await running.index()
    folder = running.settings.data / "indexes" / spec.id

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with capture_logs() as events, monkeypatch.context() as patched:
        patched.setattr(logs, "write_witness", fails)
        await write(running, spec)
    assert [event for event in events if event["event"] == "witness.failed"]
    assert read_witness(folder / "HEAD") is None
    await write(running, spec, "b")
    assert read_witness(folder / "HEAD").sequence == 2


async def test_an_error_of_the_system_is_one_that_may_pass(running, monkeypatch):
    spec = await running.index()
    await write(running, spec)

    def fails(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(opened.IndexReader, "snapshot", fails)
        with pytest.raises(StoreFailed, match="Too many open files"):
            await running.store.records(spec, ["a"])
    assert await running.store.records(spec, ["a"]) != (None,)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("disk I/O error", "SQLITE_IOERR_FSYNC", StoreFailed),
        ("disk I/O error", "SQLITE_IOERR_READ", StoreFailed),
        ("disk I/O error", "SQLITE_IOERR_SHMSIZE", StoreFull),
        ("database or disk is full", "SQLITE_FULL", StoreFull),
        ("attempt to write a readonly database", "SQLITE_READONLY", StoreFull),
        ("out of memory", "SQLITE_NOMEM", StoreFailed),
    ],
)
def test_what_sqlite_says_of_a_disk_is_told_apart(tmp_path, text, name, expected):
    error = OperationalError(text)
    error.sqlite_errorname = name
    with pytest.raises(expected), translated(tmp_path / "log.db"):
        raise error


def test_no_memory_is_not_damage(tmp_path):
    with pytest.raises(StoreFailed), translated(tmp_path / "log.db"):
        raise MemoryError
