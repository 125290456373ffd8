"""The six operations of a binding, on the handlers of the Vectorize dialect.

A binding speaks the same documents as the REST API, without its envelope: a result is the whole answer, and a
refusal is `{"code", "error"}`. Success is 200 and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service.auth import check_account, check_index
from service.bodies import body_of, leave_unread
from service.dialects.binding.addressing import account_of, call_of, is_proxied, told_vectors, unwrapped
from service.dialects.binding.creation import create_for
from service.dialects.vectorize import envelope, routes_indexes, routes_query, routes_vectors
from service.dialects.vectorize.envelope import ERRORS, RESULT, json_bytes
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.parameters import index_of
from service.dialects.vectorize.writes import write_options
from service.keys import BODY_BUDGET, INDEX_NAME, SETTINGS
from service.needs import ANY_TOKEN, Need
from service.version import VERSION
from storage.errors import IndexDeleted, IndexNotFound
from storage.records import Action
from storage.tokens import Scope

ROOT = "/_binding"
PREFIXES = ("", "/accounts/{account}")


async def insert(request: web.Request) -> web.Response:
    """Log vectors to add, into an index that may have to be made."""
    return await _write(request, Action.INSERT)


async def upsert(request: web.Request) -> web.Response:
    """Log vectors to add or replace, into an index that may have to be made."""
    return await _write(request, Action.UPSERT)


OPERATIONS: dict[str, tuple[str, Handler]] = {
    "info": (hdrs.METH_GET, routes_indexes.info),
    "query": (hdrs.METH_POST, routes_query.query),
    "insert": (hdrs.METH_POST, insert),
    "upsert": (hdrs.METH_POST, upsert),
    "getByIds": (hdrs.METH_POST, routes_vectors.get_by_ids),
    "deleteByIds": (hdrs.METH_POST, routes_vectors.delete_by_ids),
}

WRITES = frozenset({"insert", "upsert", "deleteByIds"})


async def operate(request: web.Request) -> web.StreamResponse:
    """Do what a binding asks and answer as it expects."""
    call = call_of(request)
    request[INDEX_NAME] = call.index
    # First of all: the path does not say what is asked of which index, so nobody has looked at that yet.
    check_index(request, Scope.WRITE if call.operation in WRITES else Scope.READ, call.account, call.index)
    if call.operation not in OPERATIONS:
        raise web.HTTPNotFound
    method, handler = OPERATIONS[call.operation]
    if request.method != method:
        raise web.HTTPMethodNotAllowed(request.method, [method])
    request.match_info.update(account=call.account, name=call.index)
    answer = await handler(unwrapped(request) if is_proxied(request) else request)
    assert isinstance(answer, web.Response)
    answer.body = answer[RESULT]
    return answer


async def status(request: web.Request) -> web.StreamResponse:
    """Say who is here to whoever looks before it sends: a client learns version, account and whether it may come in.

    What miniflare's remote proxy sends to the same address is an operation.
    """
    if is_proxied(request):
        return await operate(request)
    account = account_of(request)
    check_account(request, Scope.READ, account)
    document = {
        "headrace": VERSION,
        "account": account,
        "createsIndexes": request.app[SETTINGS].binding_creates_indexes,
    }
    return web.Response(body=json_bytes(document), content_type="application/json")


def refusal(request: web.BaseRequest, error: Exception) -> web.Response:
    """The Vectorize dialect's refusal in the words a binding passes on to its user."""
    answer = envelope.refusal(request, error)
    first = answer[ERRORS][0]
    text = first.message
    if isinstance(error, IndexNotFound | IndexDeleted):
        name = request.get(INDEX_NAME, "")
        text += f"; to make it: wrangler vectorize create {name} --dimensions=... --metric=cosine"
    answer.body = json_bytes({"code": int(first.code), "error": text})
    return answer


def owns(path: str) -> bool:
    """Whether a path is a binding's."""
    return path.removeprefix("/") in OPERATIONS or f"{ROOT}/" in f"{path}/"


def needs() -> Mapping[Handler, Need]:
    """What each handler needs of a token: they look for themselves, because the account may be in a header."""
    return {operate: ANY_TOKEN, status: ANY_TOKEN}


def routes() -> list[web.RouteDef]:
    """Every way in, ready for an application's router."""
    every: list[tuple[str, str, Handler]] = [
        (method, f"/{{operation:{operation}}}", operate) for operation, (method, _) in OPERATIONS.items()
    ]
    for prefix in PREFIXES:
        every += [
            ("*", f"{prefix}{ROOT}", status),
            ("*", f"{prefix}{ROOT}/{{name}}", operate),
            ("*", f"{prefix}{ROOT}/{{name}}/{{operation}}", operate),
        ]
    return [web.route(method, path, handler, expect_handler=leave_unread) for method, path, handler in every]


async def _write(request: web.Request, action: Action) -> web.Response:
    settings = request.app[SETTINGS]
    options = write_options(request)
    count, count_max = told_vectors(request), settings.limits.binding_vectors_max
    if count > count_max:
        message = f"too many vectors in payload; max vector count is {count_max}, got {count}"
        raise Refusal(Code.TOO_MANY, message)
    try:
        spec = index_of(request)
    except (IndexNotFound, IndexDeleted):
        if not settings.binding_creates_indexes:
            raise
        check_index(request, Scope.ADMIN, request.match_info["account"], request.match_info["name"])
        spec = None
    with body_of(request, request.app[BODY_BUDGET], bytes_max=settings.limits.upload_bytes_max) as reader:
        if spec is not None:
            return await routes_vectors.write_arriving(request, spec, action, options, reader)
        body = await reader.read()
        spec = await create_for(request, action, body)
        return await routes_vectors.write_batch(request, spec, action, options, body)
