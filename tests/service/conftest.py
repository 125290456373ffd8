"""The service over real HTTP on a free port, with the real store and worker behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from service.app import create_app
from service.connections import Runner
from storage.limits import PROFILES
from storage.settings import Settings
from tests.conftest import Running, running_on

V2 = "/client/v4/accounts/acc/vectorize/v2/indexes"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass
class Answer:
    """A response that was read whole."""

    status: int
    headers: Any
    text: bytes
    json: Any = field(default=None)

    @property
    def result(self) -> Any:
        assert self.status == 200, self.text
        assert self.json["success"] is True
        return self.json["result"]

    @property
    def code(self) -> int:
        """The number of the one error, in an envelope that is as it should be."""
        assert self.json["success"] is False, self.text
        assert self.json["result"] is None
        assert self.json["messages"] == []
        return self.json["errors"][0]["code"]

    @property
    def message(self) -> str:
        return self.json["errors"][0]["message"]


@dataclass
class Service:
    """A running service, and short ways to ask it."""

    url: str
    session: aiohttp.ClientSession
    running: Running
    app: Any = None

    async def ask(self, method: str, path: str, *, data: Any = None, headers: Any = None, **rest: Any) -> Answer:
        url = self.url + (path if path.startswith("/") else f"{V2}/{path}")
        async with self.session.request(method, url, data=data, headers=headers, **rest) as response:
            text = await response.read()
            document = orjson.loads(text) if text and response.content_type == "application/json" else None
            return Answer(response.status, response.headers, text, document)

    async def get(self, path: str, **rest: Any) -> Answer:
        return await self.ask("GET", path, **rest)

    async def post(self, path: str, document: Any, **rest: Any) -> Answer:
        data = document if isinstance(document, bytes) else orjson.dumps(document)
        return await self.ask("POST", path, data=data, headers=JSON | rest.pop("headers", {}), **rest)

    async def create(self, name: str = "docs", dimensions: int = 32, metric: str = "cosine") -> Answer:
        document = {"name": name, "config": {"dimensions": dimensions, "metric": metric}}
        return await self.post(V2, document)

    async def write(self, path: str, vectors: list[dict[str, Any]], *, wait: bool = True, **rest: Any) -> Answer:
        body = b"\n".join(orjson.dumps(vector) for vector in vectors)
        params = {"wait": "true", "timeout": "60"} if wait else {}
        return await self.ask(
            "POST",
            path,
            data=body,
            params=params | rest.pop("params", {}),
            headers=NDJSON | rest.pop("headers", {}),
            **rest,
        )

    async def upsert(self, vectors: list[dict[str, Any]], name: str = "docs", **rest: Any) -> Answer:
        return await self.write(f"{name}/upsert", vectors, **rest)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """Serve until the block ends."""
    async with running_on(settings) as running:
        app = create_app(running.store, settings)
        runner = Runner(app, drain_s=5)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            # Real clients keep connections; a session without a pool shows none of the reuse bugs.
            async with aiohttp.ClientSession() as session:
                yield Service(f"http://{host}:{port}", session, running, app)
        finally:
            await runner.cleanup()


def axis(number: int, dimensions: int = 32) -> list[float]:
    """A vector of length 1 along one axis."""
    return [1.0 if place == number else 0.0 for place in range(dimensions)]


def vector(vector_id: str, number: int = 0, **rest: Any) -> dict[str, Any]:
    """A vector to send."""
    return {"id": vector_id, "values": axis(number)} | rest


def limited(settings: Settings, profile: str, **limits: Any) -> Settings:
    """The settings with another profile and some of its limits changed."""
    return replace(settings, profile=profile, limits=replace(PROFILES[profile], **limits))


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A service with the live service's limits."""
    async with serving(limited(settings, "cloudflare")) as one:
        yield one


@pytest.fixture
async def relaxed(settings: Settings) -> AsyncIterator[Service]:
    """A service with the relaxed limits."""
    async with serving(limited(settings, "relaxed")) as one:
        yield one
