"""How much one client may ask, and how much all of them together."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from service import admission
from service.admission import Pace
from service.keys import ADMISSION
from storage.settings import Settings
from tests.service.conftest import Service, limited, serving, vector

LONG = "a-token-that-nobody-can-guess-in-this-life"


@pytest.fixture(autouse=True)
def a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for who is counted, however slow this machine is."""
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 1000.0))


def bearer(token: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer {token}"}}


def strict(settings: Settings, **rest: object) -> Settings:
    return replace(limited(settings, "cloudflare"), **rest)


async def told_to_wait(service: Service, times: int, **rest: object) -> list[tuple[int, int]]:
    """Status and code of as many requests, each of which says when to come back if it is put off."""
    found = []
    for _ in range(times):
        answer = await service.get("docs/info", **rest)
        if answer.status in (429, 503):
            assert int(answer.headers["Retry-After"]) >= 1
        found.append((answer.status, answer.json["success"] or answer.code))
    return found


def test_a_bucket_gives_its_count_at_once_and_then_at_its_pace():
    pace = Pace(3, 60.0)

    assert [pace.take("a", 1000.0) for _ in range(4)] == pytest.approx([0, 0, 0, 20.0])
    assert pace.take("b", 1000.0) == 0
    assert pace.take("a", 1019.0) == pytest.approx(1.0)
    assert [pace.take("a", 1020.0) for _ in range(2)] == pytest.approx([0, 20.0])
    assert [pace.take("a", 5000.0) for _ in range(4)] == pytest.approx([0, 0, 0, 20.0])


def test_a_bucket_that_was_looked_into_is_as_it_was():
    pace = Pace(1, 10.0)

    assert [pace.look("a", 1000.0) for _ in range(3)] == [0, 0, 0]
    pace.take("a", 1000.0)
    assert pace.look("a", 1004.0) == pytest.approx(6.0)
    assert pace.look("a", 1010.0) == 0


def test_clients_without_number_take_memory_for_so_many_and_the_last_stay_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "KEYS_MAX", 100)
    pace = Pace(1, 10.0)

    for number in range(10_000):
        pace.take(str(number), 1000.0)

    assert len(pace._full_at_s) <= 100
    assert pace.take("9999", 1001.0) == pytest.approx(9.0)


async def test_an_address_that_asks_too_often_is_put_off_and_health_is_still_told(settings: Settings):
    async with serving(strict(settings, requests_per_second_per_address_max=1)) as service:
        statuses = await told_to_wait(service, 20)

        assert statuses == [(404, 3000), *[(429, 40041)] * 19]
        assert (await service.get("/livez")).status == 200


async def test_a_token_that_is_used_too_often_is_put_off(settings: Settings):
    async with serving(strict(settings, token=LONG, requests_per_second_per_token_max=1)) as service:
        statuses = await told_to_wait(service, 20, **bearer(LONG))

        assert statuses == [(404, 3000), *[(429, 40041)] * 19]
        assert await told_to_wait(service, 1, **bearer("wrong")) == [(401, 10000)]


async def test_wrong_credentials_of_one_address_are_put_off_after_so_many(settings: Settings):
    async with serving(strict(settings, token="short", failed_credentials_per_minute_max=5)) as service:
        assert await told_to_wait(service, 1, **bearer("short")) == [(404, 3000)]
        assert await told_to_wait(service, 5, **bearer("wrong")) == [(401, 10000)] * 5
        assert await told_to_wait(service, 3, **bearer("wrong")) == [(429, 40041)] * 3
        # Otherwise the right guess would be told from the wrong ones.
        assert await told_to_wait(service, 1, **bearer("short")) == [(429, 40041)]


async def test_a_credential_nobody_can_guess_is_let_in_whatever_its_neighbours_show(settings: Settings):
    async with serving(strict(settings, token=LONG, failed_credentials_per_minute_max=2)) as service:
        assert (await told_to_wait(service, 4, **bearer("wrong")))[-1] == (429, 40041)
        assert await told_to_wait(service, 1, **bearer(LONG)) == [(404, 3000)]


async def test_requests_beyond_what_the_process_takes_on_are_put_off(settings: Settings):
    async with serving(strict(settings, requests_in_flight_max=2)) as service:
        await service.create()
        await service.running.stop_worker()
        held = [
            asyncio.ensure_future(service.upsert([vector("a")], params={"wait": "true", "timeout": "60"}))
            for _ in range(2)
        ]
        while service.app[ADMISSION].in_flight < 2:
            await service.get("/livez")

        assert await told_to_wait(service, 1) == [(503, 49035)]
        assert (await service.get("/livez")).status == 200
        await service.running.start_worker()
        assert [answer.status for answer in await asyncio.gather(*held)] == [200, 200]
        assert await told_to_wait(service, 1) == [(200, True)]
    assert service.app[ADMISSION].in_flight == 0
