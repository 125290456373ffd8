"""What a request says beside its body: path, query string and headers, read with the bounds each has."""

from __future__ import annotations

import math

from aiohttp import web

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.names import INDEX_NAME as INDEX_NAME_PATTERN
from service.dialects.vectorize.names import is_account
from service.keys import INDEX_NAME, STORE
from storage.errors import IndexNotFound
from storage.records import AccountId, IndexSpec
from storage.settings import Settings

IDEMPOTENCY_KEY_MAX = 255
_FLAGS = {"true": True, "1": True, "": True, "false": False, "0": False}


def account_of(request: web.Request) -> AccountId:
    """The account of the path. Raises HTTPNotFound for one that nobody can have."""
    account = request.match_info["account"]
    if not is_account(account):
        raise web.HTTPNotFound
    return AccountId(account)


def index_of(request: web.Request) -> IndexSpec:
    """The live index of the path, as of now. Raises IndexNotFound, IndexDeleted."""
    account = account_of(request)
    name = request.match_info["name"]
    request[INDEX_NAME] = name
    if not INDEX_NAME_PATTERN.fullmatch(name):
        raise IndexNotFound(f"no index can be called {name!r:.80}")
    return request.app[STORE].index(account, name)


def flag_parameter(request: web.Request, name: str) -> bool:
    """A yes or no; absent is no, and the bare name is yes. Raises Refusal."""
    text = request.query.get(name, "false").lower()
    if text not in _FLAGS:
        raise _invalid(name, text, "true or false")
    return _FLAGS[text]


def whole_parameter(request: web.Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number within bounds. Raises Refusal."""
    text = request.query.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not least <= number <= most:
        raise _invalid(name, text, f"a whole number from {least} to {most}")
    return number


def timeout_s(request: web.Request, settings: Settings) -> float:
    """How long the caller wants to wait, in seconds, at most as long as anybody may. Raises Refusal."""
    text = request.query.get("timeout")
    if text is None:
        return settings.wait_timeout_ms / 1000
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _invalid("timeout", text, "a number of seconds, 0 or more")
    return min(seconds, settings.wait_timeout_max_ms / 1000)


def choice_parameter(request: web.Request, name: str, choices: tuple[str, ...]) -> str:
    """One of some words; absent is the first. Raises Refusal."""
    text = request.query.get(name, choices[0])
    if text not in choices:
        raise _invalid(name, text, " or ".join(choices))
    return text


def words_parameter(request: web.Request, name: str, words: frozenset[str]) -> frozenset[str]:
    """Some of a set of words, separated by commas. Raises Refusal."""
    found = frozenset(word.strip() for word in request.query.get(name, "").split(",") if word.strip())
    if not found <= words:
        raise _invalid(name, ",".join(sorted(found - words)), f"some of {', '.join(sorted(words))}")
    return found


def idempotency_key(request: web.Request) -> str:
    """The key under which a write may be repeated, or empty. Raises Refusal."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > IDEMPOTENCY_KEY_MAX or not (key.isascii() and (key.isprintable() or not key)):
        message = f"the header Idempotency-Key takes up to {IDEMPOTENCY_KEY_MAX} characters of ASCII"
        raise Refusal(Code.PARAMETER_INVALID, message)
    return key


def _invalid(name: str, found: str, expected: str) -> Refusal:
    message = f"the parameter {name} is {found!r:.80}; it takes {expected}"
    return Refusal(Code.PARAMETER_INVALID, message)
