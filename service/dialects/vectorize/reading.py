"""Getting a request's JSON body in, within the limits of the process."""

from __future__ import annotations

from aiohttp import web

from service.bodies import body_of
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import Model, read_model
from service.keys import BODY_BUDGET, SETTINGS

ARRIVED_BYTES_MAX = 64 * 1024
"""aiohttp holds no more than that of a body that nobody reads."""


async def json_body(request: web.Request) -> bytes:
    """The bytes of a JSON body. Raises Refusal for another Content-Type where the live service does.

    The trailing semicolon of wrangler's `application/json; charset=utf-8;` is fine, as everything behind the
    first.
    """
    settings = request.app[SETTINGS]
    label = request.headers.get("Content-Type", "")
    if (
        settings.limits.strict
        and label != "application/json"
        and label.partition(";")[0].strip().lower() != "application/json"
    ):
        raise Refusal(Code.BODY_INVALID, "Expected request with `Content-Type: application/json`")
    length, content = request.content_length, request.content
    if length is not None and length <= ARRIVED_BYTES_MAX and content.is_eof():
        # A small body arrives with the head of its request: it is in memory whether it is read or not.
        return content.read_nowait()
    with body_of(request, request.app[BODY_BUDGET], bytes_max=settings.limits.upload_bytes_max) as reader:
        return await reader.read()


async def json_model(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises Refusal."""
    return read_model(model, await json_body(request))
