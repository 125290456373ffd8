"""A restored folder as of one mutation: newer logs put behind the state of a backup, and logs cut off.

A state can be moved forward only: the worker applies what the log has behind it. So a point before the backup needs an
older backup, and the log of a newer one or of the data folder itself, which has the mutations in between for as long as
`log_retain_ms` says. Ids of mutations ascend with time, so one of them names a moment for every index.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from storage.backends.sqlite.archive import BackupManifest
from storage.backends.sqlite.database import Reader, Statements, translated
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.migrate import migrate
from storage.backends.sqlite.state import State, StateReader
from storage.errors import BackupRefused
from storage.files import TEMPORARY_PREFIX
from storage.records import Action

HEAD_SQL = "SELECT sequence, mutation_id, pruned_through FROM head"


def bring_logs(source: DataFolder, draft: DataFolder, manifest: BackupManifest) -> None:
    """Put the logs of a data folder in the place of those of a backup. Raises BackupRefused where one does not follow.

    The source may be in use: its logs are copied by SQLite.
    """
    for index in manifest.indexes:
        newer = source.indexes / index.id / "log.db"
        folder = IndexFolder(draft.indexes / index.id)
        if not newer.is_file():
            continue  # It was deleted since; it is restored as it was in the backup.
        copy = folder.path / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        with translated(newer), closing(connect(f"{newer.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("PRAGMA busy_timeout=5000").fetchall()
            connection.execute("VACUUM INTO ?", (str(copy.absolute()),)).fetchall()
        _check_follows(index.name, copy, _state(folder))
        for suffix in ("", "-wal", "-shm"):
            Path(f"{folder.log}{suffix}").unlink(missing_ok=True)
        copy.rename(folder.log)


def _check_follows(name: str, log: Path, state: State) -> None:
    """The log must have what the state has applied last, and every body behind what it has sealed."""
    with closing(Reader(log)) as reader:
        rows = reader.rows("SELECT chain FROM mutations WHERE sequence = ?", (state.applied,))
        [(head, _, pruned_through)] = reader.rows(HEAD_SQL)
    if state.applied and (not rows or bytes(rows[0][0]) != state.applied_chain or head < state.applied):
        raise BackupRefused(
            f"the newer log of index {name!r} does not follow from the backup: mutation {state.applied} "
            f"({state.applied_id}) is not in it, or another is"
        )
    if pruned_through > state.sealed_through:
        raise BackupRefused(
            f"the newer log of index {name!r} has bodies from mutation {pruned_through + 1} only, and the backup ends "
            f"at {state.sealed_through}: `log_retain_ms` was too short; take a newer backup"
        )


def cut_all(draft: DataFolder, manifest: BackupManifest, until: str) -> None:
    """Cut every log off behind a mutation, which one of them must have. Raises BackupRefused, changing nothing."""
    folders = [(index.name, IndexFolder(draft.indexes / index.id)) for index in manifest.indexes]
    if not any(_has(folder, until) for _, folder in folders):
        raise BackupRefused(f"no log has mutation {until}; it is newer than the logs, too old, or not one of this data")
    for name, folder in folders:
        _cut(name, folder, until)


def _has(folder: IndexFolder, mutation: str) -> bool:
    with closing(Reader(folder.log)) as reader:
        return bool(reader.rows("SELECT 1 FROM mutations WHERE mutation_id = ?", (mutation,)))


def _cut(name: str, folder: IndexFolder, until: str) -> None:
    state = _state(folder)
    with closing(Reader(folder.log)) as reader:
        [(last,)] = reader.rows("SELECT coalesce(max(sequence), 0) FROM mutations WHERE mutation_id <= ?", (until,))
        [(head, head_id, pruned_through)] = reader.rows(HEAD_SQL)
    if head_id <= until:
        return
    if state.applied_id > until:
        if pruned_through:
            raise BackupRefused(
                f"index {name!r} of the backup has applied mutation {state.applied_id} already; restore an older "
                "backup, with the log of this one (--log-from)"
            )
        _begin_empty(folder)
    with translated(folder.log), closing(connect(folder.log, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        statements = Statements(connection)
        gone = statements.rows("SELECT action, metadata_index FROM mutations WHERE sequence > ?", (last,))
        _undo_metadata_indexes(statements, gone[::-1])
        for table in ("bodies", "idempotency", "mutations"):
            statements.rows(f"DELETE FROM {table} WHERE sequence > ?", (last,))  # noqa: S608
        if last:
            statements.rows(
                "UPDATE head SET (sequence, mutation_id, created_ms, chain, bytes_through) = "
                "(SELECT sequence, mutation_id, created_ms, chain, bytes_through FROM mutations WHERE sequence = ?)",
                (last,),
            )
        else:
            statements.rows(
                "UPDATE head SET sequence = 0, mutation_id = '', created_ms = 0, chain = zeroblob(32), "
                "bytes_through = 0"
            )
        connection.execute("COMMIT")
    assert last <= head


def _undo_metadata_indexes(statements: Statements, gone: Iterable[tuple[str, int]]) -> None:
    """The accepted metadata indexes as they were before mutations, which come newest first."""
    for action, metadata_index in gone:
        if action == Action.CREATE_METADATA_INDEX and metadata_index:
            statements.rows("DELETE FROM metadata_indexes WHERE id = ?", (metadata_index,))
        elif action == Action.DELETE_METADATA_INDEX and metadata_index:
            statements.rows("UPDATE metadata_indexes SET deleted = 0 WHERE id = ?", (metadata_index,))


def _begin_empty(folder: IndexFolder) -> None:
    """The log has everything from the first mutation on: let all of it be applied again."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{folder.state}{suffix}").unlink(missing_ok=True)
    shutil.rmtree(folder.segments)
    folder.segments.mkdir(mode=0o700)
    migrate(folder.state, "state")


def _state(folder: IndexFolder) -> State:
    with closing(StateReader(Reader(folder.state))) as reader:
        return reader.state()
