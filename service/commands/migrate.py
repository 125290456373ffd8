"""`headrace migrate`: every database of a data folder, ahead of the start that would do it anyway."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from service.commands.failure import CommandFailed
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.migrate import migrate
from storage.errors import StorageError
from storage.settings import Settings


def migrate_all(settings: Settings) -> int:
    """Migrate what is there and say what was done; returns 0. Raises CommandFailed at the first failure.

    Each step is a transaction of its own: after a failure or a crash, run it again.
    """
    if not settings.data.is_dir():
        raise CommandFailed(f"there is no data folder {settings.data}; name it with --data")
    databases = steps = 0
    for path, kind in _databases(DataFolder(settings.data)):
        try:
            steps += migrate(path, kind)
        except StorageError as error:
            raise CommandFailed(f"{path} was not migrated: {error}") from error
        databases += 1
    sys.stdout.write(f"{databases} databases in {settings.data} are up to date, after {steps} migrations\n")
    return 0


def _databases(folder: DataFolder) -> Iterator[tuple[Path, str]]:
    """Those that exist: the catalogue first, because readiness waits for nothing else."""
    found = [(folder.control, "control"), (folder.workers, "workers")]
    for index in sorted(folder.indexes.glob("*/log.db")):
        found += [(index, "log"), (index.with_name("state.db"), "state")]
    return ((path, kind) for path, kind in found if path.is_file())
