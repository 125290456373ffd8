"""Who may come in, and how far: looked at before any byte of a body is read.

Without a configured token, and before the first one is made, everybody may do everything. Otherwise a request needs a
valid token on every route that does not say it is open, and on every path that is no route at all; and the token must
have what the route needs in the account and index of its path. What is missing is answered before anything is looked
up, so that nobody learns from an answer what exists.
"""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from service.audit import Asked
from service.keys import ADMISSION, ASKED, AUDIT, GATE, NEEDS, REQUEST_ID, TOKEN
from service.needs import ANY_TOKEN, FORGOTTEN, Reach, is_enough
from service.quiet import SILENT, Lines
from storage.errors import StorageError
from storage.tokens import Scope, Standing, Token

REFUSED = "Authentication error"

log = structlog.get_logger()
_lines = Lines()


@web.middleware
async def check_token(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request through whose token has what its route needs. Raises HTTPUnauthorized, HTTPForbidden."""
    match_info = request.match_info
    app = request.app
    need = app[NEEDS].get(match_info.handler)
    if need is None:
        # A path or method that is none of ours tells that to nobody without a token.
        need = FORGOTTEN if match_info.http_exception is None else ANY_TOKEN
    if need.reach is Reach.NOTHING:
        return await handler(request)
    admission = app[ADMISSION]
    admission.check_request(request)
    text = credential(request)
    standing, token = app[GATE].look(text)
    if standing is not Standing.VALID or token is None:
        admission.count_failure(request, text)
        raise _unauthorized(request, standing, token)
    admission.check_credential(request, text, token.id)
    request[TOKEN] = token
    account, index = match_info.get("account", ""), match_info.get("name", "")
    if not is_enough(token, need, account=account, index=index):
        raise _forbidden(request, token, need.scope)
    if need.scope >= Scope.WRITE:
        request[ASKED] = Asked(token, need.scope, account, index)
    elif need.reach is not Reach.TOKEN:
        return await handler(request)
    return await _audited(request, handler)


async def _audited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer, and write down what came of it if anything was to be changed."""
    outcome = "cancelled"  # Stays only when the client went away or the process is stopping.
    try:
        response = await handler(request)
    except Exception as error:
        outcome = f"failed: {type(error).__name__}"
        raise
    else:
        outcome = "done"
        return response
    finally:
        asked = request.get(ASKED)
        if asked is not None:
            request.app[AUDIT].record(
                asked,
                request_id=request[REQUEST_ID],
                method=request.method,
                path=request.path,
                address=request.remote or "",
                outcome=outcome,
            )


def check_index(request: web.Request, scope: Scope, account: str, index: str) -> None:
    """For a handler whose index is not named in its path. Raises HTTPForbidden."""
    if not request[TOKEN].may(scope, account, index):
        raise _forbidden(request, request[TOKEN], scope)
    if scope >= Scope.WRITE:
        # In place where it is known already: a request and its copies share what they ask.
        asked = request.setdefault(ASKED, Asked(request[TOKEN], scope, account, index))
        asked.scope, asked.account, asked.index = scope, account, index


def check_account(request: web.Request, scope: Scope, account: str) -> None:
    """For a handler whose account is not named in its path. Raises HTTPForbidden."""
    if not request[TOKEN].may_somewhere(scope, account):
        raise _forbidden(request, request[TOKEN], scope)


def sees_everything(request: web.Request) -> bool:
    """Whether the request may hear of every account: for open routes that say more to whom they know."""
    try:
        standing, token = request.app[GATE].look(credential(request))
    except StorageError:
        return False  # Nobody can be told apart; and the answer is that the store is unwell.
    return standing is Standing.VALID and token is not None and token.may_everywhere(Scope.READ)


def credential(request: web.Request) -> str:
    """The token of the request, from the first header that has one; else empty."""
    headers = request.headers
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if headers.get("X-Auth-Email"):
        return headers.get("X-Auth-Key", "")
    return headers.get("api-key") or headers.get("x-api-key") or ""


def _unauthorized(request: web.Request, standing: Standing, token: Token | None) -> web.HTTPUnauthorized:
    _note_refusal(request, standing.name.lower(), token.id if token else "")
    return web.HTTPUnauthorized(text=REFUSED, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(request: web.Request, token: Token, scope: Scope) -> web.HTTPForbidden:
    wanted = scope.name.lower()
    _note_refusal(request, f"no {wanted}", token.id)
    return web.HTTPForbidden(text=f"{REFUSED}: the token has no {wanted} access to this")


def _note_refusal(request: web.Request, reason: str, token: str) -> None:
    left_out = _lines.take()
    if left_out != SILENT:
        log.info(
            "access.refused",
            request_id=request[REQUEST_ID],
            reason=reason,
            token=token,
            address=request.remote,
            left_out=left_out,
        )
