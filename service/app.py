"""The application: what a request passes, in order, and where it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import web

from service import health, metrics
from service.admission import Admission
from service.answered import write_notes
from service.audit import Audit
from service.auth import check_token
from service.bodies import BodyBudget, Patience, leave_unread
from service.callers import CallerNames
from service.dialects import DIALECTS
from service.gate import Gate
from service.keys import ADMISSION, AUDIT, BODY_BUDGET, CALLER_NAMES, GATE, NEEDS, SETTINGS, STORE
from service.middleware import answer_errors, refuse_encodings, watch
from service.needs import ANY_TOKEN, OPEN, Need, Reach
from service.npm import tarball
from service.openapi import served
from storage.errors import StorageError
from storage.interfaces import Store
from storage.settings import Settings
from storage.tokens import Scope

USES_NOTED_EVERY_S = 60
NEEDS_OF_OWN_ROUTES = {
    health.livez: OPEN,
    health.healthz: OPEN,
    health.readyz: OPEN,
    tarball.headrace_tgz: OPEN,
    served.openapi_json: ANY_TOKEN,
    # The labels name indexes of every account.
    metrics.metrics: Need(Reach.SERVICE, Scope.METRICS),
}


def create_app(store: Store, settings: Settings) -> web.Application:
    """Put the service together. The store is the caller's: it is open and stays open when the app is gone."""
    app = web.Application(
        middlewares=[watch, answer_errors, check_token, refuse_encodings],
        client_max_size=settings.limits.upload_bytes_max,
    )
    app[STORE] = store
    app[SETTINGS] = settings
    patience = Patience(bytes_per_second=settings.body_bytes_per_second_min, total_s=settings.body_timeout_ms / 1000)
    app[BODY_BUDGET] = BodyBudget(settings.body_bytes_in_flight_max, patience)
    app[ADMISSION] = Admission(settings)
    app[CALLER_NAMES] = CallerNames()
    app[AUDIT] = Audit(settings.audit_file)
    app.on_cleanup.append(_close_audit)
    app.cleanup_ctx.append(_note_uses)
    app[GATE] = Gate(store.tokens, settings.token)
    app[NEEDS] = NEEDS_OF_OWN_ROUTES | {
        handler: need for dialect in DIALECTS for handler, need in dialect.needs().items()
    }
    app.router.add_routes(
        [
            web.get("/livez", health.livez, expect_handler=leave_unread),
            web.get("/healthz", health.healthz, expect_handler=leave_unread),
            web.get("/readyz", health.readyz, expect_handler=leave_unread),
            web.get("/metrics", metrics.metrics, expect_handler=leave_unread),
            web.get(tarball.PATH, tarball.headrace_tgz, expect_handler=leave_unread),
            web.get(served.PATH, served.openapi_json, expect_handler=leave_unread),
        ]
    )
    for dialect in DIALECTS:
        app.router.add_routes(dialect.routes())
    app.on_cleanup.append(_write_notes)
    return app


async def _note_uses(app: web.Application) -> AsyncIterator[None]:
    """Note once a minute, and at the end, when tokens were last used."""

    async def note() -> None:
        used = app[GATE].take_uses()
        # What could not be noted is noted with the next use; nobody has to wait or fail for it.
        with suppress(StorageError):
            if used:
                await app[STORE].note_uses(used)

    async def each_minute() -> None:
        while True:
            await asyncio.sleep(USES_NOTED_EVERY_S)
            await note()

    noting = asyncio.create_task(each_minute())
    yield
    noting.cancel()
    await asyncio.wait([noting])
    await note()


async def _close_audit(app: web.Application) -> None:
    app[AUDIT].close()


async def _write_notes(_: web.Application) -> None:
    """What was noted of the last requests is written before the process ends."""
    write_notes()
