"""What every request goes through: it is watched, its errors are answered, its form is checked."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from errno import ENOMEM
from functools import cache

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from service.answered import note
from service.dialects import dialect_of
from service.keys import ADMISSION, REQUEST_ID
from storage.errors import Damaged, StorageError, StoreFailed, Unavailable

REQUEST_ID_HEADER = "X-Request-Id"
SERVER = "headrace"
"""What answers call the server. aiohttp would name its own version and Python's."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_ROUTE_PREFIX = "/client/v4"
UNMATCHED = "unmatched"
"""The route of what is none of ours."""
_PROCESS = secrets.token_hex(12)
_requests = itertools.count()

log = structlog.get_logger()


@web.middleware
async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Number the request, time it, and log one line about it: no vectors, no tokens, no query string."""
    started = time.perf_counter()
    request_id = request[REQUEST_ID] = _request_id(request)
    admission = request.app[ADMISSION]
    admission.in_flight += 1
    status = 499  # Stays only when the client went away or the process is stopping.
    try:
        response = await handler(request)
        status = response.status
        response.headers[REQUEST_ID_HEADER] = request_id
        response.headers["Server"] = SERVER
        return response
    finally:
        admission.in_flight -= 1
        took = time.perf_counter() - started
        route = _route(request)
        dialect = _dialect_name(route) if route != UNMATCHED else dialect_of(request.rel_url.raw_path).name
        note(
            dialect,
            route,
            status,
            took_s=took,
            request_id=request_id,
            method=request.method,
            path=request.path,
            body_bytes=request.content_length or 0,
        )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into an answer of the dialect; the unforeseen is logged with its trace."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refusal(request, error)
    except StorageError as error:
        if isinstance(error, Unavailable | Damaged):
            kind = type(error).__name__
            log.warning("storage.refused", request_id=request[REQUEST_ID], kind=kind, reason=str(error))
        return _refusal(request, error)
    except Exception as error:
        if _lacks_memory(error):
            log.warning("storage.refused", request_id=request[REQUEST_ID], kind="NoMemory", reason=str(error))
            return _refusal(request, StoreFailed("there is no memory for this request now; try again"))
        response = _refusal(request, error)
        if response.status >= 500:
            log.exception("request.failed", request_id=request[REQUEST_ID], path=request.path)
        return response


@web.middleware
async def refuse_encodings(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a compressed body before it is read: a megabyte of one may unpack to gigabytes."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(
            text=f"Content-Encoding {encoding[:40]} is not accepted; send the body as it is"
        )
    return await handler(request)


def _lacks_memory(error: Exception) -> bool:
    """Python has no error of its own for a thread that has no memory for its stack."""
    is_threadless = type(error) is RuntimeError and "can't start new thread" in str(error)
    return is_threadless or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == ENOMEM)


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if _SANE_ID.fullmatch(given) else f"{_PROCESS}{next(_requests):08x}"


def _route(request: web.Request) -> str:
    """The pattern of the path: one of those we made, so that metrics have no more labels than that."""
    resource = request.match_info.route.resource
    return resource.canonical.removeprefix(_ROUTE_PREFIX) if resource is not None else UNMATCHED


@cache
def _dialect_name(route: str) -> str:
    """The dialect of a route, of which there are few."""
    return dialect_of(route).name


def _refusal(request: web.Request, error: Exception) -> web.Response:
    return dialect_of(request.rel_url.raw_path).refusal(request, error)
