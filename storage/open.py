"""The one place that chooses a back end."""

from __future__ import annotations

from storage.backends.sqlite.store import SqliteStore
from storage.interfaces import Store
from storage.settings import Settings


async def open_store(settings: Settings) -> Store:
    """Open the store that the settings name. Raises SchemaTooNew, SchemaChanged."""
    return await SqliteStore.open(settings)
