"""`headrace doctor`: everything checked, said plainly, and, when told to, salvaged."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import closing
from pathlib import Path

from service.commands.failure import EXIT_FAILED, CommandFailed
from storage.backends.sqlite.catalogue import SELECT, check_row
from storage.backends.sqlite.database import Reader, Row
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.inspection import Part, inspect_index, structure
from storage.backends.sqlite.migrate import is_current
from storage.backends.sqlite.salvage import salvage
from storage.backends.sqlite.tokens import damaged_tokens
from storage.errors import StorageError
from storage.records import IndexConfig, Metric
from storage.settings import Settings

ADVICE = {
    Part.LOG: "The log takes no writes until this is mended.",
    Part.WITNESS: "The log is whole; only the file that guards its end is not.",
    Part.STATE: "Nothing is answered from this state. It can be made again from segments and log.",
    Part.SEGMENT: "Queries of this index are refused. The vectors named can be written again.",
    Part.DERIVED: "This heals by itself while a worker runs; exact scans answer until then.",
}


def run_doctor(settings: Settings, *, mend: bool) -> int:
    """Check everything; 0 when all is well, or was salvaged whole. Raises CommandFailed."""
    data = DataFolder(settings.data)
    if not data.control.is_file():
        raise CommandFailed(f"{data.path} is no data folder: it has no {data.control.name}")
    if mend and _is_in_use(data):
        raise CommandFailed("a worker is using the data folder; stop Headrace, then run doctor --salvage again")
    try:
        if not is_current(data.control, "control"):
            raise CommandFailed(f"{data.path} was written by an older Headrace; run `headrace migrate` first")
        with closing(Reader(data.control)) as reader:
            wrong = [*(f"control.db: {line}" for line in structure(reader)), *damaged_tokens(reader)]
            rows = reader.rows(f"{SELECT} ORDER BY account, indexes.name")
    except StorageError as error:
        raise CommandFailed(f"the catalogue cannot be read, restore it from a backup: {error}") from error
    for row in rows:
        try:
            check_row(row)
        except StorageError as error:
            wrong.append(str(error))
    rows = [row for row in rows if not row[-1]]
    for line in wrong:
        _say(f"catalogue: DAMAGED\n    {line}")
    ill = len(wrong)
    for row in rows:
        ill += _index(data, row, settings, mend=mend)
    for folder in sorted(data.quarantine.glob("*")):
        _say(f"in quarantine, for you to remove: {folder}")
    _say(f"{len(rows)} indexes checked, {ill or 'nothing'} damaged")
    return EXIT_FAILED if ill else 0


def _index(data: DataFolder, row: Row, settings: Settings, *, mend: bool) -> int:
    """Say how one index is; 1 when it is damaged, and was not salvaged without a loss."""
    id, account, name = row[0], row[1], row[2]
    findings = inspect_index(IndexFolder(data.indexes / id))
    if not findings:
        _say(f"{account}/{name}: whole")
        return 0
    if all(finding.is_unbuilt for finding in findings):
        segments = len({finding.segment for finding in findings})
        _say(f"{account}/{name}: whole; graphs and columns of {segments} segments are to be built, as after a restore")
        _say(f"    {ADVICE[Part.DERIVED]}")
        return 0
    _say(f"{account}/{name}: DAMAGED ({id})")
    for finding in findings:
        _say(f"    {finding.part}: {finding.message}")
    for part in dict.fromkeys(finding.part for finding in findings):
        _say(f"    {ADVICE[part]}")
    if not mend:
        return 1
    if all(finding.part is Part.DERIVED for finding in findings):
        return 0
    return _salvage(data, row, settings)


def _salvage(data: DataFolder, row: Row, settings: Settings) -> int:
    config = IndexConfig(dimensions=row[4], metric=Metric(row[5]), preset=row[6])
    try:
        told = salvage(data, row[0], config, graph_rows_min=settings.graph_rows_min)
    except (StorageError, OSError, ValueError) as error:
        _say(f"    NOT salvaged, nothing was changed: {error}")
        return 1
    for lost in told.lost:
        _say(f"    LOST: {lost}")
    _say(f"    salvaged{'' if told.lost else ' without a loss'}; the damaged folder is {told.quarantine}")
    return 1 if told.lost else 0


def _is_in_use(data: DataFolder) -> bool:
    """Whether a worker lives: it holds the lock of its file."""
    return any(_is_held(path) for path in data.worker_locks.glob("*.lock"))


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
