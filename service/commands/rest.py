"""A small client of the Vectorize API for our own commands: the demo and the indexes made at start."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from service.commands.failure import CommandFailed

DUPLICATE_NAME = 3002
JSON_TYPE = "application/json"
NDJSON_TYPE = "application/x-ndjson"


class ApiRefused(CommandFailed):
    """The server answered with an error. `code` is the number in its envelope, 0 without one.

    `retry_after_s` is how long the server asked to be left alone, 0 when it did not say.
    """

    def __init__(self, message: str, *, code: int, status: int, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s


class ApiUnreachable(CommandFailed):
    """No answer came."""


class Api:
    """The indexes of one account on one server. Use as an async context manager.

    Every call raises ApiRefused for an error answer and ApiUnreachable when the server cannot be reached.
    """

    def __init__(
        self, url: str, account: str, token: str, *, fingerprint: bytes = b"", set_with: str = "--token"
    ) -> None:
        """With `fingerprint`, the server is known by the SHA-256 of its certificate and by nothing else.

        `set_with` is where a person puts the token: it is named when the server refuses the one it got.
        """
        self._base = f"{url}/client/v4/accounts/{account}/vectorize/v2/indexes"
        self._ssl = aiohttp.Fingerprint(fingerprint) if fingerprint else True
        self._set_with = set_with
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._ssl)
        timeout = aiohttp.ClientTimeout(total=120)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """The result of a GET below `/indexes`."""
        return await self._call("GET", path, b"", JSON_TYPE)

    async def post(self, path: str, body: object) -> Any:
        """The result of a POST of JSON."""
        return await self._call("POST", path, json.dumps(body).encode(), JSON_TYPE)

    async def post_lines(self, path: str, body: bytes) -> Any:
        """The result of a POST of NDJSON."""
        return await self._call("POST", path, body, NDJSON_TYPE)

    async def delete(self, path: str) -> Any:
        """The result of a DELETE."""
        return await self._call("DELETE", path, b"", JSON_TYPE)

    async def _call(self, method: str, path: str, body: bytes, kind: str) -> Any:
        url = self._base + path
        headers = {"Content-Type": kind} if method == "POST" else {}
        try:
            async with self._session.request(method, url, data=body or None, headers=headers) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiUnreachable(f"{method} {url} did not get through: {error!r}") from error
        return self._result(text, response, f"{method} {url}")

    def _result(self, text: bytes, response: aiohttp.ClientResponse, asked: str) -> Any:
        """What is inside the envelope. Another program on the port is told apart by not having one."""
        status = response.status
        after = response.headers.get("Retry-After", "")
        retry_after_s = int(after) if after.isdecimal() else 0
        try:
            envelope = orjson.loads(text)
            succeeded, errors = envelope["success"], envelope["errors"]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{asked} was answered with status {status} and no Vectorize envelope; is that Headrace?"
            raise ApiRefused(message, code=0, status=status, retry_after_s=retry_after_s) from error
        if succeeded:
            return envelope["result"]
        first: dict[str, Any] = errors[0] if errors else {"code": 0, "message": "no reason given"}
        hint = f"; pass the token of that server with {self._set_with}" if status in (401, 403) else ""
        message = f"{asked} was refused ({status}, code {first['code']}): {first['message']}{hint}"
        raise ApiRefused(message, code=first["code"], status=status, retry_after_s=retry_after_s)
