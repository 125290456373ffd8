"""Just enough of users, tokens and accounts for wrangler to start.

There is one user, whose token is active. Its accounts are those the token names, or one where it may use all: wrangler
asks for them when CLOUDFLARE_ACCOUNT_ID is not set, and `wrangler whoami` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from service.bodies import leave_unread
from service.dialects.vectorize.envelope import success
from service.dialects.vectorize.routes import PREFIXES
from service.keys import TOKEN as HELD
from service.needs import ANY_TOKEN, Need, Reach
from storage.tokens import ALL, Scope

ACCOUNT_ID = "local"
"""The account that `headrace up` and `dev` name to their users. Any other in a path works as well."""
ACCOUNT = {"id": ACCOUNT_ID, "name": "Headrace", "type": "standard"}
USER = {"id": "0" * 31 + "2", "email": "headrace@localhost", "username": "headrace"}
TOKEN = {"id": "0" * 31 + "3", "status": "active"}
MEMBERSHIP = {"id": "0" * 31 + "4", "status": "accepted", "account": ACCOUNT, "roles": ["Administrator"]}


async def user(_: web.Request) -> web.Response:
    """The one user."""
    return success(USER)


async def verify_token(_: web.Request) -> web.Response:
    """The token was checked before this was reached."""
    return success(TOKEN)


async def accounts(request: web.Request) -> web.Response:
    """The accounts of the token."""
    return success(_accounts(request))


async def account(request: web.Request) -> web.Response:
    """Any account that the token covers, since any is served."""
    return success(ACCOUNT | {"id": request.match_info["account"]})


async def memberships(request: web.Request) -> web.Response:
    """The one user's memberships in those accounts."""
    return success([MEMBERSHIP | {"account": one} for one in _accounts(request)])


def _accounts(request: web.Request) -> list[dict[str, str]]:
    names = dict.fromkeys(grant.account for grant in request[HELD].grants)
    return [ACCOUNT] if ALL in names else [ACCOUNT | {"id": name} for name in names]


def needs() -> Mapping[Handler, Need]:
    """What each handler needs of a token."""
    return {
        user: ANY_TOKEN,
        verify_token: ANY_TOKEN,
        accounts: ANY_TOKEN,
        memberships: ANY_TOKEN,
        account: Need(Reach.ACCOUNT, Scope.READ),
    }


def routes() -> list[web.RouteDef]:
    """The table with both prefixes, ready for an application's router."""
    table = {
        "/user": user,
        "/user/tokens/verify": verify_token,
        "/accounts": accounts,
        "/accounts/{account}": account,
        "/memberships": memberships,
    }
    return [
        web.get(prefix + path, handler, expect_handler=leave_unread)
        for prefix in PREFIXES
        for path, handler in table.items()
    ]
