"""The runtime folder: sockets and metrics files of the processes that share one data folder.

It is not the data folder, because the path of a UNIX socket has about 108 bytes and the data folder may be
deep or on a file system without sockets. Everything in it may vanish at any time; nothing durable belongs
here.

A supervisor is `present`: it holds a shared lock on the folder itself. The last one to leave takes the folder away, and
one that starts at that moment makes it anew. One that is killed takes nothing away, so each start takes away what is
left of others.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.files import lock_at_once

FOLDER_BYTES_MAX = 64
"""What leaves a socket's own name over 35 bytes below the limit of 100 that every platform keeps."""


ABANDONED_S = 3600.0
"""A folder that nobody answers from is one that is being made, or waits for a restart, unless it is older than this."""
METRICS = "metrics"
_HEAD_BYTES = 8
"""What an empty metrics file has."""
_NAME = re.compile("headrace-([0-9]+)-[0-9a-f]{16}")


class RuntimeFolderInvalid(Exception):
    """The runtime folder is there but is not ours alone; the message says what to do."""


def runtime_folder(data: Path) -> Path:
    """The folder for the processes on `data`: one for all of them, private to this user, made when missing.

    Raises RuntimeFolderInvalid when something else has its name: in a shared temporary folder anybody can
    make one, and whoever owns the folder can answer our doorbells.
    """
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    name = f"headrace-{os.getuid()}-{digest}"
    folder = _temporary().resolve() / name
    if len(os.fsencode(folder)) > FOLDER_BYTES_MAX:
        folder = Path("/tmp") / name  # noqa: S108 (private by mode, and the owner is checked below)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder.lstat()):
        raise RuntimeFolderInvalid(
            f"{folder} should be a folder that only this user can enter; it is not: remove it and start again"
        )
    return folder


def _temporary() -> Path:
    """The folder for temporary files, full or not: `tempfile` looks for one that has room, and so every process of a
    data folder might find another.
    """
    for name in (os.environ.get("TMPDIR"), "/tmp"):  # noqa: S108 (as above)
        if name and Path(name).is_dir() and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    return Path(tempfile.gettempdir())


@contextmanager
def present(data: Path) -> Iterator[Path]:
    """Keep the runtime folder for the block, and give the folder in it that metrics are added up from.

    Raises RuntimeFolderInvalid.
    """
    descriptor = _enter(data)
    try:
        metrics = runtime_folder(data) / METRICS
        metrics.mkdir(mode=0o700, exist_ok=True)
        clear_stale_metrics(metrics)
        yield metrics
    finally:
        os.close(descriptor)
        leave(data)


def _enter(data: Path) -> int:
    """Lock the folder, shared with others; the descriptor that has the lock."""
    while True:
        # Whoever has left may take the folder away until it is locked.
        with suppress(FileNotFoundError):
            folder = runtime_folder(data)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(descriptor), folder.lstat()):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Whether nobody is present in a folder; then nobody enters it during the block. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield lock_at_once(descriptor)
    finally:
        os.close(descriptor)


def clear_stale_metrics(folder: Path) -> None:
    """Remove the metrics files of processes that are gone.

    Those of living ones stay: a second `headrace work` on the same data must not blind the first. A number
    that was given to another process meanwhile leaves one stale file behind, which the next start removes.
    """
    for file in folder.glob("*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not pid.isdecimal() or not _alive(int(pid)):
            file.unlink(missing_ok=True)


def give_back_metrics_room(folder: Path, pid: int) -> None:
    """Cut the metrics files of a process that has ended to what they hold, which goes on being counted.

    They were made larger than any process needs (see `storage.telemetry`), and every restart leaves two behind.
    """
    for file in folder.glob(f"*_{pid}.db"):
        with suppress(OSError), file.open("r+b") as opened:
            # A file begins with how much of it is used, these bytes included.
            used = int.from_bytes(opened.read(4), sys.byteorder)
            opened.truncate(min(max(used, _HEAD_BYTES), file.stat().st_size))


def leave(data: Path) -> None:
    """Remove the runtime folder unless somebody is still in it: one who is present, a socket or a metrics file."""
    folder = runtime_folder(data)
    with suppress(OSError), _alone_in(folder) as is_alone:
        if is_alone:
            clear_stale_metrics(folder / METRICS)
            for empty in (folder / METRICS, folder):
                with suppress(OSError):
                    empty.rmdir()


def sweep_abandoned(data: Path) -> int:
    """Remove the runtime folders of processes that were killed, whatever their data; returns how many went.

    A wish: what cannot be removed stays, as does everything whose name is not of ours.
    """
    removed = 0
    # A folder for temporary files need not be one that can be listed.
    with suppress(OSError), os.scandir(runtime_folder(data).parent) as entries:
        for entry in entries:
            found = _NAME.fullmatch(entry.name)
            if found is not None and int(found[1]) == os.getuid():
                removed += _remove_abandoned(Path(entry.path))
    return removed


def _remove_abandoned(folder: Path) -> bool:
    try:
        with _alone_in(folder) as is_alone:
            if not is_alone or not _is_abandoned(folder):
                return False
            _remove(folder)
    except OSError:
        return False
    return True


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody has been in a folder for a while: no process is alive, and no bell rings.

    Neither would do alone: a number may be that of another process by now, or of one in another container.
    """
    found = folder.lstat()
    if not _is_private(found) or time.time() - found.st_mtime < ABANDONED_S:
        return False
    bells = list(folder.glob("*-*-*.sock"))
    pids = [bell.stem.split("-")[1] for bell in bells]
    pids += [file.stem.rpartition("_")[2] for file in folder.glob("metrics/*_*.db")]
    return not any(pid.isdecimal() and _alive(int(pid)) for pid in pids) and not any(map(_rings, bells))


def _rings(bell: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        try:
            ours.connect(str(bell))
        except ConnectionRefusedError:
            return False
    return True


def _remove(folder: Path) -> None:
    """Remove what we know; a folder with anything else in it stays. Raises OSError."""
    for file in (*folder.glob("*-*-*.sock"), *folder.glob("metrics/*_*.db")):
        file.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        (folder / METRICS).rmdir()
    folder.rmdir()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
