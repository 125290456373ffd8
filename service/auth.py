"""Who may come in: one token, looked at before any byte of a body is read."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler

from service.keys import SETTINGS

OPEN_PATHS = frozenset({"/livez", "/healthz", "/readyz"})
"""What a load balancer asks without a token."""


@web.middleware
async def check_token(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request through that carries the token. Raises HTTPUnauthorized for every other."""
    if request.path not in OPEN_PATHS and not is_allowed(request):
        raise web.HTTPUnauthorized(text="Authentication error")
    return await handler(request)


def is_allowed(request: web.Request) -> bool:
    """Whether the request carries the token, or none is configured."""
    token = request.app[SETTINGS].token
    return not token or _is_token(credential(request), token)


def credential(request: web.Request) -> str:
    """The token of the request: a bearer token, or the key of the older pair of headers; else empty."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if request.headers.get("X-Auth-Email"):
        return request.headers.get("X-Auth-Key", "")
    return ""


def _is_token(given: str, token: str) -> bool:
    # As bytes, because compare_digest raises on text beyond ASCII. Header bytes that are not UTF-8 reach us
    # as surrogates and must come out as the bytes they were.
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())
