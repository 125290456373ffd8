"""`headrace backup` and `headrace restore`."""

from __future__ import annotations

import sys
from pathlib import Path

from service.commands.failure import EXIT_FAILED, CommandFailed
from service.version import VERSION
from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.restoring import restore
from storage.errors import StorageError
from storage.settings import Settings


def run_backup(settings: Settings, target: Path) -> int:
    """Back up and say what is in it; 1 when an index had to be left out. Raises CommandFailed."""
    try:
        manifest = back_up(DataFolder(settings.data), target, program=VERSION)
    except (StorageError, OSError) as error:
        raise CommandFailed(f"nothing was backed up: {error}") from error
    size = sum(file.bytes for file in manifest.files)
    for index in manifest.indexes:
        _say(f"{index.account}/{index.name}: {index.vectors} vectors, mutations up to {index.head_id or 'none'}")
    for left in manifest.left_out:
        sys.stderr.write(f"headrace: {left.account}/{left.name} is NOT in the backup: {left.reason}\n")
    _say(f"{len(manifest.indexes)} indexes in {len(manifest.files)} files, {size:,} bytes, are in {target}")
    return EXIT_FAILED if manifest.left_out else 0


def run_restore(backup: Path, target: Path, *, until: str, log_from: Path | None) -> int:
    """Restore and say what is there now; returns 0. Raises CommandFailed."""
    try:
        manifest = restore(backup, target, until=until, log_from=log_from)
    except (StorageError, OSError) as error:
        raise CommandFailed(f"nothing was restored: {error}") from error
    for index in manifest.indexes:
        _say(f"{index.account}/{index.name}: in the backup up to mutation {index.head_id or 'none'}")
    for left in manifest.left_out:
        sys.stderr.write(f"headrace: {left.account}/{left.name} was left out of the backup: {left.reason}\n")
    if until:
        _say(f"everything up to mutation {until}, and nothing after it, is applied once a worker runs")
    _say(f"{len(manifest.indexes)} indexes are in {target}; graphs are built again while it runs")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
