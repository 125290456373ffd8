"""One service process: it opens the store, serves until told to stop, finishes what is under way and closes.

A crash anywhere loses nothing: a write is acknowledged only when it is on disk, and everything else is
repeated.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from aiohttp import web

from service.app import create_app
from service.connections import Runner
from service.dialects.account.routes import ACCOUNT_ID
from service.dialects.vectorize.configs import index_config
from service.dialects.vectorize.models import ConfigBody
from service.dialects.vectorize.names import check_index_name
from storage.errors import IndexExists
from storage.interfaces import Store
from storage.open import open_store
from storage.records import AccountId, Metric
from storage.settings import Settings
from storage.wanted import WantedIndex, wanted_indexes

BACKLOG = 1024

log = structlog.get_logger()


async def run(
    settings: Settings, *, sockets: Sequence[socket.socket], ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serve on the sockets until `stop` is set. Calls `ready` once requests are answered.

    Raises what opening the store does, and Refusal for an index to create that the limits do not allow.
    """
    store = await open_store(settings)
    try:
        for wanted in wanted_indexes(settings.create_indexes):
            await create_wanted(store, settings, wanted)
        await _serve(create_app(store, settings), settings, sockets, ready, stop)
    finally:
        await store.close()


async def create_wanted(store: Store, settings: Settings, wanted: WantedIndex) -> None:
    """Make an index unless there is one of its name, whatever its config."""
    body = ConfigBody(
        dimensions=wanted.dimensions or None,
        metric=Metric(wanted.metric) if wanted.metric else None,
        preset=wanted.preset,
    )
    check_index_name(wanted.name, settings.limits)
    config = index_config(body, settings.limits)
    with suppress(IndexExists):
        await store.create_index(AccountId(ACCOUNT_ID), wanted.name, "", config, settings.limits)


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
