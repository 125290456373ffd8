"""A build that is broken on purpose: files of segments are written and named, and nobody waits for the disk.

Backups use the same functions and are left as they are, or a part that takes some would notice those instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import storage.files
from storage.backends.sqlite import backup


class _WithoutFsync:
    """The module `os` as `storage.files` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, _descriptor: int) -> None:
        """Say that it is on disk."""


def _sound(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        storage.files.os = os
        try:
            return function(*values)
        finally:
            storage.files.os = _WithoutFsync()  # type: ignore[assignment]

    return call


storage.files.os = _WithoutFsync()  # type: ignore[assignment]
backup.write_whole = _sound(backup.write_whole)
backup.fsync_folder = _sound(backup.fsync_folder)
