"""The OpenAPI 3.1 document: every route of the router that has a description."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service.dialects.vectorize.routes import PREFIXES
from service.openapi.operations import ENVELOPE, PLAIN, Operation, operations, parameters
from service.openapi.results import SCHEMAS, Schema, named, success
from service.openapi.shapes import request_schemas
from service.version import VERSION
from storage.limits import Limits

STATUSES = {
    400: "What was sent is not what is taken; the message says what is.",
    401: "There is no valid token.",
    403: "The token may not do this.",
    404: "There is no such index or mutation.",
    408: "The body did not arrive in time.",
    410: "The index was deleted.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The Idempotency-Key was used for another request.",
    429: "Too many requests, or too many writes wait; come back after Retry-After seconds.",
    500: "Stored data are damaged, or a mistake of ours.",
    503: "Busy; come back after Retry-After seconds.",
    504: "It took longer than `query_timeout_ms` allows; come back after Retry-After seconds, or ask for less.",
    507: "The disk is full.",
}
EVERYWHERE = (401, 403, 429, 500, 503)
SECURITY: tuple[dict[str, list[str]], ...] = (
    {"bearer": []},
    {"apiKey": []},
    {"xApiKey": []},
    {"authEmail": [], "authKey": []},
)
_REQUEST_ID = {"X-Request-Id": {"description": "What the log calls the request.", "schema": {"type": "string"}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def document(
    router: web.UrlDispatcher, limits: Limits, beside: Mapping[Handler, Operation] = MappingProxyType({})
) -> dict[str, Any]:
    """What the router serves, as clients and tools read it. `beside` describes handlers that know this module."""
    paths: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for method, path, operation, handler in _described(router, operations() | dict(beside)):
        name = handler.__name__
        # A second method for the same is an older spelling of it.
        id = name if name not in taken else f"{name}_{method.lower()}"
        taken.add(id)
        paths.setdefault(path, {})[method.lower()] = _operation(id, path, operation, handler)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": VERSION,
            "description": "A self-hosted vector index service: Cloudflare Vectorize v2, and what is ours beside it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}, {"url": PREFIXES[0], "description": "The same, as clients of Cloudflare ask."}],
        "security": list(SECURITY),
        "paths": paths,
        "components": {
            "schemas": SCHEMAS | request_schemas(limits),
            "parameters": parameters(limits),
            "responses": {str(status): _refusal(status) for status in STATUSES},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
                "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "authEmail": {"type": "apiKey", "in": "header", "name": "X-Auth-Email"},
                "authKey": {"type": "apiKey", "in": "header", "name": "X-Auth-Key"},
            },
        },
    }


def _described(
    router: web.UrlDispatcher, described: Mapping[Handler, Operation]
) -> Iterator[tuple[str, str, Operation, Any]]:
    """Method, path, description and handler; each path once, without its prefix."""
    for route in router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if route.handler in described and route.method != hdrs.METH_HEAD and not path.startswith(PREFIXES[0]):
            yield route.method, path, described[route.handler], route.handler


def _operation(id: str, path: str, operation: Operation, handler: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": id,
        "tags": [operation.tag],
        "summary": (inspect.getdoc(handler) or "").partition("\n")[0],
        "parameters": [*_of_path(path), *({"$ref": f"#/components/parameters/{one}"} for one in operation.parameters)],
        "responses": {str(status): one for status, one in _responses(path, operation)},
    }
    if operation.ours:
        found["x-extension"] = True
    if operation.body:
        found["requestBody"] = {"required": True, "content": _content(operation)}
    if operation.is_open:
        found["security"] = []
    return found


def _of_path(path: str) -> Iterator[dict[str, Any]]:
    for name in ("account", "name", "mutation"):
        if f"{{{name}}}" in path:
            yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _content(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": named(operation.body)}}
    if operation.lines:
        lines: Schema = {"type": "string", "description": "A Vector as JSON on each line."}
        file: Schema = {"type": "string", "contentMediaType": "application/x-ndjson"}
        form: Schema = {"type": "object", "required": ["vectors"], "properties": {"vectors": file}}
        content = {
            "application/x-ndjson": {"schema": lines},
            "multipart/form-data": {"schema": form},
            **content,
        }
    return content


def _responses(path: str, operation: Operation) -> Iterator[tuple[int, dict[str, Any]]]:
    schema = success(operation.result) if operation.form == ENVELOPE else operation.result
    media = "text/plain" if operation.form == PLAIN else "application/json"
    answer: dict[str, Any] = {
        "description": "Done.",
        "headers": dict(_REQUEST_ID),
        "content": {media: {"schema": schema}},
    }
    if "Idempotency-Key" in operation.parameters:
        repeated = {"description": "true when it was a repeat.", "schema": {"const": "true"}}
        answer["headers"]["Idempotent-Replayed"] = repeated
    yield 200, answer
    if operation.is_open:
        yield 503, {"description": "Not ready.", "content": {"application/json": {"schema": operation.result}}}
        return
    statuses = {*EVERYWHERE, *operation.statuses}
    if operation.parameters or operation.body:
        statuses.add(400)
    if "{account}" in path:
        statuses.add(404)
    if "{name}" in path:
        statuses |= {404, 410}
    if operation.body:
        statuses |= {408, 413, 415}
    for status in sorted(statuses):
        yield status, {"$ref": f"#/components/responses/{status}"}


def _refusal(status: int) -> dict[str, Any]:
    headers = _REQUEST_ID | (_RETRY_AFTER if status in (429, 503, 504, 507) else {})
    return {
        "description": STATUSES[status],
        "headers": headers,
        "content": {"application/json": {"schema": named("Refusal")}},
    }
