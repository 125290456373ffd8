"""Getting a request's JSON body in, within the limits of the process."""

from __future__ import annotations

from aiohttp import web

from service.bodies import body_of
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.marks import Marks
from service.dialects.vectorize.models import Model, read_model
from service.keys import BODY_BUDGET, SETTINGS
from storage.limits import Limits

ARRIVED_BYTES_MAX = 64 * 1024
"""aiohttp holds no more than that of a body that nobody reads."""
SPARE_VALUES = 100_000
"""How many values a list of ids may have beyond the most ids before it is not read at all: 10 MB of objects."""


async def json_body(request: web.Request, *, ids_max: int = 0) -> bytes:
    """The bytes of a JSON body, in which there may be so many ids.

    Raises Refusal for another Content-Type where the live service does, and for far too many ids before they become
    objects. The trailing semicolon of wrangler's `application/json; charset=utf-8;` is fine, as everything behind the
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
    bytes_max = document_bytes_max(settings.limits, ids_max=ids_max)
    with body_of(request, request.app[BODY_BUDGET], bytes_max=bytes_max) as reader:
        if not ids_max:
            return await reader.read()
        marks = Marks(ids_max + SPARE_VALUES)
        chunks = []
        async for chunk in reader.chunks():
            if not marks.feed(chunk):
                found = f"more than {ids_max + SPARE_VALUES}"
                raise Refusal(Code.TOO_MANY, f"too many ids in payload; max id count is {ids_max}, got {found}")
            chunks.append(chunk)
        return b"".join(chunks)


def document_bytes_max(limits: Limits, *, ids_max: int = 0) -> int:
    """The most bytes a document within the limits can have, however it is indented and escaped, and room to spare.

    Its objects take fifty times as much memory, so that the bound of batches, which are read as they arrive, is no
    bound for it.
    """
    escaped, indented = 6, 64
    ids = ids_max * (escaped * limits.id_bytes_max + indented)
    texts = escaped * (limits.filter_bytes_max + limits.description_bytes_max)
    return min(limits.upload_bytes_max, 1024 * 1024 + ids + texts + limits.dimensions_max * indented)


async def json_model(request: web.Request, model: type[Model], *, ids_max: int = 0) -> Model:
    """The JSON body as a model. Raises Refusal."""
    return read_model(model, await json_body(request, ids_max=ids_max))
