"""Backups: whole, verified, and made while everything runs; and what a restore refuses."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import shutil
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.commands.doctor import run_doctor
from storage.backends.sqlite.archive import MANIFEST, KeptFile, pack_manifest, unpack_manifest
from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.restoring import restore
from storage.errors import BackupRefused
from storage.filters import FilterRules
from storage.interfaces import ListRequest
from tests.conftest import ACCOUNT, Running, batch, running_on, until

DIMENSIONS = 4
RULES = FilterRules()


def rows(begin: int, count: int):
    numbers = range(begin, begin + count)
    return batch([f"v{number}" for number in numbers], [[1.0, number, number % 7, 2.0] for number in numbers])


async def fill(running: Running, *, batches: int = 6) -> None:
    """Some segments, a tail, and dead rows in both."""
    spec = await running.index()
    for number in range(batches):
        await running.upsert(spec, rows(number * 300, 600))
        await running.delete(spec, [f"v{number * 300 + 7}"])
    await until(lambda: has_segments(running.settings.data / "indexes" / spec.id / "state.db"))
    last = await running.upsert(spec, rows(5, 3))
    await running.applied(spec, last)


def has_segments(state: Path) -> bool:
    with closing(Reader(state)) as reader:
        return bool(reader.rows("SELECT 1 FROM segments"))


async def everything(running: Running) -> dict[str, bytes]:
    """Every id with its values."""
    spec = running.store.index(ACCOUNT, "docs")
    page = await running.store.list_page(spec, ListRequest(count=100_000, rules=RULES, include_records=True))
    return {id: record.values for id, record in zip(page.ids, page.records, strict=True) if record is not None}


@pytest.fixture
async def filled(small):
    """A data folder with some history, in use."""
    async with running_on(small) as running:
        await fill(running)
        yield running


async def test_a_backup_of_a_running_service_restores_to_the_same_vectors(filled, small, tmp_path):
    expected = await everything(filled)
    await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")
    await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored")

    async with running_on(replace(small, data=tmp_path / "restored")) as restored:
        assert await everything(restored) == expected


async def test_an_archive_is_the_same_as_a_folder(filled, small, tmp_path):
    expected = await everything(filled)
    await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup.tar", program="test")
    await asyncio.to_thread(restore, tmp_path / "backup.tar", tmp_path / "restored")

    async with running_on(replace(small, data=tmp_path / "restored")) as restored:
        assert await everything(restored) == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


async def test_a_second_backup_copies_only_what_changed(filled, small, tmp_path):
    target = tmp_path / "backup"
    first = await asyncio.to_thread(back_up, DataFolder(small.data), target, program="test")
    before = {path: path.stat().st_ino for path in target.rglob("vectors.f32")}
    second = await asyncio.to_thread(back_up, DataFolder(small.data), target, program="test")
    both = {target / file.path for file in first.files} & {target / file.path for file in second.files}

    assert before
    assert all(path.stat().st_ino == inode for path, inode in before.items() if path in both)
    assert unpack_manifest((target / MANIFEST).read_bytes()) == second
    kept = {target / file.path for file in second.files} | {target / MANIFEST, target / ".lock"}
    assert {path for path in target.rglob("*") if path.is_file()} == kept


async def test_what_rotted_in_a_backup_is_copied_again(filled, small, tmp_path):
    target = tmp_path / "backup"
    await asyncio.to_thread(back_up, DataFolder(small.data), target, program="test")
    rotten = next(target.rglob("vectors.f32"))
    flip(rotten)
    with pytest.raises(BackupRefused, match="is not what was backed up"):
        restore(target, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    await asyncio.to_thread(back_up, DataFolder(small.data), target, program="test")

    restore(target, tmp_path / "restored")


async def test_a_damaged_index_is_left_out_by_name_and_the_others_are_not(filled, small, tmp_path):
    other = await filled.index("other")
    await filled.applied(other, await filled.upsert(other, rows(0, 10)))
    spec = filled.store.index(ACCOUNT, "docs")
    await filled.stop_worker()
    with closing(Reader(small.data / "indexes" / spec.id / "state.db")) as reader:
        [[name], *_] = reader.rows("SELECT name FROM segments")
    flip(small.data / "indexes" / spec.id / "segments" / name / "slots" / "0" / "vectors.f32")

    manifest = await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")

    assert [index.name for index in manifest.indexes] == ["other"]
    assert [index.name for index in manifest.left_out] == ["docs"]
    restore(tmp_path / "backup", tmp_path / "restored")
    async with running_on(replace(small, data=tmp_path / "restored")) as restored:
        assert [one.name for one in await restored.store.indexes(ACCOUNT)] == ["other"]


async def test_no_graph_is_in_a_backup_and_one_is_built_after_the_restore(small, tmp_path):
    async with running_on(replace(small, merge_idle_ms=100)) as running:
        await fill(running)
        await until_graph(small.data)
        await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")
        expected = await everything(running)

    assert list((tmp_path / "backup").rglob("graph.usearch")) == []
    restore(tmp_path / "backup", tmp_path / "restored")
    async with running_on(replace(small, data=tmp_path / "restored")) as restored:
        assert await everything(restored) == expected
        await until_graph(tmp_path / "restored")


async def test_after_a_restore_doctor_finds_nothing_wrong_with_what_is_not_built_yet(small, tmp_path, capsys):
    async with running_on(small) as running:
        await fill(running)
        await until_graph(small.data)
        await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")
    restored = replace(small, data=tmp_path / "restored")
    restore(tmp_path / "backup", restored.data)

    assert run_doctor(restored, mend=False) == 0
    assert "to be built" in capsys.readouterr().out
    [graph, *_] = small.data.rglob("graph.usearch")
    graph.chmod(0o600)
    graph.write_bytes(graph.read_bytes()[:-1])
    assert run_doctor(small, mend=False) == 1


async def until_graph(data: Path) -> None:
    await until(lambda: list(data.rglob("graph.usearch")))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file that is read-only."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.fixture
async def archive(filled, small, tmp_path) -> Path:
    """A good backup as one file."""
    await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "good.tar", program="test")
    return tmp_path / "good.tar"


def altered(archive: Path, change) -> Path:
    """The archive with each member passed through `change(name, member, content)`, which yields what to write."""
    bad = archive.with_name("bad.tar")
    with tarfile.open(archive) as old, tarfile.open(bad, "w") as new:
        for member in old.getmembers():
            for one, content in change(member, old.extractfile(member).read()):
                new.addfile(one, io.BytesIO(content))
    return bad


def stranger(name: str, type=tarfile.REGTYPE, linkname: str = "", content: bytes = b"x"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = type, linkname, len(content) if type == tarfile.REGTYPE else 0
    return member, content


STRANGERS = {
    "above": stranger("../escaped"),
    "absolute": stranger("/tmp/escaped"),
    "deep": stranger("indexes/../../escaped"),
    "symlink": stranger("indexes", tarfile.SYMTYPE, "/tmp"),
    "hardlink": stranger("control.db", tarfile.LNKTYPE, "/etc/passwd"),
    "device": stranger("zero", tarfile.CHRTYPE),
    "pipe": stranger("pipe", tarfile.FIFOTYPE),
    "folder": stranger("indexes", tarfile.DIRTYPE),
    "graph": stranger(f"indexes/{'0' * 32}/segments/1-{'0' * 32}/slots/0/graph.usearch"),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_member_that_no_backup_has_is_refused(name, archive, tmp_path):
    def add(member, content):
        yield member, content
        if member.name == MANIFEST:
            yield STRANGERS[name]

    with pytest.raises(BackupRefused, match="member"):
        restore(altered(archive, add), tmp_path / "inside" / "restored")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "inside").exists() or list((tmp_path / "inside").iterdir()) == []


@pytest.mark.parametrize("name", [name for name in STRANGERS if name not in {"symlink", "device", "pipe", "folder"}])
async def test_a_manifest_that_names_a_place_no_backup_has_is_refused(name, archive, tmp_path):
    alien, content = STRANGERS[name]

    def add(member, own):
        if member.name != MANIFEST:
            yield member, own
            return
        manifest = unpack_manifest(own)
        kept = KeptFile(path=alien.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        packed = pack_manifest(replace(manifest, files=(*manifest.files, kept)))
        member.size = len(packed)
        yield member, packed
        yield alien, content

    with pytest.raises(BackupRefused):
        restore(altered(archive, add), tmp_path / "inside" / "restored")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
async def test_a_named_member_that_is_no_plain_file_is_refused(type, archive, tmp_path):
    def swap(member, content):
        if member.name.startswith("control-"):
            yield stranger(member.name, type, "/etc/passwd", b"")
        else:
            yield member, content

    with pytest.raises(BackupRefused):
        restore(altered(archive, swap), tmp_path / "restored")


async def test_any_flipped_bit_in_an_archive_is_refused_or_harmless(archive, tmp_path):
    """Harmless are the paddings of tar, and its own notes of time and owner."""
    dice = random.Random(5)
    good = archive.read_bytes()
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        (tmp_path / "bad.tar").write_bytes(bad)
        try:
            restore(tmp_path / "bad.tar", tmp_path / "restored")
        except BackupRefused:
            refused += 1
            assert not (tmp_path / "restored").exists()
        else:
            assert contents(tmp_path / "restored") == contents(tmp_path / "restored")
            shutil.rmtree(tmp_path / "restored")
    assert refused


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
async def test_an_archive_that_was_cut_off_is_refused(share, archive, tmp_path):
    good = archive.read_bytes()
    with tarfile.open(archive) as opened:
        end = max(member.offset_data + member.size for member in opened.getmembers())
    (tmp_path / "bad.tar").write_bytes(good[: int(end * share)])

    with pytest.raises(BackupRefused):
        restore(tmp_path / "bad.tar", tmp_path / "restored")


async def test_a_database_with_a_trigger_is_refused(filled, small, tmp_path):
    target = tmp_path / "backup"
    manifest = await asyncio.to_thread(back_up, DataFolder(small.data), target, program="test")
    evil = next(file for file in manifest.files if "state-" in file.path)
    connection = connect(target / evil.path)
    connection.execute("CREATE TRIGGER evil AFTER UPDATE ON progress BEGIN DELETE FROM vectors; END")
    connection.commit()
    connection.close()
    content = (target / evil.path).read_bytes()
    changed = replace(evil, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    files = tuple(changed if file == evil else file for file in manifest.files)
    (target / MANIFEST).chmod(0o600)
    (target / MANIFEST).write_bytes(pack_manifest(replace(manifest, files=files)))

    with pytest.raises(BackupRefused, match="other tables"):
        restore(target, tmp_path / "restored")


async def test_nothing_is_restored_over_anything(archive, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(BackupRefused, match="not an empty folder"):
        restore(archive, tmp_path / "full")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackupRefused, match="not an empty folder"):
        restore(archive, tmp_path / "link")


def test_a_folder_with_anything_else_is_no_target(tmp_path, small):
    DataFolder(small.data).prepare()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()

    with pytest.raises(BackupRefused, match="not empty"):
        back_up(DataFolder(small.data), tmp_path / "photos", program="test")
    assert (tmp_path / "photos" / "cat.jpg").exists()


async def test_backups_under_load_are_each_of_one_moment(small, tmp_path):
    async with running_on(replace(small, seal_bytes=1, grace_ms=0, merge_idle_ms=50)) as running:
        spec = await running.index()
        writing = True

        async def write() -> None:
            number = 0
            while writing:
                # Each batch replaces all of the one before: a mixture of two moments would show.
                values = [[float(number), float(place), 1.0, 1.0] for place in range(50)]
                await running.upsert(spec, batch([f"v{place}" for place in range(50)], values))
                number += 1

        writer = asyncio.create_task(write())
        for turn in range(8):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(back_up, DataFolder(small.data), tmp_path / "backup", program="test")
            await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / f"restored-{turn}")
            async with running_on(replace(small, data=tmp_path / f"restored-{turn}")) as restored:
                own = restored.store.index(ACCOUNT, "docs")
                head = await restored.store.head(own)
                assert await restored.store.wait_applied(own, head, 60)
                found = await everything(restored)
                assert len({np.frombuffer(values, np.float32)[0] for values in found.values()}) == (1 if head else 0)
                assert len(found) == (50 if head else 0)
        writing = False
        await writer
