"""The envelope every answer of the Cloudflare API wears, successes and refusals alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

from service.dialects.vectorize.errors import FRAMEWORK, Code, Refusal, answer_for
from service.keys import INDEX_NAME, REQUEST_ID
from storage.errors import StorageError

_DATA_PLANE = re.compile(r"/vectorize/v2/indexes/[^/]+/")


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of `messages` or `errors`."""

    code: Code
    message: str


RESULT = web.ResponseKey("result", bytes)
"""The result of a success as JSON, for a dialect that answers it without the envelope."""
ERRORS = web.ResponseKey("errors", tuple[Message, ...])
"""What a refusal says, for a dialect that says it in another shape."""


def success(result: object, *, messages: Sequence[Message] = ()) -> web.Response:
    """A 200 with a result. Any other 2xx is an error to some clients."""
    text = json_bytes(result)
    entries = json_bytes(_entries(messages))
    response = _json(200, b'{"result":%b,"success":true,"errors":[],"messages":%b}' % (text, entries))
    response[RESULT] = text
    return response


def refusal(request: web.BaseRequest, error: Exception) -> web.Response:
    """What an error of any kind is answered with. One that nobody foresaw says only which request it was."""
    match error:
        case Refusal():
            return failure(request, error.status, [Message(error.code, error.message)])
        case StorageError():
            return _storage_failure(request, error)
        case web.HTTPException():
            return _framework_failure(request, error)
        case _:
            request_id = request.get(REQUEST_ID, "")
            text = f"internal error; the log of the service says more under request_id {request_id}"
            return failure(request, 500, [Message(Code.INTERNAL, text)])


def failure(request: web.BaseRequest, status: int, entries: Sequence[Message]) -> web.Response:
    """A refusal in the envelope; those about an index's data carry one key more, as on the live service."""
    envelope: dict[str, object] = {"result": None}
    # As it was sent: an encoded slash is part of a name.
    if _DATA_PLANE.search(request.rel_url.raw_path):
        envelope["result_info"] = None
    envelope |= {"success": False, "errors": _entries(entries), "messages": []}
    response = _json(status, json_bytes(envelope))
    response[ERRORS] = tuple(entries)
    return response


def _storage_failure(request: web.BaseRequest, error: StorageError) -> web.Response:
    answer = answer_for(error)
    name = request.get(INDEX_NAME, "")
    text = answer.text.format(name=name) if answer.text else str(error)
    response = failure(request, answer.status, [Message(answer.code, text)])
    if answer.retry_after_s:
        response.headers["Retry-After"] = str(answer.retry_after_s)
    if answer.final:
        response.headers["x-should-retry"] = "false"
    return response


def _framework_failure(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPNotFound():
            entries = [
                Message(
                    Code.COULD_NOT_ROUTE,
                    f"Could not route to {request.path}, perhaps your object identifier is invalid?",
                ),
                Message(Code.NO_ROUTE_FOR_URI, "No route for that URI"),
            ]
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            text = f"{error.method} is not allowed on {request.path}; use {allowed}"
            entries = [Message(Code.METHOD_NOT_ALLOWED, text)]
        case _:
            entries = [Message(FRAMEWORK.get(error.status, Code.HTTP_INVALID), error.text or error.reason)]
    response = failure(request, error.status, entries)
    for header in ("Retry-After", "Allow", "WWW-Authenticate"):
        if header in error.headers:
            response.headers[header] = error.headers[header]
    return response


def _entries(messages: Sequence[Message]) -> list[dict[str, object]]:
    return [{"code": int(entry.code), "message": entry.message} for entry in messages]


_JSON = {"Content-Type": "application/json"}


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, headers=_JSON)


def json_bytes(document: object) -> bytes:
    """A document as JSON, numbers of numpy included."""
    # A path with bytes that are not UTF-8 comes back in some messages as surrogates, which JSON cannot hold.
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return orjson.dumps(_printable(document), option=orjson.OPT_SERIALIZE_NUMPY)


def _printable(document: object) -> object:
    match document:
        case str():
            return document.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _printable(value) for key, value in document.items()}
        case list():
            return [_printable(value) for value in document]
        case _:
            return document
