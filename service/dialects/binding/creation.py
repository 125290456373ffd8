"""Making the index that a Worker writes to and that nobody made.

`wrangler dev` is one command, and so is its index: in `headrace dev` the first write decides the dimensions. What it
cannot know, the metric above all, is told in the log, with the command that says it.
"""

from __future__ import annotations

import asyncio

import orjson
import structlog
from aiohttp import web

from service.dialects.vectorize.configs import index_config
from service.dialects.vectorize.dress import undress
from service.dialects.vectorize.models import ConfigBody
from service.dialects.vectorize.names import check_index_name
from service.dialects.vectorize.parameters import account_of, index_of
from service.dialects.vectorize.routes_vectors import INLINE_BYTES
from service.dialects.vectorize.vectors import BatchRules, read_batch
from service.keys import SETTINGS, STORE
from storage.errors import IndexExists
from storage.records import Action, IndexSpec, Metric

METRIC = Metric.COSINE
"""What most embedding models are made for."""

log = structlog.get_logger()


async def create_for(request: web.Request, action: Action, body: bytes) -> IndexSpec:
    """The index of the path, made to hold the vectors of the body. Raises Refusal when they could not be written."""
    account, name = account_of(request), request.match_info["name"]
    limits = request.app[SETTINGS].limits
    check_index_name(name, limits)
    label = request.headers.get("Content-Type", "")
    dimensions = first_dimensions(body, label) or limits.dimensions_min
    # A batch that is refused must not leave an index behind that has the dimensions of a mistake.
    rules = BatchRules(action=action, dimensions=dimensions, limits=limits)
    if len(body) <= INLINE_BYTES:
        read_batch(body, label, rules)
    else:
        await asyncio.to_thread(read_batch, body, label, rules)
    config = index_config(ConfigBody(dimensions=dimensions, metric=METRIC), limits)
    try:
        spec = await request.app[STORE].create_index(account, name, "", config, limits)
    except IndexExists:
        # Another first write was faster; what it decided holds for this one.
        return index_of(request)
    log.warning(
        "index.created_by_binding",
        account=account,
        index=name,
        dimensions=dimensions,
        metric=METRIC.value,
        next=f"to choose yourself: wrangler vectorize delete {name}, then "
        f"wrangler vectorize create {name} --dimensions={dimensions} --metric={METRIC.value}",
    )
    return spec


def first_dimensions(body: bytes, content_type: str) -> int:
    """The length of the first vector, or 0 when there is none to be seen."""
    undressed = undress(body, content_type)
    text = undressed.text.strip()
    try:
        first = orjson.loads(text if undressed.whole else text.partition(b"\n")[0])
        if undressed.whole:
            first = (first["vectors"] if isinstance(first, dict) else first)[0]
        return len(first["values"])
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return 0
