"""How much one process takes on: requests at a time, and requests of one client in a while.

Each process counts for itself, so nothing is shared and nothing is waited for. A bound that is off costs a look at
one attribute. The routes that are open to everybody are not bounded: a probe must be answered when nothing else is.
"""

from __future__ import annotations

import math
import time

from aiohttp import web

from service.addresses import address_key
from service.bodies import RETRY_AFTER_S
from storage.settings import Settings
from storage.tokens import TokenId

KEYS_MAX = 20_000
"""The clients a `Pace` remembers; what an attacker with many addresses can make it hold."""
GUESSABLE_CHARS = 24
"""A credential shorter than this might be guessed."""
_FAILURES = "this address shows too many wrong credentials"


class Pace:
    """A token bucket for each key: `count` at once, and as many again in each `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        self._seconds = seconds
        self._each_s = seconds / count
        # When the bucket of a key is full again: all there is to know of it, and of a full one there is nothing.
        self._full_at_s: dict[str, float] = {}

    def take(self, key: str, now_s: float) -> float:
        """Take one, if there is one. Returns 0, or how many seconds until there is one."""
        full_at_s = max(self._full_at_s.get(key, 0.0), now_s) + self._each_s
        # The tolerance is for sums of fractions.
        over_s = full_at_s - now_s - self._seconds
        if over_s > 1e-9 * now_s:
            return over_s
        if len(self._full_at_s) >= KEYS_MAX:
            self._forget(now_s)
        self._full_at_s[key] = full_at_s
        return 0.0

    def look(self, key: str, now_s: float) -> float:
        """As `take`, and takes none."""
        return max(0.0, self._full_at_s.get(key, 0.0) + self._each_s - now_s - self._seconds)

    def _forget(self, now_s: float) -> None:
        """Forget the full ones, and if those are few the half that was met first."""
        kept = [(key, full_at_s) for key, full_at_s in self._full_at_s.items() if full_at_s > now_s]
        self._full_at_s = dict(kept[len(kept) - KEYS_MAX // 2 :] if len(kept) > KEYS_MAX // 2 else kept)


class Admission:
    """What one application takes on. Every `check` raises HTTPServiceUnavailable or HTTPTooManyRequests."""

    def __init__(self, settings: Settings) -> None:
        self.in_flight = 0
        self.in_flight_max = settings.requests_in_flight_max
        self._by_address = _pace(settings.requests_per_second_per_address_max, 1.0)
        self._by_token = _pace(settings.requests_per_second_per_token_max, 1.0)
        self._failures = _pace(settings.failed_credentials_per_minute_max, 60.0)

    def check_request(self, request: web.Request) -> None:
        """Refuse a request when too many are under way, or come from its address, before its token is looked at."""
        if self.in_flight > self.in_flight_max:
            raise web.HTTPServiceUnavailable(
                text=f"{self.in_flight_max} requests are under way, and this process takes on no more; try again soon",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        if self._by_address is not None:
            wait_s = self._by_address.take(address_key(request.remote or ""), time.monotonic())
            if wait_s:
                raise _too_many(wait_s, "this address sends more requests than it may")

    def check_credential(self, request: web.Request, text: str, token: TokenId) -> None:
        """Refuse a request whose token is used too often, or may have been guessed.

        Whether it was guessed nobody knows; but while an address fails too often, a right guess must look like a wrong
        one. A token that is too long to be guessed is let in all the same: clients behind one proxy share an address,
        and one of them with an old token must not lock out the others.
        """
        if self._failures is not None and len(text) < GUESSABLE_CHARS:
            wait_s = self._failures.look(address_key(request.remote or ""), time.monotonic())
            if wait_s:
                raise _too_many(wait_s, _FAILURES)
        if self._by_token is not None and token:
            wait_s = self._by_token.take(token, time.monotonic())
            if wait_s:
                raise _too_many(wait_s, "more requests are sent with this token than may be")

    def count_failure(self, request: web.Request, text: str) -> None:
        """Count a wrong credential. After too many of one address the refusal is another."""
        if self._failures is None or not text:
            return
        wait_s = self._failures.take(address_key(request.remote or ""), time.monotonic())
        if wait_s:
            raise _too_many(wait_s, _FAILURES)


def _pace(count: int, seconds: float) -> Pace | None:
    return Pace(count, seconds) if count > 0 else None


def _too_many(wait_s: float, text: str) -> web.HTTPTooManyRequests:
    return web.HTTPTooManyRequests(
        text=f"{text}; try again in {wait_s:.3f} s", headers={"Retry-After": str(max(1, math.ceil(wait_s)))}
    )
