"""Making a data folder from a backup, which may come from anybody.

Nothing is written outside the folder that is made: an archive is read member by member, only plain files that the
manifest names are taken, and where they go follows from the form of their name. Everything is compared with the
manifest before it is used, every database with the schema it must have, and every index is inspected. No graph is
read. The folder has its name only when all of that is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from storage.backends.sqlite.archive import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    BackupManifest,
    KeptFile,
    place_of,
    unpack_manifest,
)
from storage.backends.sqlite.catalogue import SELECT, SUM_SQL, is_as_written, row_sum
from storage.backends.sqlite.database import Reader, Statements, translated
from storage.backends.sqlite.driver import Connection, connect
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.inspection import Part, inspect_index
from storage.backends.sqlite.migrate import MIGRATIONS, NOTES, migrate, migrations, statements
from storage.backends.sqlite.point_in_time import bring_logs, cut_all
from storage.backends.sqlite.publishing import begin_anew
from storage.chain import Head, write_witness
from storage.errors import BackupRefused
from storage.files import TEMPORARY_PREFIX, fsync_folder, full_disk_told
from storage.records import MutationId, Sequence

_COPY_BYTES = 4 * 1024 * 1024


class _Files(Protocol):
    """The files of a backup, each once."""

    def manifest(self) -> bytes:
        """The manifest as it lies there."""

    def each(self, manifest: BackupManifest) -> Iterator[tuple[KeptFile, IO[bytes]]]:
        """Every file that the manifest names, open; what it does not name is refused or left."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path

    def manifest(self) -> bytes:
        with _open_plain(self.path / MANIFEST) as file:
            return file.read(MANIFEST_BYTES_MAX)

    def each(self, manifest: BackupManifest) -> Iterator[tuple[KeptFile, IO[bytes]]]:
        for kept in manifest.files:
            with _open_plain(self.path / kept.path) as file:
                yield kept, file


@dataclass(frozen=True, slots=True)
class _Archive:
    path: Path

    def manifest(self) -> bytes:
        with _opened(self.path) as archive:
            member = _next(archive)
            if member is None or member.name != MANIFEST or not _is_plain(member) or member.size > MANIFEST_BYTES_MAX:
                raise BackupRefused(f"{self.path} is no backup: it does not begin with {MANIFEST}")
            content = archive.extractfile(member)
            assert content is not None, "a plain file"
            return content.read()

    def each(self, manifest: BackupManifest) -> Iterator[tuple[KeptFile, IO[bytes]]]:
        left = dict(manifest.by_path)
        with _opened(self.path) as archive:
            _next(archive)
            while (member := _next(archive)) is not None:
                kept = left.pop(member.name, None)
                if kept is None or not _is_plain(member) or member.size != kept.bytes:
                    raise BackupRefused(
                        f"{self.path} has a member {member.name!r} that its manifest does not name so; "
                        "it was changed, or is none"
                    )
                content = archive.extractfile(member)
                assert content is not None, "a plain file"
                yield kept, content
        if left:
            raise BackupRefused(f"{self.path} lacks {min(left)}, which its manifest names")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """An archive. Opening it reads its first head already."""
    try:
        archive = tarfile.open(path, mode="r:")  # noqa: SIM115 (closed below)
    except (ValueError, OverflowError, RecursionError) as error:
        raise BackupRefused(f"{path} cannot be read as an archive: {error!r:.200}") from error
    with archive:
        yield archive


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member. Raises BackupRefused for a head that the reader of archives does not foresee."""
    try:
        return archive.next()
    except (ValueError, OverflowError, RecursionError) as error:
        raise BackupRefused(f"the backup cannot be read as an archive: {error!r:.200}") from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether what it has is what it takes: a sparse file of a kilobyte may be read as a terabyte."""
    return member.isreg() and not member.issparse()


def restore(backup: Path, target: Path, *, until: str = "", log_from: Path | None = None) -> BackupManifest:
    """Make the data folder `target`, which must not exist or be empty. Raises BackupRefused, StoreFull.

    `log_from`, a data folder or a newer backup, has the mutations since; `until` is the last one to be had.
    A crash or a refusal leaves a folder with the temporary prefix beside it at the most, and nothing under its name.
    """
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise BackupRefused(f"{target} exists and is not an empty folder; nothing is restored over anything")
    draft = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex}")
    try:
        manifest = unpack(backup, draft)
        if log_from is not None:
            with _logs(log_from, draft) as newer:
                bring_logs(newer, DataFolder(draft), manifest)
        finish(draft, manifest, until=until)
        with full_disk_told(target):
            if target.exists():
                target.rmdir()
            draft.rename(target)
        fsync_folder(target.absolute().parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return manifest


def unpack(backup: Path, draft: Path) -> BackupManifest:
    """Lay out the files of a backup as those of a data folder, each compared with the manifest."""
    files: _Files = _Folder(backup) if backup.is_dir() else _Archive(backup)
    try:
        manifest = unpack_manifest(files.manifest())
        with full_disk_told(draft):
            draft.mkdir(parents=True, mode=0o700)
        for kept, content in files.each(manifest):
            _take(kept, content, draft)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise BackupRefused(f"{backup} cannot be read as a backup: {error}") from error
    return manifest


@contextmanager
def _logs(source: Path, draft: Path) -> Iterator[DataFolder]:
    """A data folder as it is, or a backup laid out beside the draft for as long as it is needed."""
    if (source / "control.db").is_file():
        yield DataFolder(source)
        return
    beside = draft.with_name(f"{draft.name}-logs")
    try:
        unpack(source, beside)
        yield DataFolder(beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open_plain(path: Path) -> IO[bytes]:
    """A plain file of the backup: no link, no device, no pipe that never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise BackupRefused(f"{path} is not a plain file")
    return file


def _take(kept: KeptFile, content: IO[bytes], draft: Path) -> None:
    target = draft / place_of(kept.path)
    sha, left = hashlib.sha256(), kept.bytes
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with target.open("xb") as file:
            # One byte more than there should be, to see whether there is more.
            while block := content.read(min(_COPY_BYTES, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                file.write(block)
                sha.update(block)
            file.flush()
            os.fsync(file.fileno())
        target.chmod(0o600 if target.suffix == ".db" else 0o444)
    if left or sha.hexdigest() != kept.sha256:
        raise BackupRefused(f"{kept.path} is not what was backed up: its size or sha256 differs from the manifest")


def finish(draft: Path, manifest: BackupManifest, *, until: str = "") -> None:
    """Make what was laid out a data folder: check every database and index, forget who worked on it, migrate."""
    data = DataFolder(draft)
    check_schema(data.control, "control")
    migrate(data.control, "control")
    _check_catalogue(data, manifest)
    for index in manifest.indexes:
        folder = IndexFolder(data.indexes / index.id)
        check_schema(folder.log, "log")
        check_schema(folder.state, "state")
        folder.segments.mkdir(exist_ok=True, mode=0o700)
        migrate(folder.log, "log")
        migrate(folder.state, "state")
        _forget_owner(folder)
    if until:
        cut_all(data, manifest, until)
    for index in manifest.indexes:
        folder = IndexFolder(data.indexes / index.id)
        settle_witness(folder)
        for finding in inspect_index(folder):
            if finding.part is not Part.DERIVED:
                raise BackupRefused(f"index {index.name!r} of the backup is damaged: {finding.message}")
    data.prepare()
    for path in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
        fsync_folder(path)


def check_schema(path: Path, kind: str) -> None:
    """Refuse a database that has anything but the tables of a version of ours: a trigger would run with our rights."""
    with translated(path):
        connection = connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        try:
            connection.execute("PRAGMA trusted_schema=OFF").fetchall()
            connection.execute("PRAGMA cell_size_check=ON").fetchall()
            lines = [str(line) for (line,) in connection.execute("PRAGMA integrity_check").fetchall()]
            [(steps,)] = connection.execute("SELECT count(*) FROM migrations").fetchall()
            found = _schema(connection)
        finally:
            connection.close()
    if lines != ["ok"]:
        raise BackupRefused(f"{path.name} of the backup is damaged: {lines[0]}")
    if found != _expected(kind, int(steps)):
        raise BackupRefused(f"{path.name} of the backup has other tables than a {kind} database of ours has")


def _schema(connection: Connection) -> list[tuple[str, ...]]:
    return [
        tuple(str(value) for value in row)
        for row in connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name, tbl_name"
        ).fetchall()
    ]


def _expected(kind: str, steps: int) -> list[tuple[str, ...]]:
    connection = connect(":memory:", isolation_level=None)
    try:
        connection.execute(NOTES)
        for step in migrations(kind, MIGRATIONS)[:steps]:
            for statement in statements(step.sql):
                connection.execute(statement)
        return _schema(connection)
    finally:
        connection.close()


def _check_catalogue(data: DataFolder, manifest: BackupManifest) -> None:
    """The catalogue names the indexes that are there; those that were left out are marked deleted."""
    known = {index.id for index in manifest.indexes}
    with translated(data.control):
        connection = connect(f"{data.control.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        try:
            rows = connection.execute(SELECT).fetchall()
            live = {row[0] for row in rows if not row[-1]}
            damaged = {row[0] for row in rows if not is_as_written(row)}
            for id in (live | damaged) - known:
                connection.execute("UPDATE indexes SET deleted_us = max(modified_us, 1) WHERE id = ?", (id,))
                [row] = connection.execute(f"{SELECT} WHERE indexes.id = ?", (id,)).fetchall()
                connection.execute(SUM_SQL, (id, row_sum(row)))
        finally:
            connection.close()
    if damaged & known:
        raise BackupRefused(f"the catalogue of the backup is damaged in the row of index {min(damaged & known)}")
    if known - live:
        raise BackupRefused(f"the backup has an index {min(known - live)} that its catalogue does not name")


def _forget_owner(folder: IndexFolder) -> None:
    """Whoever held the index when it was backed up holds it no longer, and its graphs and columns are to be built."""
    with closing(_writer(folder.state)) as connection, translated(folder.state):
        connection.execute("BEGIN IMMEDIATE")
        begin_anew(Statements(connection))
        connection.execute("COMMIT")


def settle_witness(folder: IndexFolder) -> None:
    """Make HEAD say what the log says, and the files beside it what a new index has."""
    with closing(Reader(folder.log)) as reader:
        [row] = reader.rows("SELECT sequence, mutation_id, created_ms, chain, bytes_through FROM head")
    descriptor = os.open(folder.witness, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_witness(descriptor, Head(Sequence(row[0]), MutationId(row[1]), row[2], bytes(row[3]), row[4]))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    folder.log_lock.touch(mode=0o600)


def _writer(path: Path) -> Connection:
    with translated(path):
        connection = connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL").fetchall()
    return connection
