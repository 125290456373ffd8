"""Handing out the document."""

from __future__ import annotations

import orjson
from aiohttp import web

from service.keys import SETTINGS
from service.openapi.document import document
from service.openapi.operations import JSON, Operation

PATH = "/openapi.json"
ITSELF = Operation(tag="service", result={"type": "object"}, form=JSON, ours=True)


async def openapi_json(request: web.Request) -> web.Response:
    """This API, as an OpenAPI 3.1 document with the limits that are in force."""
    body = orjson.dumps(document(request.app.router, request.app[SETTINGS].limits, {openapi_json: ITSELF}))
    return web.Response(body=body, content_type="application/json")
