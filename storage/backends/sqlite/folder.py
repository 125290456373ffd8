"""Where everything lies under the data folder. User text never becomes part of a path.

control.db  workers.db  workers/<worker>.lock
indexes/<index>/{log.db, log.lock, HEAD, state.db, segments/<epoch>-<uuid>/}
trash/<index>/  quarantine/<index>-<uuid>/
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from storage.backends.sqlite.migrate import create, migrate
from storage.files import fsync_folder
from storage.records import IndexId
from storage.reserve import make_room_to_start

DRAFT_PREFIX = ".new-"


@dataclass(frozen=True, slots=True)
class IndexFolder:
    """The files of one index."""

    path: Path

    @property
    def log(self) -> Path:
        """The database of mutations."""
        return self.path / "log.db"

    @property
    def log_lock(self) -> Path:
        """Held by whoever appends, prunes or checkpoints."""
        return self.path / "log.lock"

    @property
    def witness(self) -> Path:
        """The newest mutation, remembered outside the database."""
        return self.path / "HEAD"

    @property
    def state(self) -> Path:
        """The database of what was applied."""
        return self.path / "state.db"

    @property
    def segments(self) -> Path:
        """The folder of segment folders."""
        return self.path / "segments"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The whole data folder."""

    path: Path

    @property
    def control(self) -> Path:
        """The catalogue."""
        return self.path / "control.db"

    @property
    def workers(self) -> Path:
        """The database of workers."""
        return self.path / "workers.db"

    @property
    def worker_locks(self) -> Path:
        """One lock file per worker."""
        return self.path / "workers"

    @property
    def indexes(self) -> Path:
        """One folder per index."""
        return self.path / "indexes"

    @property
    def trash(self) -> Path:
        """Folders of deleted indexes until nobody reads them."""
        return self.path / "trash"

    @property
    def quarantine(self) -> Path:
        """Folders that nobody names and that may hold what nothing else does; for a person to look at."""
        return self.path / "quarantine"

    def index(self, index: IndexId) -> IndexFolder:
        """The folder of one index, whether or not it exists."""
        return IndexFolder(self.indexes / index)

    def prepare(self) -> None:
        """Make what is missing, and migrate the databases that are not an index's."""
        for folder in (self.path, self.indexes, self.trash, self.worker_locks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_room_to_start(self.path)
        migrate(self.control, "control")
        migrate(self.workers, "workers")
        fsync_folder(self.path)


def create_index_folder(data: DataFolder, index: IndexId) -> None:
    """Make the folder of a new index, whole and on disk, or nothing under its name.

    A crash leaves a folder whose name begins with a dot; the worker removes it.
    """
    draft = IndexFolder(data.indexes / f"{DRAFT_PREFIX}{index}-{uuid.uuid4().hex[:8]}")
    try:
        draft.segments.mkdir(parents=True, mode=0o700)
        create(draft.log, "log")
        create(draft.state, "state")
        draft.log_lock.touch()
        fsync_folder(draft.path)
        draft.path.rename(data.index(index).path)
        fsync_folder(data.indexes)
    except BaseException:
        shutil.rmtree(draft.path, ignore_errors=True)
        raise
