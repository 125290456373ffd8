"""One service process, from its first to its last moment."""

from __future__ import annotations

import asyncio
import socket

import aiohttp

from service.process import run
from storage.settings import Settings
from tests.conftest import running_on
from tests.service.conftest import V2


def listener() -> socket.socket:
    found = socket.create_server(("127.0.0.1", 0))
    found.setblocking(False)
    return found


async def test_a_process_says_ready_when_it_answers_and_ends_when_told(settings: Settings):
    ready, stop, sock = asyncio.Event(), asyncio.Event(), listener()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    process = asyncio.create_task(run(settings, sockets=[sock], ready=ready.set, stop=stop))
    await ready.wait()
    async with aiohttp.ClientSession() as session, session.get(f"{url}{V2}") as response:
        status = response.status
    stop.set()
    await process

    assert status == 200
    assert process.exception() is None


async def test_a_request_under_way_is_finished_before_the_process_ends(settings: Settings):
    async with running_on(settings) as running:
        spec = await running.index()
        ready, stop, sock = asyncio.Event(), asyncio.Event(), listener()
        process = asyncio.create_task(run(settings, sockets=[sock], ready=ready.set, stop=stop))
        await ready.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])

        body = b'{"id":"a","values":[1,2,3,4]}'
        head = f"POST {V2}/{spec.name}/upsert HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
        asked = await reader.readuntil(b"\r\n\r\n")
        stop.set()
        writer.write(body)
        answer = await reader.read()
        await process

        assert asked.startswith(b"HTTP/1.1 100")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"mutationId" in answer
        assert int(await running.store.head(spec)) == 1
        writer.close()
        await writer.wait_closed()
