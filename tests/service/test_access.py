"""Who gets in, and what is open to everybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.gate import Gate
from storage.access import open_tokens
from storage.errors import StateDamaged
from storage.interfaces import Health
from storage.settings import Settings
from storage.tokens import (
    Standing,
    Token,
    TokenId,
    grant_text,
    parse_grant,
    token_hash,
    token_id,
)
from tests.service.conftest import V2, Service, limited, serving

TOKEN = "geheim-€"


@pytest.fixture
async def locked(settings: Settings) -> AsyncIterator[Service]:
    async with serving(replace(limited(settings, "cloudflare"), token="secret")) as service:
        yield service


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer  secret "},
        {"X-Auth-Email": "me@example.com", "X-Auth-Key": "secret"},
        {"api-key": "secret"},
        {"X-API-Key": "secret"},
        {"api-key": "", "x-api-key": "secret"},
        {"Authorization": "Basic other", "api-key": "secret"},
    ],
    ids=["bearer", "bearer, sloppily", "email and key", "api-key", "x-api-key", "an empty one first", "beside another"],
)
async def test_the_token_opens_in_every_way_that_clients_send_it(locked: Service, headers: dict[str, str]):
    assert (await locked.get(V2, headers=headers)).result == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic secret"},
        {"Authorization": "Bearer sécret€"},
        {"X-Auth-Key": "secret"},
        {"X-Auth-Email": "me@example.com", "X-Auth-Key": "wrong"},
        {"api-key": "wrong", "x-api-key": "secret"},
        {"Authorization": "Bearer wrong", "api-key": "secret"},
    ],
    ids=str,
)
async def test_anything_else_is_401_with_the_number_that_wrangler_knows(locked: Service, headers: dict[str, str]):
    answer = await locked.get(V2, headers=headers)

    assert (answer.status, answer.code, answer.message) == (401, 10000, "Authentication error")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_every_route_wants_the_token_except_what_a_load_balancer_and_npm_ask(locked: Service):
    router = create_app(locked.running.store, locked.running.settings).router
    asked = set()
    for route in router.routes():
        path = route.resource.canonical
        for name in ("account", "name", "mutation", "rest"):
            path = path.replace(f"{{{name}}}", "x").replace(f"{{{name}:.+}}", "x")
        method = "GET" if route.method == "*" else route.method
        answer = await locked.ask(method, path)
        asked.add((path, answer.status))

    open_paths = {path for path, status in asked if status != 401}
    assert open_paths == {"/livez", "/healthz", "/readyz", "/npm/headrace.tgz"}
    assert len(asked) > 40


async def test_a_token_beyond_ascii_is_compared_without_falling_over(settings: Settings):
    async with serving(replace(limited(settings, "cloudflare"), token=TOKEN)) as service:
        right = await service.get(V2, headers={"Authorization": f"Bearer {TOKEN}"})
        wrong = await service.get(V2, headers={"Authorization": "Bearer plain"})

        assert (right.status, wrong.status) == (200, 401)


async def test_accounts_do_not_see_each_other(service: Service):
    await service.create()

    other = V2.replace("/acc/", "/other/")
    listed = await service.get(other)
    got = await service.get(f"{other}/docs")
    created = await service.post(other, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}})

    assert listed.result == []
    assert (got.status, got.code) == (404, 3000)
    assert created.status == 200


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
async def test_health_says_only_its_status_when_all_is_well(locked: Service, path: str):
    answer = await locked.get(path)

    assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_a_worker_that_is_late_makes_the_service_unready_but_keeps_it_alive(settings: Settings):
    late = replace(limited(settings, "cloudflare"), ready_lag_max_ms=1, token="secret")
    async with serving(late) as service:
        headers = {"Authorization": "Bearer secret"}
        await service.post(V2, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}}, headers=headers)
        await service.running.stop_worker()
        await service.post("docs/delete_by_ids?wait=true&timeout=0.05", {"ids": ["a"]}, headers=headers)

        stranger, owner = await service.get("/readyz"), await service.get("/readyz", headers=headers)
        alive = await service.get("/livez")

        assert (stranger.status, stranger.json) == (503, {"status": "unready"})
        assert "acc/docs" in owner.json["problems"][0]
        assert alive.status == 200


async def test_the_metrics_page_has_the_promised_names_with_bounded_labels(service: Service):
    await service.create()
    await service.post("docs/delete_by_ids?wait=true", {"ids": ["a"]})
    await service.post("docs/query", {"vector": [1.0] * 32})
    await service.get("/no/such/path")

    page = (await service.get("/metrics")).text.decode()

    for name in (
        'headrace_http_request_duration_seconds_count{dialect="vectorize",route="/accounts/{account}/vectorize',
        'v2/indexes/{name}/query",status="200"}',
        'route="unmatched",status="404"',
        'headrace_mutations_total{action="delete"}',
        'headrace_mutation_queue_depth{index="acc/docs"} 0.0',
        'headrace_mutation_lag_seconds{index="acc/docs"} 0.0',
        "headrace_write_to_visible_seconds_bucket",
        'headrace_query_seconds_count{stage="search"}',
        'headrace_index_vectors{index="acc/docs"} 0.0',
        'headrace_index_bytes{index="acc/docs",kind="log"}',
        'headrace_segments{index="acc/docs"} 0.0',
        "headrace_merges_total",
        "headrace_seals_total",
    ):
        assert name in page, name
    assert "/no/such/path" not in page


async def test_what_ails_the_store_is_told_to_who_may_see_everything(locked: Service, monkeypatch: pytest.MonkeyPatch):
    async def ails(_: object) -> Health:
        return Health(problems=("the disk is full",))

    monkeypatch.setattr(type(locked.running.store), "health", ails)
    for path in ("/healthz", "/readyz"):
        stranger, owner = await locked.get(path), await locked.get(path, headers={"api-key": "secret"})
        assert (stranger.status, stranger.json) == (503, {"status": "unready"})
        assert owner.json["problems"] == ["the disk is full"]


async def test_the_token_is_looked_at_before_the_form_of_the_body(locked: Service):
    answer = await locked.ask("POST", V2, data=b"x", headers={"Content-Encoding": "br"})

    assert answer.status == 401


async def test_while_the_catalogue_cannot_be_read_nobody_is_let_in(locked: Service, monkeypatch: pytest.MonkeyPatch):
    def ails(_: object) -> int:
        raise StateDamaged("control.db cannot be read")

    monkeypatch.setattr(type(locked.running.store.tokens), "_look", ails)
    monkeypatch.setattr(locked.running.store.tokens, "_look_at", float("-inf"))
    for headers in ({"api-key": "secret"}, {}):
        answer = await locked.get(V2, headers=headers)
        assert (answer.status, answer.code) == (500, 49022)
        assert (await locked.get("/healthz", headers=headers)).json.keys() == {"status"}
        assert (await locked.get("/livez", headers=headers)).status == 200


async def test_the_first_token_locks_a_service_that_was_open(service: Service):
    assert (await service.get(V2)).status == 200
    editor = await open_tokens(service.running.settings)
    text = f"hr_aaaaaaaaaaaa_{'s' * 43}"
    grants = (parse_grant("read:acc"),)
    await editor.add(Token(id=token_id(text), name="first", hash=token_hash(text), grants=grants))
    await editor.close()

    assert (await service.get(V2, headers={"api-key": text})).status == 200, "known at once"
    assert (await service.get(V2)).status == 401, "and to the others from then on"
    assert (await service.post("docs/delete_by_ids", {"ids": ["a"]}, headers={"api-key": text})).status == 403


class OneToken:
    """A store of one token."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def find(self, id: TokenId) -> Token | None:
        return self._token if id == self._token.id else None

    def is_locked(self) -> bool:
        return True


RIGHT = f"hr_aaaaaaaaaaaa_{'s' * 43}"
HEADER_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0") | st.characters(categories=["Cs"]))


@given(
    HEADER_TEXT
    | st.builds(lambda end: f"hr_aaaaaaaaaaaa_{end}", HEADER_TEXT)
    | st.builds(lambda end: RIGHT + end, HEADER_TEXT)
)
def test_no_text_but_the_token_is_taken_for_it_and_none_makes_the_gate_fall_over(text: str):
    known = Token(id=token_id(RIGHT), name="x", hash=token_hash(RIGHT), grants=())
    for configured in ("", "geheim-€"):
        standing, token = Gate(OneToken(known), configured).look(text)
        assert (standing is Standing.VALID) == (text in (RIGHT, configured) and text != "")
        assert (token is None) == (standing in (Standing.MISSING, Standing.UNKNOWN))


@given(st.text() | st.builds(lambda *parts: ":".join(parts), st.sampled_from(["read", "admin", "metrics"]), st.text()))
def test_every_text_is_a_grant_that_is_written_as_it_was_read_or_refused(text: str):
    try:
        grant = parse_grant(text)
    except ValueError:
        return
    assert parse_grant(grant_text(grant)) == grant
