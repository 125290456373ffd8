"""One service process: it opens the store, serves until told to stop, finishes what is under way and closes.

A crash anywhere loses nothing: a write is acknowledged only when it is on disk, and everything else is
repeated.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

import structlog
from aiohttp import web

from service.app import create_app
from service.connections import Runner
from service.keys import AUDIT
from service.tls import HANDSHAKE_TIMEOUT_S, Certificate, ForListeners
from storage.deadlines import NEVER, READ_THREADS, in_thread
from storage.open import open_store
from storage.settings import Settings

BACKLOG = 1024
THREAD_START_S = 0.01
"""A thread that is busy for so long is not taken for the next, which is started then."""

log = structlog.get_logger()


async def run(
    settings: Settings, *, sockets: Sequence[socket.socket], ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serve on the sockets until `stop` is set. Calls `ready` once requests are answered.

    Raises what opening the store does. Indexes to create at start are made by the supervisor, once for all processes.
    """
    await _start_threads()
    store = await open_store(settings)
    try:
        await _serve(create_app(store, settings), settings, sockets, ready, stop)
    finally:
        await store.close()


async def _start_threads() -> None:
    """Start the threads of the loop and of reads now: later the loop would stand still until each one runs."""
    threads = min(32, (os.cpu_count() or 1) + 4)  # As many as asyncio makes.
    await asyncio.gather(
        *(asyncio.to_thread(time.sleep, THREAD_START_S) for _ in range(threads)),
        *(in_thread(NEVER, time.sleep, THREAD_START_S) for _ in range(READ_THREADS)),
    )


async def _serve(
    app: web.Application,
    settings: Settings,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    certificate = None
    if settings.tls_certificate:
        certificate = Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    _reload_on_hangup(app, certificate)
    runner = Runner(app, drain_s=settings.drain_timeout_ms / 1000)
    await runner.setup()
    try:
        for listener in sockets:
            await _Site(runner, listener, certificate).start()
        # What was imported and opened lives as long as the process: no collection has to look at it again.
        gc.collect()
        gc.freeze()
        log.info("service.started", addresses=[str(listener.getsockname()) for listener in sockets])
        ready()
        await stop.wait()
    finally:
        # Stops listening at once, then gives requests under way the time they have to finish.
        await runner.cleanup()
        log.info("service.stopped")


class _Site(web.BaseSite):
    """A listening socket of the runner, with TLS or without."""

    def __init__(self, runner: Runner, listener: socket.socket, certificate: Certificate | None) -> None:
        super().__init__(runner, ssl_context=ForListeners.of(certificate) if certificate else None, backlog=BACKLOG)
        self._listener = listener

    @property
    def name(self) -> str:
        """The address, for the runner's own messages."""
        return str(self._listener.getsockname())

    async def start(self) -> None:
        """Accept connections. aiohttp's own site leaves a minute for the handshake of each."""
        await super().start()
        server = self._runner.server
        assert server is not None
        timeout_s = HANDSHAKE_TIMEOUT_S if self._ssl_context else None
        self._server = await asyncio.get_running_loop().create_server(
            server,
            sock=self._listener,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=timeout_s,
        )


def _reload_on_hangup(app: web.Application, certificate: Certificate | None) -> None:
    """Read again, on SIGHUP, what others may have changed beside us."""

    def reload() -> None:
        app[AUDIT].reopen()
        if certificate is not None:
            certificate.reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
