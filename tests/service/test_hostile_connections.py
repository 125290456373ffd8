"""Hostile clients, below requests: the slow, the many, the liars, and bytes that two servers read differently."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from service import connections, quiet
from service.addresses import address_key
from service.bodies import Patience
from service.keys import BODY_BUDGET
from storage.settings import Settings
from tests.service.conftest import V2, Service, axis, limited, serving, vector

STUCK_S = 60
"""Not a speed limit: what is not over by then never ends."""
UPSERT = f"POST {V2}/docs/upsert HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of a client that sends what it likes."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(STUCK_S):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, headers and document of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, orjson.loads(body)


def code_of(document: Any) -> int:
    """The number of the one error."""
    assert document["success"] is False
    return int(document["errors"][0]["code"])


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the service closes."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


def strict(settings: Settings, **rest: Any) -> Settings:
    return replace(limited(settings, "cloudflare"), **rest)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: a"])
async def test_a_head_that_does_not_end_in_time_is_the_end_of_its_connection(settings: Settings, sent: bytes):
    async with serving(strict(settings, head_timeout_ms=50)) as service, connected(service) as (reader, writer):
        writer.write(sent)

        assert await closed(reader) == b""


async def drips_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a head that never ends, and see the connection closed without an answer."""
    writer.write(b"GET /livez HTTP/1.1\r\nX-A: ")
    ended = asyncio.ensure_future(closed(reader))
    while not ended.done():
        writer.write(b"a")
        await asyncio.wait([ended], timeout=0.005)
    assert ended.result() == b""


async def test_a_head_that_drips_does_not_gain_time(settings: Settings):
    async with serving(strict(settings, head_timeout_ms=100)) as service, connected(service) as (reader, writer):
        await drips_until_closed(reader, writer)


async def test_a_later_head_that_drips_has_as_long_as_the_first(settings: Settings):
    patient = strict(settings, head_timeout_ms=100, keepalive_timeout_ms=3_600_000)
    async with serving(patient) as service, connected(service) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _, _ = await answer_of(reader)
            assert status == 200
        await drips_until_closed(reader, writer)


async def test_a_head_in_pieces_hurries_its_connection_and_an_answer_gives_it_time_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    made: list[connections.Connection] = []
    honest = connections.Connection.connection_made

    def noted(self: connections.Connection, transport: asyncio.BaseTransport) -> None:
        made.append(self)
        honest(self, transport)

    async def may_stay(for_long: bool) -> None:
        clock = asyncio.get_running_loop().time
        while (made[0]._next_keepalive_close_time > clock() + 60) is not for_long:  # noqa: ASYNC110 (as below)
            await asyncio.sleep(0.001)

    monkeypatch.setattr(connections.Connection, "connection_made", noted)
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    patient = strict(settings, head_timeout_ms=60_000, keepalive_timeout_ms=3_600_000)
    async with serving(patient) as service, connected(service) as (reader, writer):
        for _ in range(2):
            writer.write(request[:9])
            await writer.drain()
            while not made:  # noqa: ASYNC110 (the service is in this loop)
                await asyncio.sleep(0.001)
            await may_stay(False)
            writer.write(request[9:])
            status, _, _ = await answer_of(reader)
            assert status == 200
            await may_stay(True)


async def test_a_connection_that_is_idle_after_an_answer_is_closed(settings: Settings):
    async with serving(strict(settings, keepalive_timeout_ms=50)) as service, connected(service) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, _ = await answer_of(reader)

        assert (status, await closed(reader)) == (200, b"")


@pytest.mark.parametrize("framing", ["Content-Length: 900000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\n"])
async def test_a_body_that_does_not_come_is_given_up(settings: Settings, framing: str):
    async with serving(strict(settings, body_timeout_ms=50)) as service:
        await service.create()
        async with connected(service) as (reader, writer):
            writer.write(f"{UPSERT}Connection: close\r\n{framing}abc".encode())

            status, _, document = await answer_of(reader)

        assert (status, code_of(document)) == (408, 49032)
        assert service.app[BODY_BUDGET].held == 0


@pytest.mark.parametrize(
    ("length", "waited_s", "left_s"),
    [
        pytest.param(0, 0, 10, id="the grace at the start"),
        pytest.param(0, 10, 0, id="nothing for as long as the grace"),
        pytest.param(1_000, 10, 1, id="a thousand bytes earn a second"),
        pytest.param(1_000, 11, 0, id="a byte in a while earns nothing"),
        pytest.param(90_000, 20, 30, id="who was fast may stall"),
        pytest.param(900_000, 95, 5, id="and not beyond the end"),
        pytest.param(900_000, 101, 0, id="the end"),
    ],
)
def test_a_sender_is_waited_for_as_long_as_it_keeps_to_the_least_rate(length: int, waited_s: float, left_s: float):
    patience = Patience(stall_s=30, grace_s=10, bytes_per_second=1_000, total_s=100)

    assert patience.left_s(length=length, waited_s=waited_s) == left_s


@pytest.mark.parametrize(("waited_s", "left_s"), [(0, 30), (90, 10), (101, 0)])
def test_without_a_least_rate_only_stalls_and_the_end_count(waited_s: float, left_s: float):
    patience = Patience(stall_s=30, grace_s=10, bytes_per_second=0, total_s=100)

    assert patience.left_s(length=1, waited_s=waited_s) == left_s


async def test_lengths_that_are_lies_take_nothing_from_honest_clients(settings: Settings):
    async with serving(strict(settings, body_bytes_in_flight_max=100_000)) as service:
        await service.create()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                _, writer = await stack.enter_async_context(connected(service))
                writer.write(f"{UPSERT}Content-Length: 90000\r\n\r\n{{".encode())
                await writer.drain()

            assert (await service.upsert([vector("a")])).status == 200


async def test_a_body_shorter_than_it_said_writes_nothing(service: Service):
    await service.create()
    body = orjson.dumps(vector("a"))
    async with connected(service) as (reader, writer):
        writer.write(f"{UPSERT}Content-Length: {len(body) + 100}\r\n\r\n".encode() + body + b"\n")
        writer.write_eof()
        await closed(reader)

    assert (await service.get("docs/mutations?count=1")).result["mutations"] == []
    assert service.app[BODY_BUDGET].held == 0


async def test_what_comes_after_a_body_is_another_request_and_no_part_of_it(service: Service):
    await service.create()
    body = b'{"ids":["a"]}'
    head = f"POST {V2}/docs/get_by_ids HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with connected(service) as (reader, writer):
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first, _, _ = await answer_of(reader)
        writer.write(b"rubbish\r\n\r\n")
        second, _, document = await answer_of(reader)

        assert (first, second, code_of(document)) == (200, 400, 49030)
        assert await closed(reader) == b""


CHUNKED = "Transfer-Encoding: chunked\r\n"
HEADS = {
    "a length and chunks": f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n{CHUNKED}",
    "chunks and a length": f"POST / HTTP/1.1\r\nHost: x\r\n{CHUNKED}Content-Length: 4\r\n",
    "one length twice": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n",
    "a list of lengths": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n",
    "a length with a plus": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n",
    "a length below nothing": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n",
    "a length in sixteens": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n",
    "a length with a gap": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4 4\r\n",
    "a length beyond 64 bits": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n",
    "a length in other digits": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \u0664\r\n",
    "a coding that looks like chunked": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n",
    "chunked before another": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n",
    "chunked after identity": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n",
    "chunked after gzip": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n",
    "gzip alone": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n",
    "chunked twice": f"POST / HTTP/1.1\r\nHost: x\r\n{CHUNKED}{CHUNKED}",
    "identity, then chunked": f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n{CHUNKED}",
    "chunks in HTTP/1.0": f"POST / HTTP/1.0\r\nHost: x\r\n{CHUNKED}",
    "a space before the colon": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n",
    "a folded header": "POST / HTTP/1.1\r\nHost: x\r\nX-A: a\r\n b\r\n",
    "a header without a name": "GET / HTTP/1.1\r\nHost: x\r\n: a\r\n",
    "a line feed inside a value": "GET / HTTP/1.1\r\nHost: x\r\nX-A: a\nContent-Length: 4\r\n",
    "a carriage return inside a value": "GET / HTTP/1.1\r\nHost: x\r\nX-A: a\rContent-Length: 4\r\n",
    "NUL in a value": "GET / HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n",
    "NUL in the target": "GET /a\0b HTTP/1.1\r\nHost: x\r\n",
    "a target with a host": "GET http://evil/livez HTTP/1.1\r\nHost: x\r\n",
    "a target without a slash": "GET livez HTTP/1.1\r\nHost: x\r\n",
    "a star": "OPTIONS * HTTP/1.1\r\nHost: x\r\n",
    "a tunnel": "CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n",
    "no host": "GET /livez HTTP/1.1\r\n",
    "two hosts": "GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n",
    "a version that is not": "GET /livez HTTP/9.9\r\nHost: x\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n",
    "a method of no letters": "G@T /livez HTTP/1.1\r\nHost: x\r\n",
    "200 headers": "GET /livez HTTP/1.1\r\nHost: x\r\n" + "".join(f"X-{n}: a\r\n" for n in range(200)),
    "a target of 20,000 bytes": f"GET /{'a' * 20_000} HTTP/1.1\r\nHost: x\r\n",
}


@pytest.mark.parametrize("case", HEADS)
async def test_a_head_that_two_servers_could_read_differently_is_refused_once_and_nothing_after_it_is_read(
    service: Service, case: str
):
    async with connected(service) as (reader, writer):
        writer.write(HEADS[case].encode() + b"\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, document = await answer_of(reader)

        assert (status, code_of(document)) == (400, 49030)
        assert headers["content-type"].startswith("application/json")
        assert "Traceback" not in str(document)
        assert await closed(reader) == b""


CHUNKS = {
    "a size that is no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "a size below nothing": b"-1\r\nabc\r\n0\r\n\r\n",
    "a size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "more than the size": b"3\r\nabcdef\r\n0\r\n\r\n",
    "a line feed alone": b"3\nabc\n0\n\n",
    "an extension with a line feed": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", CHUNKS)
async def test_a_chunk_that_is_none_is_refused_and_is_no_failure_of_the_service(service: Service, case: str):
    await service.create()
    with capture_logs() as logs:
        async with connected(service) as (reader, writer):
            writer.write(f"{UPSERT}{CHUNKED}\r\n".encode() + CHUNKS[case])
            status, _, document = await answer_of(reader)

            assert (status, code_of(document)) == (400, 49030)
            assert b"HTTP/1.1 200" not in await closed(reader)

    assert {entry["log_level"] for entry in logs} == {"info"}


async def test_a_get_with_a_body_is_answered_and_its_body_is_no_request(service: Service):
    inner = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(service) as (reader, writer):
        head = f"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(inner)}\r\n\r\n"
        writer.write(head.encode() + inner)
        status, _, _ = await answer_of(reader)

        assert (status, await closed(reader)) == (200, b"")


@pytest.mark.parametrize("bound", ["connections_max", "connections_per_address_max"])
async def test_who_connects_when_too_many_are_is_told_to_come_back(settings: Settings, bound: str):
    async with serving(strict(settings, **{bound: 2})) as service:
        async with connected(service), connected(service), connected(service) as (reader, _):
            status, headers, document = await answer_of(reader)

            assert (status, code_of(document)) == (503, 49035)
            assert int(headers["retry-after"]) >= 1
            assert await closed(reader) == b""
        assert (await service.get("/livez")).status == 200


async def test_a_client_that_does_not_read_its_answers_is_disconnected(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "SENDING_CHECK_S", 0.05)
    async with serving(limited(settings, "relaxed")) as service:
        await service.create(dimensions=1536)
        await service.upsert([{"id": str(number), "values": axis(0, 1536)} for number in range(50)])
        body = orjson.dumps({"ids": [str(number % 50) for number in range(500)]})
        with capture_logs() as logs:
            async with connected(service) as (_, writer):
                head = f"POST {V2}/docs/get_by_ids HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                asked = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
                # Until the buffers of both sides are full and the service gives up.
                writer.transport.pause_reading()
                writer.write(asked * 20)
                while not (cut := [entry for entry in logs if entry.get("reason") == "slow reader"]):
                    await service.get("/livez")

        assert len(cut) == 1
        assert (await service.get("/livez")).status == 200


async def test_rubbish_does_not_fill_the_log(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quiet, "LINES_MAX", 10)
    monkeypatch.setattr(quiet, "WINDOW_S", 3600.0)
    with capture_logs() as logs:
        for _ in range(100):
            async with connected(service) as (reader, writer):
                writer.write(b"\x16\x03\x01\r\n\r\n")
                await closed(reader)

    assert len([entry for entry in logs if entry["event"] == "connection.refused"]) <= 10


def test_the_line_after_many_that_were_left_out_says_how_many(monkeypatch: pytest.MonkeyPatch):
    now_s = 100.0
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now_s)
    lines = quiet.Lines()

    taken = [lines.take() for _ in range(quiet.LINES_MAX + 7)]
    now_s += quiet.WINDOW_S

    assert taken == [0] * quiet.LINES_MAX + [quiet.SILENT] * 7
    assert (lines.take(), lines.take()) == (7, 0)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_one_client_is_one_address_however_many_it_has(address: str, key: str):
    assert address_key(address) == key
