"""The one list of dialects: the APIs this service speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from service.dialects.account import routes as account_routes
from service.dialects.binding import routes as binding_routes
from service.dialects.vectorize import envelope
from service.dialects.vectorize import routes as vectorize_routes
from service.needs import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """An API: its paths, and how it says that a request failed.

    `owns` says whether a path is the dialect's, which decides how a failure before any handler is answered.
    `needs` says what each handler needs of a token; one that is not in it needs everything there is.
    """

    name: str
    owns: Callable[[str], bool]
    routes: Callable[[], list[web.RouteDef]]
    refusal: Callable[[web.BaseRequest, Exception], web.Response]
    needs: Callable[[], Mapping[Handler, Need]] = dict


DIALECTS = (
    Dialect(
        name="binding",
        owns=binding_routes.owns,
        routes=binding_routes.routes,
        needs=binding_routes.needs,
        refusal=binding_routes.refusal,
    ),
    Dialect(
        name="vectorize",
        owns=lambda path: "/vectorize/" in path,
        routes=vectorize_routes.routes,
        needs=vectorize_routes.needs,
        refusal=envelope.refusal,
    ),
    # The last one also answers for paths that are nobody's.
    Dialect(
        name="account",
        owns=lambda _: True,
        routes=account_routes.routes,
        needs=account_routes.needs,
        refusal=envelope.refusal,
    ),
)


def dialect_of(path: str) -> Dialect:
    """Who answers for a path."""
    return next(dialect for dialect in DIALECTS if dialect.owns(path))
