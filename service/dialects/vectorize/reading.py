"""Getting a request's JSON body in, within the limits of the process."""

from __future__ import annotations

from aiohttp import web

from service.bodies import body_of
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import Model, read_model
from service.keys import BODY_BUDGET, SETTINGS
from storage.limits import Limits

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
    with body_of(request, request.app[BODY_BUDGET], bytes_max=document_bytes_max(settings.limits)) as reader:
        return await reader.read()


def document_bytes_max(limits: Limits) -> int:
    """The most bytes a document within the limits can have, however it is indented and escaped, and room to spare.

    Its objects take fifty times as much memory, so that the bound of batches, which are read as they arrive, is no
    bound for it.
    """
    escaped, indented = 6, 64
    ids = max(limits.get_ids_max, limits.delete_ids_max) * (escaped * limits.id_bytes_max + indented)
    texts = escaped * (limits.filter_bytes_max + limits.description_bytes_max)
    return min(limits.upload_bytes_max, 1024 * 1024 + ids + texts + limits.dimensions_max * indented)


async def json_model(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises Refusal."""
    return read_model(model, await json_body(request))
