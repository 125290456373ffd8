"""Connections, below requests: what happens to bytes that are no HTTP, and to clients that are too slow or too many.

aiohttp answers the first by itself, as plain text with the parser's own words and a trace in the log. Clients of
this API expect the envelope of every answer, and a port scanner must not fill the log. Against the others it has
nothing: a head may take forever, and so may the reading of an answer.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import HttpVersion11, hdrs, web

from service.addresses import address_key
from service.bodies import RETRY_AFTER_S
from service.dialects import dialect_of
from service.dialects.vectorize.errors import Code
from service.keys import SETTINGS
from service.metrics import CONNECTIONS_REFUSED
from service.middleware import SERVER
from service.quiet import SILENT, Lines
from storage.settings import Settings

SENDING_CHECK_S = 10.0
"""How often a client that lets its answer lie is looked at."""

log = structlog.get_logger()
_lines = Lines()


class Connection(web.RequestHandler):
    """One connection. Errors before and beyond the application are answered as those inside it."""

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(connections, **arguments)
        self._connections = connections
        self._wire: asyncio.Transport | None = None
        self._address = ""
        self._sending: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        peer = transport.get_extra_info("peername")
        self._address = address_key(peer[0]) if peer else ""
        reason = self._connections.enter(self._address)
        if reason:
            _refuse(reason, address=self._address)
            transport.write(_TOO_MANY)
            transport.close()
            return
        super().connection_made(transport)
        # aiohttp closes what is idle, or in the middle of a head, when this timer ends; the first time is ours to say.
        self._close_at(self._loop.time() + self._connections.settings.head_timeout_ms / 1000)

    def _close_at(self, time_s: float) -> None:
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = time_s
        self._keepalive_handle = self._loop.call_at(time_s, self._process_keepalive)

    def data_received(self, data: bytes) -> None:
        """Bytes came. One that was refused has no parser to feed."""
        if self.transport is None:
            return
        super().data_received(data)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            # They were no whole head, and nothing else is under way. What drips gains no time.
            head_until_s = self._loop.time() + self._connections.settings.head_timeout_ms / 1000
            if head_until_s < self._next_keepalive_close_time:
                self._close_at(head_until_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end."""
        self._connections.leave(self._address)
        self._stop_watching()
        self._wire = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is sent: see that it goes on taking some."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """It took enough."""
        self._stop_watching()
        super().resume_writing()

    def _watch_sending(self) -> None:
        assert self._wire is not None
        self._unsent = self._wire.get_write_buffer_size()
        self._sending = self._loop.call_later(SENDING_CHECK_S, self._check_sending)

    def _check_sending(self) -> None:
        assert self._wire is not None
        sent = self._unsent - self._wire.get_write_buffer_size()
        if sent >= self._connections.settings.answer_bytes_per_second_min * SENDING_CHECK_S:
            self._watch_sending()
            return
        self._sending = None
        _refuse("slow reader", address=self._address)
        # Not close, which waits until everything is sent.
        self._wire.abort()

    def _stop_watching(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer in the envelope and close: what follows on the connection cannot be trusted."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already; nothing can be added to it") from exc
        error: Exception = RuntimeError("unforeseen")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            reason = (message or "").partition("\n")[0][:200]
            error = web.HTTPBadRequest(text=f"the request is not valid HTTP: {reason}")
            # Not the reason: it quotes what was sent, which may be a token.
            _refuse("not HTTP", kind=type(exc).__name__)
        else:
            log.error("connection.failed", exc_info=exc)
        response = dialect_of(request.rel_url.raw_path).refusal(request, error)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


class Connections(web.Server):
    """Makes a `Connection` for everyone who connects, and knows how many there are."""

    def __init__(self, *arguments: Any, settings: Settings, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.settings = settings
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The other half is for indexes: a process that can open nothing more answers nothing more.
        files_max = soft // 2 if soft != resource.RLIM_INFINITY else settings.connections_max
        self._open_max = min(settings.connections_max, files_max)
        self._by_address: Counter[str] = Counter()
        self._open = 0

    def __call__(self) -> Connection:
        """A new connection."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def enter(self, address: str) -> str:
        """Count a connection in, until it leaves. Says why it cannot stay, if so."""
        self._open += 1
        self._by_address[address] += 1
        per_address_max = self.settings.connections_per_address_max
        if self._open > self._open_max:
            return "too many"
        if per_address_max and self._by_address[address] > per_address_max:
            return "too many of one address"
        return ""

    def leave(self, address: str) -> None:
        """Count it out."""
        self._open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class Runner(web.AppRunner):
    """Runs the application behind our own connections, with bodies left as they were sent."""

    def __init__(self, app: web.Application, *, drain_s: float) -> None:
        # Decompression would happen before a handler could refuse it; our own access lines replace aiohttp's.
        super().__init__(
            app,
            shutdown_timeout=drain_s,
            auto_decompress=False,
            keepalive_timeout=app[SETTINGS].keepalive_timeout_ms / 1000,
            access_log=None,
        )

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()

        def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
            headers = request.headers
            if request.raw_path[0] != "/" or hdrs.TRANSFER_ENCODING in headers:
                fault = _ambiguity(request)
                if fault:
                    return _answer_ambiguous(request, fault)
            if hdrs.EXPECT in headers:
                return self._handle_expecting(request, plain.request_handler)
            return plain.request_handler(request)

        return Connections(handle, request_factory=plain.request_factory, settings=self.app[SETTINGS], **self._kwargs)

    async def _handle_expecting(
        self, request: web.BaseRequest, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # Our routes answer `Expect: 100-continue` when they want the body. Where no route matches, aiohttp itself would
        # ask for the body before the token was looked at.
        assert isinstance(request, web.Request)
        match_info = await self.app.router.resolve(request)
        if match_info.http_exception is not None:
            headers = request.headers.copy()
            headers.popall(hdrs.EXPECT)
            request = request.clone(headers=headers)
        return await handle(request)


class Ambiguous(ValueError):
    """A request that a proxy before us may have read as another."""


def _ambiguity(request: web.BaseRequest) -> str:
    """What two servers could read differently in the head; what the parser refuses does not get here."""
    if not request.raw_path.startswith("/"):
        return "the target must begin with /"
    coding = ",".join(request.headers.getall(hdrs.TRANSFER_ENCODING, ()))
    if coding and request.version < HttpVersion11:
        return "Transfer-Encoding needs HTTP/1.1"
    if coding and coding.strip().lower() != "chunked":
        return "the only Transfer-Encoding is chunked"
    return ""


async def _answer_ambiguous(request: web.BaseRequest, fault: str) -> web.StreamResponse:
    return request.protocol.handle_error(request, HTTPStatus.BAD_REQUEST, Ambiguous(fault), fault)


def _refuse(reason: str, **values: object) -> None:
    CONNECTIONS_REFUSED.labels(reason).inc()
    left_out = _lines.take()
    if left_out != SILENT:
        log.info("connection.refused", reason=reason, left_out=left_out, **values)


def _too_many() -> bytes:
    """The answer to who connects when too many are; there is no request to answer yet."""
    entry = {"code": int(Code.OVERLOADED), "message": "there are too many connections; try again shortly"}
    body = orjson.dumps({"result": None, "success": False, "errors": [entry], "messages": []})
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nServer: {SERVER}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_MANY = _too_many()
