"""Files: whole or absent, checked, and honest about a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import xxhash

from storage import files
from storage.errors import StoreFull
from storage.files import (
    BLOCK_BYTES,
    FileSum,
    FileWriter,
    finish,
    full_disk_told,
    hash_file,
    sum_file,
    write_whole,
)

CONTENT = os.urandom(2 * BLOCK_BYTES + 1000)


def blocks_of(content: bytes) -> tuple[str, ...]:
    starts = range(0, len(content), BLOCK_BYTES)
    return tuple(xxhash.xxh3_64_hexdigest(content[start : start + BLOCK_BYTES]) for start in starts)


def test_a_file_is_written_whole_and_read_only(tmp_path):
    written = write_whole(tmp_path / "file", CONTENT)

    assert (tmp_path / "file").read_bytes() == CONTENT
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444
    assert written == FileSum(bytes=len(CONTENT), checksum=xxhash.xxh3_128_hexdigest(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_replaced_stays_readable_to_whoever_has_it_open(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as old:
        write_whole(tmp_path / "file", b"new")

        assert old.read() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_and_its_name_are_on_disk_before_the_writer_returns(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, Path.rename

    def traced_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def traced_rename(path: Path, target: Path) -> Path:
        calls.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "rename", traced_rename)
    write_whole(tmp_path / "file", b"content")

    [(first, temporary), *rest] = calls
    assert first == "fsync"
    assert temporary.startswith(files.TEMPORARY_PREFIX)
    assert rest == [("rename", "file"), ("fsync", tmp_path.name)]


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, call, number):
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreFull, match=os.strerror(number)):
        write_whole(tmp_path / "file", b"content")

    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_room_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="Input/output"), full_disk_told(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("length", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, len(CONTENT)])
@pytest.mark.parametrize("step", [777_777, 3 * BLOCK_BYTES])
def test_checksums_do_not_depend_on_how_the_bytes_came(tmp_path, length, step):
    content = CONTENT[:length]
    with FileWriter(tmp_path / "file", blocks=True) as writer:
        for start in range(0, length, step):
            writer.write(content[start : start + step])

    expected = FileSum(bytes=length, checksum=xxhash.xxh3_128_hexdigest(content), blocks=blocks_of(content))
    assert writer.sum() == expected
    assert sum_file(tmp_path / "file", blocks=True) == expected
    assert hash_file(tmp_path / "file") == expected.checksum


def test_a_writer_refuses_a_file_that_exists(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        FileWriter(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_file_of_somebody_else_is_made_durable_and_read_only(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    (tmp_path / "file").write_bytes(b"content")

    finish(tmp_path / "file")

    assert len(synced) == 1
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444
