"""One worker process from start to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from storage.backends.sqlite import driver
from storage.settings import Settings
from worker.loop import Loop

log = structlog.get_logger()


async def run(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Work on the data folder until `stop` is set. Raises SchemaTooNew, SchemaChanged."""
    if driver.version_info < driver.SAFE_VERSION:
        log.warning("sqlite.unsafe", version=driver.version, needed=".".join(map(str, driver.SAFE_VERSION)))
    loop = await Loop.start(settings)
    log.info("worker.started", data=str(settings.data))
    ready()
    await loop.run(stop)
    log.info("worker.stopped")
