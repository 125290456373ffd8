"""One service process: it opens the store, serves until told to stop, finishes what is under way and closes.

A crash anywhere loses nothing: a write is acknowledged only when it is on disk, and everything else is
repeated.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

import structlog
from aiohttp import web

from service.app import create_app
from service.connections import Runner
from storage.open import open_store
from storage.settings import Settings

BACKLOG = 1024

log = structlog.get_logger()


async def run(
    settings: Settings, *, sockets: Sequence[socket.socket], ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serve on the sockets until `stop` is set. Calls `ready` once requests are answered.

    Raises what opening the store does. Indexes to create at start are made by the supervisor, once for all processes.
    """
    store = await open_store(settings)
    try:
        await _serve(create_app(store, settings), settings, sockets, ready, stop)
    finally:
        await store.close()


async def _serve(
    app: web.Application,
    settings: Settings,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    runner = Runner(app, drain_s=settings.drain_timeout_ms / 1000)
    await runner.setup()
    try:
        for listener in sockets:
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
        log.info("service.started", addresses=[str(listener.getsockname()) for listener in sockets])
        ready()
        await stop.wait()
    finally:
        # Stops listening at once, then gives requests under way the time they have to finish.
        await runner.cleanup()
        log.info("service.stopped")
