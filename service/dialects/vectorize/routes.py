"""Every path of the dialect, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service.bodies import leave_unread
from service.dialects.vectorize import (
    routes_indexes,
    routes_metadata,
    routes_mutations,
    routes_query,
    routes_vectors,
)
from service.dialects.vectorize.errors import Code, Refusal
from service.needs import Need, Reach
from storage.tokens import Scope

PREFIXES = ("/client/v4", "")
"""Clients put their paths behind whatever base they are given, so both are served."""
_INDEXES = "/accounts/{account}/vectorize/v2/indexes"
_INDEX = f"{_INDEXES}/{{name}}"
_V1 = "/accounts/{account}/vectorize/indexes"

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    # The first: paths are compared with these in order.
    (hdrs.METH_POST, f"{_INDEX}/query", routes_query.query),
    (hdrs.METH_POST, _INDEXES, routes_indexes.create_index),
    (hdrs.METH_GET, _INDEXES, routes_indexes.list_indexes),
    (hdrs.METH_GET, _INDEX, routes_indexes.get_index),
    (hdrs.METH_DELETE, _INDEX, routes_indexes.delete_index),
    (hdrs.METH_GET, f"{_INDEX}/info", routes_indexes.info),
    (hdrs.METH_POST, f"{_INDEX}/insert", routes_vectors.insert),
    (hdrs.METH_POST, f"{_INDEX}/upsert", routes_vectors.upsert),
    (hdrs.METH_POST, f"{_INDEX}/delete_by_ids", routes_vectors.delete_by_ids),
    (hdrs.METH_POST, f"{_INDEX}/delete_by_filter", routes_vectors.delete_by_filter),
    (hdrs.METH_POST, f"{_INDEX}/get_by_ids", routes_vectors.get_by_ids),
    (hdrs.METH_POST, f"{_INDEX}/count", routes_vectors.count),
    (hdrs.METH_GET, f"{_INDEX}/list", routes_vectors.list_vectors),
    (hdrs.METH_POST, f"{_INDEX}/metadata_index/create", routes_metadata.create_metadata_index),
    (hdrs.METH_POST, f"{_INDEX}/metadata_index/delete", routes_metadata.delete_metadata_index),
    (hdrs.METH_GET, f"{_INDEX}/metadata_index/list", routes_metadata.list_metadata_indexes),
    # It was a POST in 2024, and clients of that time still send it.
    (hdrs.METH_POST, f"{_INDEX}/metadata_index/list", routes_metadata.list_metadata_indexes),
    (hdrs.METH_GET, f"{_INDEX}/mutations", routes_mutations.list_mutations),
    (hdrs.METH_GET, f"{_INDEX}/mutations/{{mutation}}", routes_mutations.get_mutation),
)


async def refuse_v1(request: web.Request) -> NoReturn:
    """Say where the second version of the API is."""
    path = request.path.replace("/vectorize/indexes", "/vectorize/v2/indexes").replace("-by-ids", "_by_ids")
    message = f"vectorize.incorrect_api_version - this is the first version of the API; use {path}"
    raise Refusal(Code.INCORRECT_API_VERSION, message)


_READ = Need(Reach.INDEX, Scope.READ)
_WRITE = Need(Reach.INDEX, Scope.WRITE)
_ADMIN = Need(Reach.INDEX, Scope.ADMIN)
_NEEDS: Mapping[Handler, Need] = {
    # The body names the index: the handler looks whether the token covers it.
    routes_indexes.create_index: Need(Reach.ACCOUNT, Scope.ADMIN),
    # Lists those that the token covers.
    routes_indexes.list_indexes: Need(Reach.ACCOUNT, Scope.READ),
    routes_indexes.get_index: _READ,
    routes_indexes.delete_index: _ADMIN,
    routes_indexes.info: _READ,
    routes_vectors.insert: _WRITE,
    routes_vectors.upsert: _WRITE,
    routes_vectors.delete_by_ids: _WRITE,
    routes_vectors.delete_by_filter: _WRITE,
    routes_vectors.get_by_ids: _READ,
    routes_vectors.count: _READ,
    routes_vectors.list_vectors: _READ,
    routes_query.query: _READ,
    routes_metadata.create_metadata_index: _ADMIN,
    routes_metadata.delete_metadata_index: _ADMIN,
    routes_metadata.list_metadata_indexes: _READ,
    routes_mutations.list_mutations: _READ,
    routes_mutations.get_mutation: _READ,
    refuse_v1: Need(Reach.ACCOUNT, Scope.READ),
}


def needs() -> Mapping[Handler, Need]:
    """What each handler needs of a token."""
    return _NEEDS


def routes() -> list[web.RouteDef]:
    """The table with both prefixes, ready for an application's router."""
    every = [*_ROUTES, ("*", _V1, refuse_v1), ("*", f"{_V1}/{{rest:.+}}", refuse_v1)]
    return [
        web.route(method, prefix + path, handler, expect_handler=leave_unread)
        for prefix in PREFIXES
        for method, path, handler in every
    ]
