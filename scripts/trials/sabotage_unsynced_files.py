"""A build that is broken on purpose: files of segments are written and named, and nobody waits for the disk."""

from __future__ import annotations

import os
from typing import Any

import storage.files


class _WithoutFsync:
    """The module `os` as `storage.files` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, _descriptor: int) -> None:
        """Say that it is on disk."""


storage.files.os = _WithoutFsync()  # type: ignore[assignment]
