"""Where the tokens of a data folder are kept, for commands: light, and without opening a store."""

from __future__ import annotations

import asyncio
from contextlib import closing

from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.migrate import is_current, migrate
from storage.backends.sqlite.tokens import KnownTokens, TokenEditor
from storage.reserve import make_room_to_start
from storage.settings import Settings


def has_catalogue(settings: Settings) -> bool:
    """Whether the data folder is one that was used before."""
    return DataFolder(settings.data).control.is_file()


async def open_tokens(settings: Settings) -> TokenEditor:
    """Open the tokens for changes, making the data folder when there is none. Raises SchemaTooNew, SchemaChanged."""
    data = DataFolder(settings.data)
    await asyncio.to_thread(_prepare, data)
    return await TokenEditor.open(data.control)


def _prepare(data: DataFolder) -> None:
    # Beside a running service nothing is touched that need not be: it may be waiting for this very process.
    if not data.control.is_file():
        data.prepare()
    elif not is_current(data.control, "control"):
        migrate(data.control, "control")


def is_locked(settings: Settings) -> bool:
    """Whether a token was ever made for this data. Nothing is made where there is nothing."""
    control = DataFolder(settings.data).control
    if control.is_file():
        make_room_to_start(settings.data)
    if not control.is_file() or not is_current(control, "control"):
        return False
    with closing(KnownTokens(control)) as tokens:
        return tokens.is_locked()
