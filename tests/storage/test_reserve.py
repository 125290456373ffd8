"""The room that is kept for a full disk: when it is made, given, made whole again, and who is refused meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import StoreBusy, StoreFull
from storage.reserve import FILE, Reserve, make_room_to_start

MIB = 1024 * 1024
PAGE = 4096
WANTED = 4 * MIB


class Disk:
    """A file system of 1 GiB of which a test says how much is free, the reserve's own file included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.free_bytes = 512 * MIB

    def stat(self, _: Path) -> SimpleNamespace:
        kept = sum(file.stat().st_size for file in self.folder.iterdir())
        free = max(0, self.free_bytes - kept) // PAGE
        return SimpleNamespace(f_bavail=free, f_frsize=PAGE, f_blocks=1024 * MIB // PAGE)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr(os, "statvfs", disk.stat)
    monkeypatch.setattr("storage.reserve.LOOKED_S", 0.0)
    return disk


@pytest.fixture
def reserve(disk: Disk) -> Reserve:
    reserve = Reserve(disk.folder, WANTED)
    assert reserve.keep()
    return reserve


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Something that fails so often before it succeeds."""
    left = [error] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def test_a_reserve_is_made_and_writes_are_let_through(reserve: Reserve, disk: Disk) -> None:
    reserve.check()
    assert (disk.folder / FILE).stat().st_size == WANTED
    assert not reserve.keep()


def test_before_there_is_a_reserve_writes_are_let_through(disk: Disk) -> None:
    Reserve(disk.folder, WANTED).check()


def test_a_small_disk_has_a_small_reserve(disk: Disk) -> None:
    reserve = Reserve(disk.folder, 1 << 40)
    assert reserve.keep()
    assert (disk.folder / FILE).stat().st_size == 32 * MIB


def test_no_reserve_is_kept_where_none_is_wanted(disk: Disk) -> None:
    reserve = Reserve(disk.folder, 0)
    disk.free_bytes = 0
    reserve.check()
    assert not reserve.keep()
    assert not (disk.folder / FILE).exists()


def test_writes_are_refused_before_the_last_of_the_disk_is_taken(reserve: Reserve, disk: Disk) -> None:
    disk.free_bytes = WANTED + WANTED // 4 - PAGE
    with pytest.raises(StoreFull, match="free some space"):
        reserve.check()
    disk.free_bytes += PAGE
    reserve.check()


def test_what_must_go_on_is_given_half_of_it_each_time(reserve: Reserve, disk: Disk) -> None:
    disk.free_bytes = WANTED
    assert reserve.spend_at_once(failing(1, StoreFull("no room"))) == "done"
    assert (disk.folder / FILE).stat().st_size == WANTED // 2
    with pytest.raises(StoreFull):
        reserve.check()


def test_nothing_is_given_where_there_is_room(reserve: Reserve, disk: Disk) -> None:
    """A disk that cannot be written for another reason is refused as it is."""
    with pytest.raises(StoreFull, match="it is broken"):
        reserve.spend_at_once(failing(1, StoreFull("it is broken")))
    assert (disk.folder / FILE).stat().st_size == WANTED


def test_nothing_is_given_for_another_error(reserve: Reserve, disk: Disk) -> None:
    disk.free_bytes = WANTED
    with pytest.raises(StoreBusy):
        reserve.spend_at_once(failing(1, StoreBusy("locked")))
    assert (disk.folder / FILE).stat().st_size == WANTED


def test_giving_ends_when_all_is_given(reserve: Reserve, disk: Disk) -> None:
    def work() -> None:
        # Somebody else takes what is given at once.
        disk.free_bytes = (disk.folder / FILE).stat().st_size
        raise StoreFull("no room")

    with pytest.raises(StoreFull):
        reserve.spend_at_once(work)
    assert (disk.folder / FILE).stat().st_size == 0


def test_it_is_whole_again_as_soon_as_there_is_room_beside_it(reserve: Reserve, disk: Disk) -> None:
    disk.free_bytes = WANTED
    assert reserve.give()
    disk.free_bytes = WANTED + WANTED // 4
    assert not reserve.keep()
    disk.free_bytes = WANTED + WANTED // 2
    assert reserve.keep()
    reserve.check()


def test_every_process_sees_that_it_was_given(reserve: Reserve, disk: Disk) -> None:
    other = Reserve(disk.folder, WANTED)
    disk.free_bytes = WANTED
    assert reserve.give()
    disk.free_bytes = WANTED + WANTED // 4
    with pytest.raises(StoreFull):
        other.check()


def test_a_start_on_a_full_disk_gives_some_of_it(reserve: Reserve, disk: Disk) -> None:
    make_room_to_start(disk.folder)
    assert (disk.folder / FILE).stat().st_size == WANTED
    disk.free_bytes = WANTED
    make_room_to_start(disk.folder)
    make_room_to_start(disk.folder)
    assert (disk.folder / FILE).stat().st_size == WANTED // 2


def test_a_disk_that_fills_while_it_is_made_whole_leaves_it_as_it_was(
    reserve: Reserve, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(*_: int) -> None:
        raise OSError(28, "No space left on device")

    disk.free_bytes = WANTED
    assert reserve.give()
    disk.free_bytes = 2 * WANTED
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", filled)
        assert not reserve.keep()
    assert (disk.folder / FILE).stat().st_size == WANTED // 2


@pytest.mark.parametrize("left_over", [False, True], ids=["the first", "after one that was killed while it made it"])
def test_writes_are_let_through_while_the_first_one_is_made(
    left_over: bool, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate
    reserve = Reserve(disk.folder, WANTED)
    seen = []

    def look(descriptor: int, begin: int, size: int) -> None:
        Reserve(disk.folder, WANTED).check()
        seen.append(size)
        if left_over and len(seen) == 1:
            raise KeyboardInterrupt
        allocate(descriptor, begin, size)
        Reserve(disk.folder, WANTED).check()

    monkeypatch.setattr(os, "posix_fallocate", look)
    if left_over:
        with pytest.raises(KeyboardInterrupt):
            reserve.keep()
        Reserve(disk.folder, WANTED).check()
    assert reserve.keep()
    assert seen
    assert [path.name for path in disk.folder.iterdir()] == [FILE]


@pytest.mark.parametrize("left", [0, WANTED // 2, WANTED - PAGE], ids=["nothing", "half", "most"])
def test_writes_are_never_refused_where_there_is_room(left: int, reserve: Reserve, disk: Disk) -> None:
    """Whatever the file is like: nobody may have come to make it whole yet."""
    os.truncate(disk.folder / FILE, left)
    reserve.check()
    disk.free_bytes = WANTED
    with pytest.raises(StoreFull):
        reserve.check()


def test_where_what_was_given_is_filled_again_writes_are_refused(reserve: Reserve, disk: Disk) -> None:
    """Writes leave the room that a whole reserve takes."""
    disk.free_bytes = WANTED
    assert reserve.give()
    disk.free_bytes = WANTED + WANTED // 2
    reserve.check()
    disk.free_bytes -= PAGE
    with pytest.raises(StoreFull):
        reserve.check()


@pytest.mark.parametrize("is_new", [True, False], ids=["made", "made whole"])
def test_workers_that_make_it_at_once_leave_it_whole(is_new: bool, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_new:
        (disk.folder / FILE).touch()
    allocate = os.posix_fallocate
    made = []

    def allocate_beside_another(descriptor: int, begin: int, size: int) -> None:
        if not made:
            made.append("the other came meanwhile")
            assert not Reserve(disk.folder, WANTED).keep()
        allocate(descriptor, begin, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate_beside_another)
    assert Reserve(disk.folder, WANTED).keep()
    assert made
    assert [(path.name, path.stat().st_size) for path in disk.folder.iterdir()] == [(FILE, WANTED)]


@pytest.mark.parametrize("moment", ["before it opens", "before it locks"])
def test_a_worker_that_comes_too_late_leaves_what_another_made(
    moment: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file, others = os.open, [Reserve(disk.folder, WANTED)]

    def open_late(path: Path, *flags: int) -> int:
        early = open_file(path, *flags) if moment == "before it locks" or not others else None
        while others:
            assert others.pop().keep()
        return open_file(path, *flags) if early is None else early

    with monkeypatch.context() as patched:
        patched.setattr("storage.reserve.os.open", open_late)
        assert not Reserve(disk.folder, WANTED).keep()
    assert [(path.name, path.stat().st_size) for path in disk.folder.iterdir()] == [(FILE, WANTED)]


def test_what_was_given_while_it_is_made_whole_stays_given(
    reserve: Reserve, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not put back as a hole, which would count as room."""
    disk.free_bytes = WANTED
    assert reserve.give()

    def filled(*_: int) -> None:
        os.truncate(disk.folder / FILE, WANTED // 4)
        raise OSError(28, "No space left on device")

    disk.free_bytes = 2 * WANTED
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", filled)
        assert not reserve.keep()
    assert (disk.folder / FILE).stat().st_size == WANTED // 4
