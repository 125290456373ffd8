"""The load generator, against a server that answers what it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import orjson
import pytest
from aiohttp import web

from scripts.benchmark import load, trivial


async def _answer(request: web.Request) -> web.Response:
    asked = await request.json()
    answer = {"asked": asked["number"], "padding": "x" * asked.get("bytes", 0)}
    return web.Response(body=orjson.dumps(answer), status=asked.get("status", 200))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/ask", _answer)
    runner = web.AppRunner(app, access_log=None)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    found = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield found
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def ask(number: int, **more: object) -> bytes:
    return load.post("/ask", orjson.dumps({"number": number, **more}))


def answer(run: load.Run, number: int) -> int:
    return int(orjson.loads(load.body_of(run.bodies[number]))["asked"])


@pytest.mark.parametrize("connections", [1, 3])
def test_every_answer_is_kept_under_the_number_of_its_request(port: int, connections: int) -> None:
    requests = [ask(number) for number in range(7)]

    run = load.closed_loop(port, requests, connections=connections, count=17)

    assert len(run.latencies) == 17
    assert {number: answer(run, number) for number in run.bodies} == {number: number for number in range(7)}
    assert run.refused == 0
    assert run.rate > 0
    assert 0 < run.percentile(50) <= run.percentile(99)


def test_refusals_are_counted(port: int) -> None:
    requests = [ask(0), ask(1, status=503)]

    run = load.closed_loop(port, requests, connections=2, count=10)

    assert run.refused == 5


def test_answers_and_bodies_larger_than_a_read_come_whole(port: int) -> None:
    requests = [ask(0, bytes=5_000_000), ask(1, sent="y" * 5_000_000)]

    run = load.closed_loop(port, requests, connections=2, count=4)

    assert len(load.body_of(run.bodies[0])) > 5_000_000
    assert answer(run, 1) == 1


def test_a_run_by_time_ends_with_every_request_answered(port: int) -> None:
    run = load.closed_loop(port, [ask(0)], connections=4, seconds=0.05)

    assert run.seconds >= 0.05
    assert len(run.latencies) >= 4


def test_paced_requests_are_as_many_as_the_pace_gives(port: int) -> None:
    run = load.paced(port, [ask(0), ask(1)], connections=2, seconds=0.2, rate=100)

    assert len(run.latencies) == 20


def test_the_trivial_server_answers_every_request() -> None:
    with trivial.running() as port:
        run = load.closed_loop(port, [ask(0), ask(1, sent="y" * 300_000)], connections=2, count=40)

    assert len(run.latencies) == 40
    assert run.refused == 0
