"""A build that is broken on purpose: commits do not wait for the disk (`synchronous=NORMAL`)."""

from __future__ import annotations

from storage.backends.sqlite import database

database.PRAGMAS = tuple(one.replace("synchronous=FULL", "synchronous=NORMAL") for one in database.PRAGMAS)  # type: ignore[assignment]
assert "PRAGMA synchronous=NORMAL" in database.PRAGMAS
