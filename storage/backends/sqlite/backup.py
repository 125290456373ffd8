"""Backing up a data folder while services and workers use it.

For each index the state is copied first, in one read transaction, then the files of every segment it names are
opened, then the log is copied: nothing that a manifest names goes before the grace period, and what is missing all the
same means that the manifest was old, so the index is begun anew. Databases are copied by SQLite, never as files. What
was copied is inspected like a live index, so damage is not carried into a backup: that index is left out and named.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import xxhash

from storage.backends.sqlite.archive import (
    MANIFEST,
    SEGMENT_FILES,
    BackupManifest,
    KeptFile,
    KeptIndex,
    LeftOut,
    pack_manifest,
    unpack_manifest,
)
from storage.backends.sqlite.catalogue import SELECT, check_row
from storage.backends.sqlite.database import Reader, Row, translated
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.inspection import HEAD_SQL, Part, inspect_log, inspect_state
from storage.backends.sqlite.migrate import is_current
from storage.backends.sqlite.state import Manifest, SegmentRow
from storage.errors import BackupRefused, SegmentDamaged, StateDamaged, StorageError, StoreBusy
from storage.files import TEMPORARY_PREFIX, fsync_folder, full_disk_told, write_whole
from storage.segment import format as layout
from storage.segment.format import unpack_document

TRIES_MAX = 5
_COPY_BYTES = 4 * 1024 * 1024
LIVE_SQL = "SELECT id, account, name FROM indexes WHERE deleted_us = 0 ORDER BY account, name"


@dataclass(frozen=True, slots=True)
class _Moved(Exception):
    """What was copied so far is of an older manifest: begin anew."""

    reason: str


def back_up(data: DataFolder, target: Path, *, program: str) -> BackupManifest:
    """Back up every live index into a folder, or into one archive where the name ends in `.tar`.

    A folder that holds a backup is brought up to date: what never changes is not copied again. Until the manifest is
    replaced, at the end, the backup before it is whole. Raises BackupRefused, StoreFull, StateDamaged.
    """
    if not data.control.is_file():
        raise StateDamaged(f"{data.path} is no data folder: it has no {data.control.name}")
    if not is_current(data.control, "control"):
        raise StateDamaged(f"{data.control} was written by an older Headrace; run `headrace migrate` first")
    if target.suffix != ".tar":
        return _into_folder(data, target, program)
    staging = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex}")
    try:
        manifest = _into_folder(data, staging, program)
        _pack(staging, manifest, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _into_folder(data: DataFolder, target: Path, program: str) -> BackupManifest:
    with full_disk_told(target):
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(target):
        old = _existing(target)
        copying = _Copying(data, target, old, uuid.uuid4().hex)
        copying.all()
        manifest = BackupManifest(
            created_ms=time.time_ns() // 1_000_000,
            program=program,
            files=tuple(copying.files),
            indexes=tuple(copying.indexes),
            left_out=tuple(copying.left_out),
        )
        _sync_folders(target)
        write_whole(target / MANIFEST, pack_manifest(manifest))
        _remove_others(target, manifest)
    return manifest


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One backup at a time into a folder."""
    descriptor = os.open(target / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreBusy(f"another backup into {target} is running; try again when it has ended") from error
    finally:
        os.close(descriptor)


def _existing(target: Path) -> BackupManifest | None:
    """The backup that is there. A folder with anything else is refused: what no manifest names is removed."""
    try:
        content = (target / MANIFEST).read_bytes()
    except FileNotFoundError:
        strangers = [path.name for path in target.iterdir() if path.name != ".lock" and not _is_ours(path.name)]
        if strangers:
            raise BackupRefused(
                f"{target} is not empty and holds no backup ({strangers[0]!r}); name another folder"
            ) from None
        return None
    return unpack_manifest(content)


def _is_ours(name: str) -> bool:
    """Whether an interrupted first backup may have left it."""
    return name in {"indexes", MANIFEST} or name.startswith(("control-", TEMPORARY_PREFIX))


class _Copying:
    """One backup on its way into a folder."""

    def __init__(self, data: DataFolder, target: Path, old: BackupManifest | None, generation: str) -> None:
        self._data = data
        self._target = target
        self._old = old
        self._generation = generation
        self.files: list[KeptFile] = []
        self.indexes: list[KeptIndex] = []
        self.left_out: list[LeftOut] = []

    def all(self) -> None:
        """Copy the catalogue, then every index that lives in the copy."""
        control = f"control-{self._generation}.db"
        self.files.append(self._copy_database(self._data.control, control))
        with closing(Reader(self._target / control)) as reader:
            live = reader.rows(LIVE_SQL)
            self._leave_out_damaged(reader.rows(SELECT))
        damaged = {one.id for one in self.left_out}
        for id, account, name in live:
            if id in damaged:
                continue
            try:
                kept, files = self._index(id, account, name)
            except StorageError as error:
                if not self._lives(id):
                    continue  # It was deleted meanwhile; restoring finds no folder and leaves it out.
                self.left_out.append(LeftOut(id=id, account=account, name=name, reason=str(error)))
                continue
            self.indexes.append(kept)
            self.files += files

    def _leave_out_damaged(self, rows: list[Row]) -> None:
        """What the catalogue says of an index may be wrong, and that it was deleted as well."""
        for row in rows:
            try:
                check_row(row)
            except StateDamaged as error:
                self.left_out.append(LeftOut(id=row[0], account=row[1], name=row[2], reason=str(error)))

    def _lives(self, id: str) -> bool:
        with closing(Reader(self._data.control)) as reader:
            return bool(reader.rows("SELECT 1 FROM indexes WHERE id = ? AND deleted_us = 0", (id,)))

    def _index(self, id: str, account: str, name: str) -> tuple[KeptIndex, list[KeptFile]]:
        folder = IndexFolder(self._data.indexes / id)
        reason = ""
        for _ in range(TRIES_MAX):
            try:
                return self._index_once(folder, id, account, name)
            except _Moved as moved:
                reason = moved.reason
        raise StateDamaged(f"{TRIES_MAX} manifests in a row named what does not exist: {reason}")

    def _index_once(self, folder: IndexFolder, id: str, account: str, name: str) -> tuple[KeptIndex, list[KeptFile]]:
        state_path = f"indexes/{id}/state-{self._generation}.db"
        log_path = f"indexes/{id}/log-{self._generation}.db"
        files = [self._copy_database(folder.state, state_path)]
        manifest, findings = inspect_state(self._target / state_path, deep=False)
        with contextlib.ExitStack() as opened:
            segments = [self._open_segment(opened, folder, row) for row in manifest.segments]
            files.append(self._copy_database(folder.log, log_path))
            head, head_id, pruned_through = _head(self._target / log_path)
            if pruned_through > manifest.state.sealed_through:
                raise _Moved(f"the log was pruned through {pruned_through}")
            findings += inspect_log(self._target / log_path, manifest, None, deep=False)
            for finding in findings:
                if finding.part is not Part.WITNESS:
                    raise StateDamaged(finding.message)
            for segment in segments:
                files += segment.copy()
        return _kept(id, account, name, head, head_id, manifest), files

    def _copy_database(self, source: Path, path: str) -> KeptFile:
        """Let SQLite write a copy as of one moment; only the copy is ever read as a file."""
        target = self._target / path
        with full_disk_told(target):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        target.unlink(missing_ok=True)
        with translated(source):
            connection = connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
            try:
                connection.execute("PRAGMA busy_timeout=5000").fetchall()
                connection.execute("VACUUM INTO ?", (str(target.absolute()),)).fetchall()
            finally:
                connection.close()
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            return _summed(descriptor, path)
        finally:
            os.close(descriptor)

    def _open_segment(self, opened: contextlib.ExitStack, folder: IndexFolder, row: SegmentRow) -> _Segment:
        """Hold the files of a segment that has to be copied, so that they can be read whoever unlinks them."""
        path = f"indexes/{folder.path.name}/segments/{row.name}"
        old = self._kept_before(path, row)
        if old is not None:
            return _Segment(self._target, path, row, {}, old)
        descriptors: dict[str, int] = {}
        for file in SEGMENT_FILES:
            try:
                descriptor = os.open(folder.segments / row.name / file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError as error:
                if (folder.segments / row.name / layout.DOCUMENT).exists():
                    raise SegmentDamaged(f"segment {row.name}: {file} is missing") from error
                raise _Moved(f"segment {row.name} is gone") from error
            opened.callback(os.close, descriptor)
            descriptors[file] = descriptor
        return _Segment(self._target, path, row, descriptors, ())

    def _kept_before(self, path: str, row: SegmentRow) -> tuple[KeptFile, ...] | None:
        """The files of a segment that are in the folder already, whole; they are hashed again, for disks forget."""
        if self._old is None:
            return None
        kept = [self._old.by_path.get(f"{path}/{file}") for file in SEGMENT_FILES]
        found = tuple(file for file in kept if file is not None)
        if len(found) != len(SEGMENT_FILES) or not all(_is_whole(self._target, file) for file in found):
            return None
        if xxhash.xxh3_128_hexdigest((self._target / found[0].path).read_bytes()) != row.checksum:
            return None
        return found


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment of a backup: files to copy, or files that are there."""

    target: Path
    path: str
    row: SegmentRow
    descriptors: dict[str, int]
    old: tuple[KeptFile, ...]

    def copy(self) -> list[KeptFile]:
        """Copy what is not there. Raises SegmentDamaged where a file is not what was written."""
        if not self.descriptors:
            return list(self.old)
        folder = self.target / self.path
        content = _content(self.descriptors[layout.DOCUMENT])
        if xxhash.xxh3_128_hexdigest(content) != self.row.checksum:
            raise SegmentDamaged(f"segment {self.row.name}: {layout.DOCUMENT} is not what was written")
        known = unpack_document(content).files
        shutil.rmtree(folder, ignore_errors=True)
        with full_disk_told(folder):
            (folder / layout.SLOT).mkdir(parents=True, mode=0o700)
        kept = []
        for file, descriptor in self.descriptors.items():
            one, checksum = _copy_file(descriptor, folder / file, f"{self.path}/{file}")
            if file != layout.DOCUMENT and checksum != known[file].checksum:
                raise SegmentDamaged(
                    f"segment {self.row.name}: {file} is not what was written; `headrace doctor` names the vectors"
                )
            kept.append(one)
        return kept


def _head(path: Path) -> tuple[int, str, int]:
    with closing(Reader(path)) as reader:
        [row] = reader.rows(HEAD_SQL)
    return row[0], row[1], row[5]


def _kept(id: str, account: str, name: str, head: int, head_id: str, manifest: Manifest) -> KeptIndex:
    return KeptIndex(
        id=id,
        account=account,
        name=name,
        head=head,
        head_id=head_id,
        applied=manifest.state.applied,
        applied_id=manifest.state.applied_id,
        vectors=manifest.state.vectors,
    )


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _copy_file(descriptor: int, target: Path, path: str) -> tuple[KeptFile, str]:
    """Copy a file that is open, onto the disk; its sums are of what was read."""
    sha, xxh, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with full_disk_told(target), target.open("xb") as file:
        while block := os.pread(descriptor, _COPY_BYTES, size):
            file.write(block)
            sha.update(block)
            xxh.update(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o400)
    return KeptFile(path=path, bytes=size, sha256=sha.hexdigest()), xxh.hexdigest()


def _summed(descriptor: int, path: str) -> KeptFile:
    sha, size = hashlib.sha256(), 0
    while block := os.pread(descriptor, _COPY_BYTES, size):
        sha.update(block)
        size += len(block)
    return KeptFile(path=path, bytes=size, sha256=sha.hexdigest())


def _is_whole(target: Path, file: KeptFile) -> bool:
    try:
        descriptor = os.open(target / file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _summed(descriptor, file.path) == file
    finally:
        os.close(descriptor)


def _sync_folders(target: Path) -> None:
    for folder in (*(path for path in target.rglob("*") if path.is_dir()), target):
        fsync_folder(folder)


def _remove_others(target: Path, manifest: BackupManifest) -> None:
    """Remove what an older backup or an interrupted one left."""
    kept = {target / file.path for file in manifest.files} | {target / MANIFEST, target / ".lock"}
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()  # Where something is left in it, it stays.
        elif path not in kept:
            path.unlink()


def _pack(folder: Path, manifest: BackupManifest, target: Path) -> None:
    """One archive of a folder, with the manifest first, in place when it is on disk."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with full_disk_told(target), temporary.open("xb") as file:
            temporary.chmod(0o600)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for path in (MANIFEST, *(one.path for one in manifest.files)):
                    archive.add(folder / path, arcname=path, recursive=False, filter=_anonymous)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
        fsync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member
