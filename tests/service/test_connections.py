"""Bytes on a socket: what is no HTTP, what comes too early, and bodies that nobody should read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from service.bodies import BodyBudget
from storage.settings import Settings
from tests.service.conftest import V2, Service, limited, serving, vector

MALFORMED = {
    "no HTTP at all": b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n",
    "a version that is not": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a length that is no number": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    "a header that is too long": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n",
}


async def exchange(service: Service, sent: bytes) -> tuple[bytes, bytes]:
    """Send bytes, and read until the service closes the connection."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body


@pytest.mark.parametrize("case", MALFORMED)
async def test_bytes_that_are_no_valid_http_are_refused_in_the_envelope_and_the_connection_closes(
    service: Service, case: str
):
    head, body = await exchange(service, MALFORMED[case])

    assert b" 400 " in head.partition(b"\r\n")[0]
    document = orjson.loads(body)
    assert (document["success"], document["errors"][0]["code"]) == (False, 49030)
    assert b"Server: headrace\r\n" in head + b"\r\n"
    assert b"Traceback" not in body


async def test_a_body_whose_declared_size_is_too_large_is_refused_before_any_of_it_arrives(service: Service):
    await service.create()
    head = f"POST {V2}/docs/upsert HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


async def test_a_chunked_body_is_counted_as_it_comes(settings: Settings):
    async with serving(limited(settings, "cloudflare", upload_bytes_max=1000)) as service:
        await service.create()

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b"\n" * 100

        answer = await service.ask("POST", "docs/upsert", data=chunks())

        assert (answer.status, answer.code) == (413, 49033)


async def test_a_wrong_token_is_refused_before_the_client_is_asked_for_its_body(settings: Settings):
    async with serving(replace(limited(settings, "cloudflare"), token="right")) as service:
        head = (
            f"POST {V2}/docs/upsert HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nAuthorization: Bearer wrong\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        writer.write(head.encode())
        first_line = await reader.readline()

        assert first_line.startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_expects_to_be_asked_is_asked_when_its_body_is_wanted(service: Service):
    await service.create()
    body = orjson.dumps(vector("a"))
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    writer.write(
        f"POST {V2}/docs/upsert HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    )
    asked = await reader.readuntil(b"\r\n\r\n")
    writer.write(body)
    answer = await reader.read()

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_bodies_beyond_what_the_process_may_hold_are_put_off(settings: Settings):
    async with serving(replace(limited(settings, "cloudflare"), body_bytes_in_flight_max=100)) as service:
        await service.create()

        answer = await service.upsert([vector("a")], wait=False)
        small = await service.post("docs/get_by_ids", {"ids": ["a"]})

        assert (answer.status, answer.code) == (503, 49035)
        assert int(answer.headers["Retry-After"]) >= 1
        assert small.status == 200


async def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_no_failure_of_the_service(service: Service):
    await service.create()
    host, port = service.url.removeprefix("http://").split(":")

    with capture_logs() as logs:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {V2}/docs/upsert HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(30):
            while not (ended := [entry for entry in logs if entry.get("route", "").endswith("/upsert")]):
                # The service runs on this loop; asking it something else lets it get there.
                await service.get("/livez")

    assert [entry["status"] for entry in ended] == [400]
    assert {entry["log_level"] for entry in logs} == {"info"}


def test_a_budget_is_whole_again_after_everything_was_given_back():
    budget = BodyBudget(10)

    budget.take(6)
    with pytest.raises(web.HTTPServiceUnavailable) as caught:
        budget.take(5)
    assert "6 of 10 bytes" in str(caught.value.text)
    budget.give_back(6)
    budget.take(10)

    assert budget.held == 10
