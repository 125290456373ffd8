"""Tokens: what they may do, how long, and that every process hears of a change."""

from __future__ import annotations

import random
import re
from contextlib import closing
from dataclasses import replace

import pytest

from service.commands.doctor import run_doctor
from storage.access import is_locked, open_tokens
from storage.backends.sqlite import tokens
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.tokens import FORGET_AFTER_MS, LOOK_EVERY_S, KnownTokens
from storage.errors import StateDamaged
from storage.settings import Settings
from storage.tokens import (
    Scope,
    Standing,
    Token,
    TokenId,
    grant_text,
    judge,
    new_id,
    new_text,
    parse_grant,
    rotated,
    token_hash,
    token_id,
)

NOW = 1_000_000
dice = random.Random(7)


def token(*grants: str, text: str = "hr_aaaaaaaaaaaa_x", **rest) -> Token:
    return Token(
        id=token_id(text), name="ci", hash=token_hash(text), grants=tuple(parse_grant(one) for one in grants), **rest
    )


@pytest.mark.parametrize(
    ("grant", "scope", "account", "index", "allowed"),
    [
        ("read:acme", Scope.READ, "acme", "docs", True),
        ("read:acme", Scope.WRITE, "acme", "docs", False),
        ("read:acme", Scope.READ, "acm", "docs", False),
        ("read:acme", Scope.READ, "ACME", "docs", False),
        ("write:acme/docs-*", Scope.READ, "acme", "docs-de", True),
        ("write:acme/docs-*", Scope.WRITE, "acme", "docs", False),
        ("admin:*/docs", Scope.ADMIN, "any", "docs", True),
        ("admin:*/d?cs", Scope.ADMIN, "any", "docs", True),
        ("admin:*/d?cs", Scope.ADMIN, "any", "docs\n", False),
        ("metrics:*", Scope.READ, "any", "docs", False),
    ],
)
def test_a_grant_allows_its_scope_and_less_on_what_it_names_only(grant, scope, account, index, allowed):
    assert token(grant).may(scope, account, index) is allowed


def test_grants_add_up_and_do_not_mix():
    both = token("read:acme", "admin:acme/tmp-*", "write:other")

    assert both.may(Scope.ADMIN, "acme", "tmp-1")
    assert both.may(Scope.READ, "acme", "docs")
    assert not both.may(Scope.WRITE, "acme", "docs")
    assert not both.may(Scope.ADMIN, "other", "tmp-1")
    assert not both.may_everywhere(Scope.METRICS)
    assert token("metrics:*").may_everywhere(Scope.METRICS)


@pytest.mark.parametrize("text", ["read:acme", "write:a b/docs-*", "admin:*", "metrics:*", "read:x:y/a?"])
def test_a_grant_is_written_as_it_is_read(text):
    assert grant_text(parse_grant(text)) == text


@pytest.mark.parametrize(
    "text", ["", "read", "read:", "root:acme", "read:a/", "read:a/Docs", "read:a/[a-z]", "metrics:acme"]
)
def test_what_is_no_grant_is_refused_with_what_would_work(text):
    with pytest.raises(ValueError, match=r"write SCOPE|write metrics|names of indexes"):
        parse_grant(text)


def test_a_new_token_names_its_id_and_has_a_secret_of_256_bits():
    id = new_id(dice.choice)
    text = new_text(id, dice.choice)

    assert re.fullmatch(r"hr_[a-z0-9]{12}_[A-Za-z0-9]{43}", text)
    assert token_id(text) == id


@pytest.mark.parametrize("text", ["", "secret", "hr_", "hr_short_x", "xx_aaaaaaaaaaaa_x", "hr", "ü_€_"])
def test_a_text_of_another_form_has_no_id(text):
    assert token_id(text) == ""


@pytest.mark.parametrize(
    ("known", "given", "standing"),
    [
        (token("read:a"), "hr_aaaaaaaaaaaa_x", Standing.VALID),
        (token("read:a"), "hr_aaaaaaaaaaaa_y", Standing.UNKNOWN),
        (token("read:a"), "hr_aaaaaaaaaaaa_\udcff€", Standing.UNKNOWN),
        (None, "hr_aaaaaaaaaaaa_x", Standing.UNKNOWN),
        (token("read:a", expires_ms=NOW), "hr_aaaaaaaaaaaa_x", Standing.EXPIRED),
        (token("read:a", expires_ms=NOW + 1), "hr_aaaaaaaaaaaa_x", Standing.VALID),
        (token("read:a", revoked_ms=1), "hr_aaaaaaaaaaaa_x", Standing.REVOKED),
        (token("read:a", revoked_ms=1), "hr_aaaaaaaaaaaa_y", Standing.UNKNOWN),
    ],
)
def test_a_credential_is_judged_by_its_hash_first_and_then_by_the_clock(known, given, standing):
    assert judge(known, token_hash(given), NOW) is standing


def test_after_a_rotation_the_old_secret_works_as_long_as_it_was_given():
    old, new = token_hash("hr_aaaaaaaaaaaa_x"), token_hash("hr_aaaaaaaaaaaa_new")
    at_once = rotated(token("read:a"), hash=new, now_ms=NOW, overlap_ms=0, expires_ms=0)
    later = rotated(token("read:a"), hash=new, now_ms=NOW, overlap_ms=10, expires_ms=0)

    assert judge(at_once, old, NOW) is Standing.UNKNOWN
    assert judge(later, old, NOW + 9) is Standing.VALID
    assert judge(later, old, NOW + 10) is Standing.EXPIRED
    assert judge(later, new, NOW + 10) is Standing.VALID
    assert judge(replace(later, revoked_ms=NOW), old, NOW + 9) is Standing.REVOKED
    assert judge(later, bytes(32), NOW) is Standing.UNKNOWN


async def test_a_new_token_is_known_at_once_and_a_change_a_quarter_of_a_second_later(tmp_path):
    settings = Settings(data=tmp_path / "data")
    assert not is_locked(settings)
    editor = await open_tokens(settings)
    now = 0.0
    try:
        with closing(KnownTokens(DataFolder(settings.data).control, clock=lambda: now)) as known:
            assert not known.is_locked()
            mine = token("write:acme/docs-*", "read:*", expires_ms=9, created_ms=5)
            assert await editor.add(mine)
            assert known.find(mine.id) == mine, "a new one is known at once"
            assert known.is_locked()
            assert is_locked(settings)

            revoked = await editor.change(mine.id, lambda one: replace(one, revoked_ms=6))
            assert known.find(mine.id) == mine
            now += LOOK_EVERY_S
            assert known.find(mine.id) == revoked == replace(mine, revoked_ms=6)
            assert await editor.change(TokenId("nobody"), lambda one: one) is None
    finally:
        await editor.close()


async def test_tokens_that_ended_long_ago_make_room_for_new_ones_and_the_door_stays_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENS_MAX", 4)  # Room gets short at half of it.
    editor = await open_tokens(Settings(data=tmp_path / "data"))
    try:
        await editor.add(token("read:a", text="hr_aaaaaaaaaaa1_x", expires_ms=NOW))
        await editor.add(token("read:a", text="hr_aaaaaaaaaaa2_x", revoked_ms=0))
        await editor.change(TokenId("aaaaaaaaaaa2"), lambda one: replace(one, revoked_ms=NOW + 2))
        last = token("read:a", text="hr_aaaaaaaaaaa3_x", created_ms=NOW + FORGET_AFTER_MS + 1)
        await editor.add(last)

        assert [one.id for one in await editor.all()] == ["aaaaaaaaaaa2", "aaaaaaaaaaa3"]
    finally:
        await editor.close()


async def test_a_token_that_is_made_under_a_clock_ahead_takes_no_other_away(tmp_path):
    editor = await open_tokens(Settings(data=tmp_path / "data"))
    try:
        good = token("read:a", text="hr_aaaaaaaaaaa1_x", expires_ms=NOW + 1)
        await editor.add(good)
        await editor.add(token("read:a", text="hr_aaaaaaaaaaa2_x", created_ms=NOW + 10 * 365 * 86_400_000))

        assert good in await editor.all()
    finally:
        await editor.close()


DAMAGE = {
    "wider": "UPDATE tokens SET grants = replace(grants, 'docs', '*') WHERE id = 'aaaaaaaaaaa1'",
    "longer": "UPDATE tokens SET expires_ms = 0 WHERE id = 'aaaaaaaaaaa1'",
    "not revoked": "UPDATE tokens SET revoked_ms = 0 WHERE id = 'aaaaaaaaaaa1'",
    "no JSON": "UPDATE tokens SET grants = '[[' WHERE id = 'aaaaaaaaaaa1'",
    "another sum": "UPDATE token_sums SET checksum = 7 WHERE id = 'aaaaaaaaaaa1'",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_token_whose_row_was_changed_opens_nothing_and_the_others_do(tmp_path, capsys, damage):
    settings = Settings(data=tmp_path / "data")
    text, other = "hr_aaaaaaaaaaa1_x", token("read:a", text="hr_aaaaaaaaaaa2_x")
    editor = await open_tokens(settings)
    try:
        await editor.add(token("read:a/docs", text=text, expires_ms=NOW + 1))
        await editor.add(other)
        await editor.change(TokenId("aaaaaaaaaaa1"), lambda one: replace(one, revoked_ms=NOW))
        control = DataFolder(settings.data).control
        with closing(connect(control)) as connection:
            connection.execute(damage)
            connection.commit()

        with closing(KnownTokens(control)) as known:
            assert judge(known.find(TokenId("aaaaaaaaaaa1")), token_hash(text), NOW) is Standing.UNKNOWN
            assert known.find(other.id) == other
            assert known.is_locked()
        assert [one.name for one in await editor.all()] == ["(damaged)", "ci"]
        with pytest.raises(StateDamaged, match="aaaaaaaaaaa1"):
            await editor.change(TokenId("aaaaaaaaaaa1"), lambda one: replace(one, hash=token_hash("hr_new")))
        assert run_doctor(settings, mend=False) == 1
        assert "token aaaaaaaaaaa1" in capsys.readouterr().out
    finally:
        await editor.close()


async def test_a_token_of_a_program_without_sums_is_a_token(tmp_path):
    settings = Settings(data=tmp_path / "data")
    mine = token("read:a")
    editor = await open_tokens(settings)
    try:
        await editor.add(mine)
        with closing(connect(DataFolder(settings.data).control)) as connection:
            connection.execute("DELETE FROM token_sums")
            connection.commit()

        assert await editor.all() == (mine,)
    finally:
        await editor.close()
