"""Every route, taken from the router itself, against every kind of credential."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from service.app import create_app
from service.dialects.binding.routes import OPERATIONS
from service.keys import NEEDS
from service.needs import FORGOTTEN
from storage.access import open_tokens
from storage.settings import Settings
from storage.tokens import Token, parse_grant, token_hash, token_id
from tests.service.conftest import Service, limited, serving

OPEN = {"GET /livez", "GET /healthz", "GET /readyz", "GET /npm/headrace.tgz"}
SERVICE = {"GET /metrics"}
ANY = {"GET /openapi.json", "GET /user", "GET /user/tokens/verify", "GET /accounts", "GET /memberships"}
BINDING = ("/_binding", "/accounts/{account}/_binding")
INDEXES = "/accounts/{account}/vectorize/v2/indexes"
READ = {
    "GET /accounts/{account}",
    f"GET {INDEXES}",
    f"GET {INDEXES}/{{name}}",
    *(f"GET {INDEXES}/{{name}}/{path}" for path in ("info", "list", "mutations", "mutations/{mutation}")),
    *(f"POST {INDEXES}/{{name}}/{path}" for path in ("query", "get_by_ids", "count")),
    *(f"{method} {INDEXES}/{{name}}/metadata_index/list" for method in ("GET", "POST")),
    "* /accounts/{account}/vectorize/indexes",
    "* /accounts/{account}/vectorize/indexes/{rest}",
    *(f"* {root}{path}" for root in BINDING for path in ("", "/{name}")),
    *(f"{method} /{path}" for method, path in (("GET", "info"), ("POST", "query"), ("POST", "getByIds"))),
    *(f"* {root}/{{name}}/{path}" for root in BINDING for path in ("info", "query", "getByIds")),
}
BINDING_WRITES = ("insert", "upsert", "deleteByIds")
WRITE = {
    *(f"POST {INDEXES}/{{name}}/{path}" for path in ("insert", "upsert", "delete_by_ids", "delete_by_filter")),
    *(f"POST /{path}" for path in BINDING_WRITES),
    *(f"* {root}/{{name}}/{path}" for root in BINDING for path in BINDING_WRITES),
}
ADMIN = {
    f"POST {INDEXES}",
    f"DELETE {INDEXES}/{{name}}",
    *(f"POST {INDEXES}/{{name}}/metadata_index/{path}" for path in ("create", "delete")),
}


def text(number: int) -> str:
    return f"hr_{number:012d}_{'s' * 43}"


HELD = {
    "everything": ("admin:*", {}),
    "figures": ("metrics:*", {}),
    "admin": ("admin:acc", {}),
    "writer": ("write:acc", {}),
    "reader": ("read:acc", {}),
    "pattern": ("admin:acc/other-*", {}),
    "other": ("admin:other", {}),
    "expired": ("admin:*", {"expires_ms": 1}),
    "revoked": ("admin:*", {"revoked_ms": 1}),
}
CREDENTIALS = {name: text(number) for number, name in enumerate(HELD)} | {
    "none": "",
    "unknown": text(99),
    "wrong": text(0)[:-1] + "x",
    "cut": text(0)[:-1],
    "long": text(0) + "s" * 5_000,
}
NOBODY = {"none", "unknown", "wrong", "cut", "long", "expired", "revoked"}


@dataclass(frozen=True)
class Case:
    """One route as the router knows it, and a path that reaches it."""

    key: str
    method: str
    path: str


@pytest.fixture
async def guarded(settings: Settings) -> AsyncIterator[Service]:
    """A service whose every kind of token is known."""
    editor = await open_tokens(settings)
    for name, (grant, rest) in HELD.items():
        held = CREDENTIALS[name]
        token = Token(id=token_id(held), name=name, hash=token_hash(held), grants=(parse_grant(grant),))
        await editor.add(token)
        await editor.change(token.id, lambda one, rest=rest: replace(one, **rest))
    await editor.close()
    async with serving(limited(settings, "cloudflare")) as service:
        yield service


NAMED = {"Headrace-Account": "acc", "Headrace-Index": "docs"}
VALUES = {"account": "acc", "name": "docs", "mutation": "x", "rest": "docs"}


def cases(service: Service) -> list[Case]:
    """Every route of the service; one whose path names an operation, once for each."""
    router = create_app(service.running.store, service.running.settings).router
    found = {}
    for route in router.routes():
        for operation, (wanted, _) in OPERATIONS.items():
            if "{operation}" in route.resource.canonical and route.method not in ("*", wanted):
                continue
            pattern = path = route.resource.canonical.replace("{operation}", operation)
            for name, value in VALUES.items():
                path = path.replace(f"{{{name}}}", value)
            method = wanted if operation in path else "GET"
            method = method if route.method in ("*", "HEAD") else route.method
            key = f"{'GET' if route.method == 'HEAD' else route.method} {pattern.removeprefix('/client/v4')}"
            found[method, path] = Case(key, method, path)
    return list(found.values())


def expected(key: str, who: str) -> int:
    """401, 403, or 0 for neither. A route that no line above names is for those who may do everything."""
    if key in OPEN:
        return 0
    if who in NOBODY:
        return 401
    allowed = {"everything"}
    allowed |= {"figures"} if key in SERVICE else set()
    allowed |= set(HELD) if key in ANY else set()
    allowed |= {"admin", "writer", "reader"} if key in READ else set()
    allowed |= {"admin", "writer"} if key in WRITE else set()
    allowed |= {"admin"} if key in ADMIN else set()
    # A token for some indexes of the account sees the account, and may make an index whose name it covers.
    without_name = key in {f"{method} {INDEXES}" for method in ("GET", "POST")} or key.endswith(
        ("_binding", "{account}")
    )
    without_name |= key.startswith("* /accounts/{account}/vectorize/indexes")
    allowed |= {"pattern"} if without_name and key in READ | ADMIN else set()
    return 0 if who in allowed else 403


async def status_of(service: Service, case: Case, credential: str) -> tuple[int, bytes]:
    """The status of a request that announces a body and waits to be asked for it, and all that was answered."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"{case.method} {case.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nExpect: 100-continue\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in NAMED.items())
        head += f"Authorization: Bearer {credential}\r\n" if credential else ""
        writer.write((head + "Connection: close\r\n\r\n").encode())
        async with asyncio.timeout(60):  # A service that waits for the body never answers.
            answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        return int(answer.split()[1]), body
    finally:
        writer.close()


async def test_every_route_refuses_who_may_not_before_it_has_a_byte_of_the_body(guarded: Service):
    wrong = []
    asked = 0
    for case in cases(guarded):
        for who, credential in CREDENTIALS.items():
            wanted = expected(case.key, who)
            if not wanted:
                continue
            status, body = await status_of(guarded, case, credential)
            asked += 1
            document = json.loads(body)
            code = document["code"] if "code" in document else document["errors"][0]["code"]
            if (status, code) != (wanted, 10000) or b'"Authentication error' not in body:
                wrong.append((case.key, who, status, body))

    assert wrong == []
    assert asked > 400


async def test_every_route_lets_in_who_may(guarded: Service):
    wrong = []
    for case in cases(guarded):
        for who, credential in CREDENTIALS.items():
            if not expected(case.key, who):
                headers = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json"} | NAMED
                body = b'{"name": "other-1"}' if case.method == "POST" else None
                answer = await guarded.ask(case.method, case.path, headers=headers, data=body)
                if answer.status in (401, 403) or answer.status >= 500:
                    wrong.append((case.key, who, answer.status, answer.text))

    assert wrong == []


@pytest.mark.parametrize("path", ["/", "/no/such", "/client/v4/none", "/livez/", "/LIVEZ", "/npm", "//livez"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
async def test_what_is_no_route_is_told_only_to_who_has_a_token(guarded: Service, method: str, path: str):
    case = Case("", method, path)

    assert (await status_of(guarded, case, ""))[0] == 401
    assert (await status_of(guarded, case, CREDENTIALS["wrong"]))[0] == 401
    assert (await status_of(guarded, case, CREDENTIALS["figures"]))[0] == 404


async def test_a_method_that_a_route_has_not_is_401_without_a_token(guarded: Service):
    for path in ("/livez", "/client/v4/accounts/acc/vectorize/v2/indexes/docs"):
        assert (await status_of(guarded, Case("", "PUT", path), ""))[0] == 401
        assert (await status_of(guarded, Case("", "PUT", path), CREDENTIALS["reader"]))[0] == 405


async def test_every_handler_of_the_router_says_what_it_needs(guarded: Service):
    app = create_app(guarded.running.store, guarded.running.settings)
    forgotten = {route.handler for route in app.router.routes()} - set(app[NEEDS])

    assert forgotten == set()
    assert FORGOTTEN not in app[NEEDS].values()
