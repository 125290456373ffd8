"""Connections, below requests: what happens to bytes that are no HTTP.

aiohttp answers those by itself, as plain text with the parser's own words and a trace in the log. Clients of
this API expect the envelope of every answer, and a port scanner must not fill the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from service.dialects import dialect_of
from service.middleware import SERVER

KEEPALIVE_S = 75
"""How long a connection may be idle, or take to send the head of a request."""

log = structlog.get_logger()


class Connection(web.RequestHandler):
    """One connection. Errors before and beyond the application are answered as those inside it."""

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
            log.info("connection.refused", kind=type(exc).__name__)
        else:
            log.error("connection.failed", exc_info=exc)
        response = dialect_of(request.path).refusal(request, error)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


class Connections(web.Server):
    """Makes a `Connection` for everyone who connects."""

    def __call__(self) -> Connection:
        """A new connection."""
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs the application behind our own connections, with bodies left as they were sent."""

    def __init__(self, app: web.Application, *, drain_s: float) -> None:
        # Decompression would happen before a handler could refuse it; our own access lines replace aiohttp's.
        super().__init__(
            app,
            shutdown_timeout=drain_s,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
        )

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()

        def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
            if hdrs.EXPECT in request.headers:
                return self._handle_expecting(request, plain.request_handler)
            return plain.request_handler(request)

        return Connections(handle, request_factory=plain.request_factory, **self._kwargs)

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
