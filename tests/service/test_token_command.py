"""`headrace token`, and what a supervisor makes of the tokens it finds."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.commands.failure import EXIT_USAGE, CommandFailed
from service.commands.listeners import resolve_address
from service.commands.token import create, revoke, rotate, show_all, span_ms, time_ms
from service.commands.up import _own_token
from service.gate import Gate
from storage.access import is_locked, open_tokens
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.tokens import KnownTokens
from storage.settings import Settings
from storage.tokens import Standing, Token, parse_grant, token_hash, token_id
from tests.service.conftest import V2, limited, serving

NOW = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000


@pytest.fixture
def told(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data")


def made(told: Settings, capsys: pytest.CaptureFixture[str], *grants: str, expires: str = "never") -> str:
    """A new token, as its maker sees it."""
    assert create(told, name="ci", grants=grants or ("write:acme",), expires=expires) == 0
    return capsys.readouterr().out.strip()


def standing(told: Settings, text: str) -> Standing:
    """What a service that starts now says to it."""
    known = KnownTokens(DataFolder(told.data).control)
    try:
        return Gate(known, told.token).look(text)[0]
    finally:
        known.close()


def listed(told: Settings, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    show_all(told, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_a_token_is_printed_once_alone_and_found_nowhere_on_disk(told, capsys):
    text = made(told, capsys, "write:acme/docs-*", "read:*")

    assert re.fullmatch(r"hr_[a-z0-9]{12}_[A-Za-z0-9]{43}", text)
    assert standing(told, text) is Standing.VALID
    secret = text.rpartition("_")[2].encode()
    assert all(secret not in file.read_bytes() for file in told.data.rglob("*") if file.is_file())
    [one] = listed(told, capsys)
    assert (one["id"], one["name"], one["state"]) == (token_id(text), "ci", "valid")
    assert one["grants"] == ["write:acme/docs-*", "read:*"]


def test_the_list_is_a_table_without_secrets(told, capsys):
    text = made(told, capsys, expires="90d")

    show_all(told, as_json=False)
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].split() == ["ID", "NAME", "STATE", "GRANTS", "CREATED", "EXPIRES", "USED"]
    assert lines[1].split()[:4] == [token_id(text), "ci", "valid", "write:acme"]
    assert text.rpartition("_")[2] not in "".join(lines)


def test_a_revoked_token_opens_nothing_and_neither_does_an_empty_hand(told, capsys):
    text = made(told, capsys)

    assert revoke(told, ids=[text]) == 0, "a whole token is taken for its id"

    assert standing(told, text) is Standing.REVOKED
    assert standing(told, "") is Standing.MISSING, "the last token locks the door behind it"


def test_a_rotated_token_has_its_id_and_grants_and_another_secret(told, capsys):
    old = made(told, capsys)
    rotate(told, id=token_id(old), overlap="0", expires="")
    new = capsys.readouterr().out.strip()

    assert (token_id(new), standing(told, new), standing(told, old)) == (
        token_id(old),
        Standing.VALID,
        Standing.UNKNOWN,
    )
    rotate(told, id=token_id(old), overlap="1h", expires="30d")
    newest = capsys.readouterr().out.strip()
    assert {standing(told, text) for text in (new, newest)} == {Standing.VALID}
    [one] = listed(told, capsys)
    assert one["expires"]
    assert one["oldSecretUntil"]


def test_what_ended_is_not_rotated_back_to_life(told, capsys):
    text = made(told, capsys)
    revoke(told, ids=[token_id(text)])

    with pytest.raises(CommandFailed, match="revoked; make a new one"):
        rotate(told, id=token_id(text), overlap="0", expires="90d")


def test_what_is_not_there_is_said_so(told, capsys):
    with pytest.raises(CommandFailed, match="--data"):
        show_all(told, as_json=False)
    assert not told.data.exists()
    made(told, capsys)
    for command in (
        lambda: revoke(told, ids=["nobody"]),
        lambda: rotate(told, id="nobody", overlap="0", expires=""),
    ):
        with pytest.raises(CommandFailed, match="no token nobody"):
            command()


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ({"grants": ["all"]}, "SCOPE:ACCOUNT"),
        ({"grants": ["read:a"] * 65}, "64"),
        ({"name": "a\nb"}, "printable"),
        ({"name": ""}, "printable"),
        ({"expires": "soon"}, "90d"),
        ({"expires": "2001-01-01"}, "over already"),
        ({"expires": "0"}, "over already"),
    ],
)
def test_a_mistake_is_explained_and_makes_nothing(told, capsys, rest, says):
    with pytest.raises(CommandFailed, match=says) as refused:
        create(told, **({"name": "ci", "grants": ["read:a"], "expires": "never"} | rest))

    assert refused.value.exit_code == EXIT_USAGE
    assert capsys.readouterr().out == ""
    assert not is_locked(told)


@pytest.mark.parametrize(
    ("text", "moment"),
    [("never", 0), ("1d", NOW + DAY_MS), ("90m", NOW + 90 * 60_000), ("2026-11-22", NOW + DAY_MS // 2)],
)
def test_times_are_spans_from_now_or_days(text, moment):
    assert time_ms(text, NOW) == moment


def test_no_time_at_all_is_a_span():
    assert span_ms("0") == 0


def test_every_address_may_be_listened_on_once_there_is_a_token(told, capsys):
    everywhere = replace(told, host="0.0.0.0")
    with pytest.raises(CommandFailed, match="headrace token create"):
        resolve_address(everywhere, is_locked=is_locked(everywhere))
    assert not told.data.exists()

    made(told, capsys)

    assert not resolve_address(everywhere, is_locked=is_locked(everywhere)).is_loopback


def test_a_supervisor_without_a_configured_token_makes_one_for_itself_and_takes_it_back(told, capsys):
    async def own(settings: Settings) -> str:
        async with _own_token(settings) as text:
            if text:
                assert standing(settings, text) is Standing.VALID
            return text

    assert asyncio.run(own(told)) == ""
    made(told, capsys)
    text = asyncio.run(own(told))

    assert standing(told, text) is Standing.UNKNOWN
    assert len(listed(told, capsys)) == 1
    assert asyncio.run(own(replace(told, token="mine"))) == "mine"


async def test_the_list_says_when_a_token_was_last_let_in(settings):
    editor = await open_tokens(settings)
    texts = {name: f"hr_{name * 12}_x" for name in "abc"}
    for text in texts.values():
        grants = (parse_grant("read:acc"),)
        await editor.add(Token(id=token_id(text), name="ci", hash=token_hash(text), grants=grants, created_ms=1))
    await editor.change(token_id(texts["b"]), lambda one: replace(one, revoked_ms=1))
    async with serving(limited(settings, "cloudflare")) as service:
        for text in (texts["a"], texts["b"], texts["c"] + "wrong"):
            await service.get(V2, headers={"api-key": text})
        assert await editor.uses() == {}, "not while somebody waits"

    assert (await editor.uses()).keys() == {token_id(texts["a"])}, "at the end at the latest"
    [one] = [one for one in await editor.all() if one.id == token_id(texts["a"])]
    assert (await editor.uses())[one.id] > one.created_ms
    await editor.remove(one.id)
    assert await editor.uses() == {}
    await editor.close()
