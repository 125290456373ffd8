"""Just enough of users, tokens and accounts for wrangler to start.

There is one user, whose token is active, and one account: wrangler asks for them when CLOUDFLARE_ACCOUNT_ID
is not set, and `wrangler whoami` shows them.
"""

from __future__ import annotations

from aiohttp import web

from service.bodies import leave_unread
from service.dialects.vectorize.envelope import success
from service.dialects.vectorize.routes import PREFIXES

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


async def accounts(_: web.Request) -> web.Response:
    """The one account."""
    return success([ACCOUNT])


async def account(request: web.Request) -> web.Response:
    """Any account, since any is served."""
    return success(ACCOUNT | {"id": request.match_info["account"]})


async def memberships(_: web.Request) -> web.Response:
    """The one user's membership in the one account."""
    return success([MEMBERSHIP])


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
