"""The OpenAPI document is complete: beside the router, the models, the refusals and the page.

Whether it is true of every answer is found out by `scripts/torture contract`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from service.dialects.vectorize import models
from service.dialects.vectorize.errors import ANSWERS, FRAMEWORK
from service.openapi.document import STATUSES
from storage.settings import Settings
from tests.service.conftest import Service, limited, serving
from tests.test_compatibility import COMMON, PAGE, cells, query_parameters

NOT_DESCRIBED = re.compile(
    r"(/client/v4)?(/accounts/\{account\}/vectorize/indexes.*)|.*_binding.*|/\{operation\}|/npm/.*"
)
"""The first version, which is refused; what workerd speaks; a file."""
SPELLED_OTHERWISE = {"dryRun", "includeTiming", "property"}


async def document(service: Service) -> Any:
    answer = await service.get("/openapi.json")
    assert answer.status == 200
    return answer.json


def inside(part: Any) -> Iterator[Any]:
    """Every object of a document."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from inside(one)


def described(whole: Any) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in whole["paths"].items() for method in methods}


async def test_every_route_of_the_router_is_described(service: Service):
    served = {
        (route.method, route.resource.canonical.removeprefix("/client/v4"))
        for route in service.app.router.routes()
        if route.method != "HEAD" and not NOT_DESCRIBED.fullmatch(route.resource.canonical)
    }

    assert described(await document(service)) == served


async def test_every_endpoint_of_the_page_is_described(service: Service):
    named = {found for row in cells() for found in re.findall(r"`((?:GET|POST|DELETE) /(?!_)\S*)`", row[0])}
    named -= {found for found in named if "_binding" in found}
    found = {f"{method} {path.removeprefix(COMMON)}" for method, path in described(await document(service))}
    own = {"GET /livez", "GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json"}

    assert found - own == named


async def test_every_option_of_the_page_is_described(service: Service):
    whole = await document(service)
    properties = {name for part in inside(whole["components"]["schemas"]) for name in part.get("properties", {})}
    parameters = {part["name"] for part in whole["components"]["parameters"].values()}
    bodies = {
        alias if isinstance(alias := field.validation_alias, str) else name if alias is None else str(alias.choices[0])
        for model in vars(models).values()
        if isinstance(model, type) and issubclass(model, models.Body)
        for name, field in model.model_fields.items()
    }

    assert bodies <= properties
    assert query_parameters() - SPELLED_OTHERWISE - {"filter"} <= parameters
    assert all(f"`{name}`" in PAGE for name in parameters - {"Idempotency-Key"})


@pytest.mark.parametrize("profile", ["cloudflare", "relaxed"])
async def test_every_reference_leads_somewhere_and_every_id_is_one_operations(settings: Settings, profile: str):
    async with serving(limited(settings, profile)) as service:
        whole = await document(service)

    for part in inside(whole):
        if isinstance(part.get("$ref"), str):
            found = whole
            for name in part["$ref"].removeprefix("#/").split("/"):
                found = found[name]
    ids = [one["operationId"] for methods in whole["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))
    assert whole["openapi"].startswith("3.1")
    for methods in whole["paths"].values():
        for one in methods.values():
            assert one["summary"].endswith(".")


def test_every_status_of_a_refusal_is_described():
    refused = {answer.status for answer in ANSWERS.values()} | set(FRAMEWORK)

    assert refused - {405} <= set(STATUSES)


async def test_the_document_says_the_limits_in_force(settings: Settings):
    async with serving(limited(settings, "cloudflare", get_ids_max=7)) as service:
        schemas = (await document(service))["components"]["schemas"]

    assert schemas["GetIds"]["properties"]["ids"]["maxItems"] == 7
    assert "$exists" not in json.dumps(schemas)


async def test_the_document_needs_a_token_once_there_is_one(settings: Settings):
    async with serving(replace(limited(settings, "cloudflare"), token="right")) as service:
        assert (await service.get("/openapi.json")).status == 401
        assert (await service.get("/openapi.json", headers={"api-key": "right"})).status == 200


async def test_what_is_said_to_be_open_is_what_needs_no_token(service: Service):
    whole = await document(service)
    found = {
        path for path, methods in whole["paths"].items() if any(one.get("security") == [] for one in methods.values())
    }

    assert found == {"/livez", "/healthz", "/readyz"}
