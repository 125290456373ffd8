"""Getting a request's JSON body in, within the limits of the process."""

from __future__ import annotations

from aiohttp import web

from service.bodies import body_of
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import Model, read_model
from service.keys import BODY_BUDGET, SETTINGS


async def json_body(request: web.Request) -> bytes:
    """The bytes of a JSON body. Raises Refusal for another Content-Type where the live service does.

    The trailing semicolon of wrangler's `application/json; charset=utf-8;` is fine, as everything behind the
    first.
    """
    settings = request.app[SETTINGS]
    label = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if settings.limits.strict and label != "application/json":
        raise Refusal(Code.BODY_INVALID, "Expected request with `Content-Type: application/json`")
    with body_of(request, request.app[BODY_BUDGET], bytes_max=settings.limits.upload_bytes_max) as reader:
        return await reader.read()


async def json_model(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises Refusal."""
    return read_model(model, await json_body(request))
