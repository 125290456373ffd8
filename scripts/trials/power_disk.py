"""A file system of its own on a loop device, whose power can be cut: what was not synced is gone then."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from scripts.trials.crash_processes import wait_gone

SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN, of XFS first, and of ext4 as well."""
NOLOGFLUSH = 2
BYTES = 320 * 1024 * 1024
"""XFS takes no less than 300 MB; the file has holes."""
HELD_S = 300.0
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}


class Disk:
    """A mounted file system. `path` is where; `close` leaves nothing of it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.path = folder / "mounted"
        self._is_mounted = False
        self._file = folder / "disk"
        with self._file.open("wb") as file:
            file.truncate(BYTES)
        _do(*MAKE[kind], str(self._file))
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        """Make it usable again, after a cut as after a restart of the machine. Raises Broken."""
        wait_gone("the file system that was shut down", self._is_mounted_anew, patience_s=HELD_S)

    def _is_mounted_anew(self) -> bool:
        _do("mount", "-o", "loop", str(self._file), str(self.path))
        self._is_mounted = True
        probe = self.path / "probe"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError:
            # Somebody holds the one that was shut down, as a namespace of mounts made meanwhile does: mounted again it
            # is the same, and still without power.
            self.unmount()
            return False
        return True

    def cut(self) -> None:
        """Cut the power: no write reaches the device any more, nor the journal of the file system."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Every process that uses it is killed; it may not be gone yet."""
        wait_gone("what uses the disk", lambda: _tried("umount", str(self.path)))
        self._is_mounted = False

    def close(self) -> None:
        """Leave nothing behind."""
        if self._is_mounted and not _tried("umount", str(self.path)):
            _tried("umount", "-l", str(self.path))
        self._file.unlink(missing_ok=True)


def missing(kind: str, folder: Path) -> str:
    """What a trial on this kind of file system lacks here; "" for nothing."""
    if os.geteuid() != 0:
        return "needs root, to mount loop devices"
    if shutil.which(MAKE[kind][0]) is None:
        return f"needs {MAKE[kind][0]}"
    try:
        disk = Disk(folder, kind)
    except subprocess.CalledProcessError as error:
        return f"needs loop devices and {kind} in the kernel: {error.stderr.strip()[-200:]}"
    try:
        disk.cut()
    except OSError as error:
        return f"needs the shutdown ioctl of {kind}: {error.strerror}"
    finally:
        disk.close()
    return ""


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _tried(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
