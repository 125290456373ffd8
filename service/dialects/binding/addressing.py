"""Which index and which operation a request of a binding means.

The protocol has no index in it, so it comes with the address, in one of three ways:

1. `/_binding/{name}/{operation}`: the protocol itself below an address of its own, as adapters send it.
2. `/_binding/{name}` or `/_binding?BINDING=name&OTHER=name`: miniflare's remote proxy, which sends every request of
   every binding to one address and puts what it meant into the headers MF-URL, MF-Binding and MF-Header-*.
3. `/{operation}` with the header Headrace-Index: workerd's `external` service, which knows host and port only.

The account is in the path before `_binding`, or for (3) in Headrace-Account; where none is named it is `local`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import hdrs, web
from yarl import URL

from service.dialects.account.routes import ACCOUNT_ID
from service.dialects.vectorize.errors import Code, Refusal

MINIFLARE_URL = "MF-URL"
MINIFLARE_BINDING = "MF-Binding"
MINIFLARE_CONTENT_TYPE = "MF-Header-Content-Type"
MINIFLARE_HEIGHT = "MF-Header-CF-Vector-Search-Dim-Height"
HEIGHT = "CF-Vector-Search-Dim-Height"
"""How many vectors a write has, as workerd tells before it sends them."""
INDEX_HEADER = "Headrace-Index"
ACCOUNT_HEADER = "Headrace-Account"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a request asks of which index."""

    account: str
    index: str
    operation: str


def is_proxied(request: web.Request) -> bool:
    """Whether miniflare's remote proxy wrapped the request."""
    return MINIFLARE_URL in request.headers


def call_of(request: web.Request) -> Call:
    """What the request means. Raises Refusal when its address leaves that open."""
    found = request.match_info
    operation = found["operation"] if "operation" in found else _operation_of(request.headers.get(MINIFLARE_URL, ""))
    return Call(account=account_of(request), index=_index_of(request), operation=operation)


def account_of(request: web.Request) -> str:
    """Whose index is meant."""
    named = request.match_info.get("account")
    return named if named is not None else request.headers.get(ACCOUNT_HEADER, ACCOUNT_ID)


def told_vectors(request: web.Request) -> int:
    """How many vectors the binding says a write has; 0 where it does not say."""
    text = request.headers.get(HEIGHT, request.headers.get(MINIFLARE_HEIGHT, ""))
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def unwrapped(request: web.Request) -> web.Request:
    """The request as the binding sent it to miniflare's proxy; the body is shared with the original."""
    headers = request.headers.copy()
    headers.pop(hdrs.CONTENT_TYPE, None)
    if MINIFLARE_CONTENT_TYPE in request.headers:
        headers[hdrs.CONTENT_TYPE] = request.headers[MINIFLARE_CONTENT_TYPE]
    return request.clone(headers=headers)


def _operation_of(url: str) -> str:
    try:
        return URL(url).path.strip("/")
    except ValueError as error:
        raise Refusal(Code.PARAMETER_INVALID, f"the header {MINIFLARE_URL} is no address: {error!s:.80}") from error


def _index_of(request: web.Request) -> str:
    if "name" in request.match_info:
        return request.match_info["name"]
    if INDEX_HEADER in request.headers:
        return request.headers[INDEX_HEADER]
    binding = request.headers.get(MINIFLARE_BINDING)
    if binding is None:
        raise Refusal(
            Code.PARAMETER_INVALID,
            f"the address names no index; use /_binding/NAME, or send the header {INDEX_HEADER}",
        )
    index = request.query.get(binding)
    if index is None:
        raise Refusal(
            Code.PARAMETER_INVALID,
            f"the address says nothing about the binding {binding:.80}; use /_binding?{binding:.80}=NAME "
            "with the name of its index, or /_binding/NAME for one index behind every binding",
        )
    return index
