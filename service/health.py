"""What a load balancer, a supervisor and a person ask: does it live, and is it ready.

None of the three needs a token. Without one they say only the status; with one that sees every account, what is
wrong as well.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from service.auth import sees_everything
from service.keys import SETTINGS, STORE
from service.metrics import INDEXES_MAX


async def livez(_: web.Request) -> web.Response:
    """The process answers. Asks nothing else, so that a full disk gets nobody killed."""
    return _answer((), shown=False)


async def healthz(request: web.Request) -> web.Response:
    """The store can do its work."""
    health = await request.app[STORE].health()
    return _answer(health.problems, shown=sees_everything(request))


async def readyz(request: web.Request) -> web.Response:
    """The store can do its work and, when that is configured, the worker keeps up."""
    health = await request.app[STORE].health()
    return _answer(health.problems + await _lags(request), shown=sees_everything(request))


async def _lags(request: web.Request) -> tuple[str, ...]:
    lag_max_ms = request.app[SETTINGS].ready_lag_max_ms
    if not lag_max_ms:
        return ()
    return tuple(
        f"index {spec.account}/{spec.name} is {measures.lag_ms} ms behind; ready_lag_max_ms is {lag_max_ms}"
        for spec, measures in await request.app[STORE].measure(INDEXES_MAX)
        if measures.lag_ms > lag_max_ms
    )


def _answer(problems: tuple[str, ...], *, shown: bool) -> web.Response:
    document: dict[str, object] = {"status": "unready" if problems else "ok"}
    if problems and shown:
        document["problems"] = list(problems)
    body = orjson.dumps(document)
    return web.Response(status=503 if problems else 200, body=body, content_type="application/json")
