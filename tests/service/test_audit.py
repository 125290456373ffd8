"""The audit: one event for every change and nothing for what only reads, whoever asked and whatever came of it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.audit import Audit
from service.commands.audit import check_audit
from service.commands.failure import CommandFailed
from service.commands.token import create, revoke, rotate
from storage.access import open_tokens
from storage.settings import Settings
from storage.tokens import Token, parse_grant, token_hash, token_id
from tests.service.conftest import JSON, NDJSON, Service, axis, limited, serving

ADMIN, READER = f"hr_adminadmin12_{'s' * 43}", f"hr_readerreader_{'s' * 43}"
V2 = "/accounts/acc/vectorize/v2/indexes"
LINES = orjson.dumps({"id": "a", "values": axis(0)})


@asynccontextmanager
async def audited(settings: Settings, file: Path) -> AsyncIterator[Service]:
    editor = await open_tokens(settings)
    for text, grant in ((ADMIN, "admin:acc"), (READER, "read:acc")):
        await editor.add(Token(id=token_id(text), name="x", hash=token_hash(text), grants=(parse_grant(grant),)))
    await editor.close()
    async with serving(replace(limited(settings, "cloudflare"), audit_file=str(file))) as service:
        yield service


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def asked(
    service: Service, method: str, path: str, body: Any = None, *, held: str = ADMIN, **headers: str
) -> Any:
    """Ask something, and return the answer's document."""
    kind = NDJSON if isinstance(body, bytes) else JSON
    data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
    url = path if path.startswith("/") else f"{V2}/{path}"
    return await service.ask(method, url, data=data, headers=kind | {"api-key": held} | headers)


async def test_every_kind_of_change_is_written_down_with_who_what_and_which_mutation(settings, tmp_path):
    file = tmp_path / "audit.jsonl"
    async with audited(settings, file) as service:
        steps = [
            ("POST", V2, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}}),
            ("POST", "docs/metadata_index/create", {"propertyName": "p", "indexType": "string"}),
            ("POST", "docs/insert", LINES),
            ("POST", "docs/upsert", LINES),
            ("POST", "docs/delete_by_ids", {"ids": ["a"]}),
            ("POST", "docs/delete_by_filter", {"filter": {"p": "x"}}),
            ("POST", "/accounts/acc/_binding/docs/upsert", LINES),
            ("POST", "/accounts/acc/_binding/docs/deleteByIds", {"ids": ["a"]}),
            ("POST", "docs/metadata_index/delete", {"propertyName": "p"}),
            ("DELETE", "docs", None),
        ]
        answers = [await asked(service, *step) for step in steps]

    assert [answer.status for answer in answers] == [200] * len(steps)
    found = events(file)
    assert [(one["method"], one["path"]) for one in found] == [
        (method, path if path.startswith("/") else f"{V2}/{path}") for method, path, _ in steps
    ]
    administration = {V2, f"{V2}/docs", f"{V2}/docs/metadata_index/create", f"{V2}/docs/metadata_index/delete"}
    for one, answer in zip(found, answers, strict=True):
        kind = "administration.audited" if one["path"] in administration else "write.audited"
        document = answer.json.get("result", answer.json) or {}
        assert (one["event"], one["token"]) == (kind, "adminadmin12")
        assert (one["account"], one["index"], one["outcome"]) == ("acc", "docs", "done")
        assert one["mutation"] == document.get("mutationId", "")
        assert one["request_id"] == answer.headers["X-Request-Id"]


async def test_a_change_that_failed_is_written_down_and_what_reads_or_is_turned_away_is_not(settings, tmp_path):
    file = tmp_path / "audit.jsonl"
    async with audited(settings, file) as service:
        await asked(service, "POST", "docs/insert", LINES)
        await asked(service, "POST", V2, {"name": "NO", "config": {"dimensions": 32, "metric": "cosine"}})
        await asked(service, "POST", "docs/insert", LINES, held=READER)
        await asked(service, "POST", "docs/insert", LINES, held="wrong")
        await asked(service, "GET", V2)
        await asked(service, "POST", "docs/query", {"vector": axis(0)})

    found = events(file)
    assert [(one["event"], one["outcome"]) for one in found] == [
        ("write.audited", "failed: IndexNotFound"),
        ("administration.audited", "failed: Refusal"),
    ]


async def test_nothing_of_what_was_written_and_no_token_is_in_the_audit(settings, tmp_path):
    file = tmp_path / "audit.jsonl"
    async with audited(settings, file) as service:
        await asked(service, "POST", V2, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}})
        secret = {"id": "hush-hush", "values": axis(0), "metadata": {"k": "classified"}, "namespace": "undercover"}
        await asked(service, "POST", "docs/insert?x=query-string", orjson.dumps(secret))

    text = file.read_text()
    for word in ("hush-hush", "classified", "undercover", "query-string", ADMIN, "s" * 43):
        assert word not in text
    assert file.stat().st_mode & 0o077 == 0


def test_a_file_that_was_moved_away_is_made_anew_on_reopening(tmp_path):
    file = tmp_path / "audit.jsonl"
    token = Token(id=token_id(ADMIN), name="x", hash=b"", grants=())
    audit = Audit(str(file))
    audit.record_token(token, change="created", grants="")
    file.rename(tmp_path / "audit.1")
    audit.record_token(token, change="rotated", grants="")
    audit.reopen()
    audit.record_token(token, change="revoked", grants="")
    audit.close()

    assert [len(events(tmp_path / name)) for name in ("audit.1", "audit.jsonl")] == [2, 1]


async def test_a_full_disk_is_told_in_the_log_and_fails_no_request(settings, tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    async with audited(settings, Path("/dev/full")) as service:
        answer = await asked(service, "POST", V2, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}})

    assert answer.status == 200
    assert "audit.failed" in capsys.readouterr().out


def test_commands_that_change_tokens_are_in_the_audit(tmp_path, capsys):
    told = Settings(data=tmp_path / "data", audit_file=str(tmp_path / "audit.jsonl"))
    create(told, name="ci", grants=["read:acc"], expires="never")
    id = token_id(capsys.readouterr().out.strip())
    rotate(told, id=id, overlap="0", expires="")
    revoke(told, ids=[id])

    found = events(tmp_path / "audit.jsonl")
    assert [(one["event"], one["token"], one["change"]) for one in found] == [
        ("token.audited", id, change) for change in ("created", "rotated", "revoked")
    ]
    assert {one["user"] for one in found} == {os.getuid()}


def test_lines_of_several_writers_do_not_mix(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    file = tmp_path / "audit.jsonl"
    token = Token(id=token_id(ADMIN), name="x" * 500, hash=b"", grants=())
    writers = [Audit(str(file)) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        for _done in pool.map(
            lambda writer: [writer.record_token(token, change="created", grants="") for _ in range(100)], writers
        ):
            pass
    for writer in writers:
        writer.close()

    assert len(events(file)) == 400


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An audit of two writers with five lines each, one after the other in turns."""
    file = tmp_path / "audit.jsonl"
    writers = [Audit(str(file)) for _ in range(2)]
    token = Token(id=token_id(ADMIN), name="x", hash=b"", grants=())
    for number in range(10):
        writers[number % 2].record_token(token, change=f"change {number}", grants="\udcff")
    for writer in writers:
        writer.close()
    return file


def test_an_audit_that_nobody_changed_is_whole(written, capsys):
    assert check_audit(written) == 0
    assert "as it was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (lambda lines: [*lines[:4], lines[4].replace(b"change 4", b"change 5"), *lines[5:]], 5, "not what its writer"),
        (lambda lines: [*lines[:4], *lines[5:]], 6, "lines 3 to 3 of its writer are missing"),
        (lambda lines: lines[1:], 2, "lines 1 to 1 of its writer are missing"),
        (lambda lines: [*lines[:4], lines[2], *lines[4:]], 5, "before lines above it"),
        (lambda lines: [*lines[:3], lines[3][:40] + b"\n", *lines[4:]], 4, "not a whole one"),
        (lambda lines: [*lines, b'{"event":"write.audited"}\n'], 11, "no line of an audit"),
    ],
    ids=["changed", "taken out", "the first taken out", "repeated", "cut", "put in"],
)
def test_a_change_in_an_audit_is_found(written, capsys, change, line, reason):
    written.write_bytes(b"".join(change(written.read_bytes().splitlines(keepends=True))))

    assert check_audit(written) == 1
    said = capsys.readouterr().out
    assert f":{line}: " in said
    assert reason in said


def test_after_a_line_that_was_not_written_whole_the_next_ones_are_good(monkeypatch, written, capsys):
    audit = Audit(str(written))
    token = Token(id=token_id(ADMIN), name="x", hash=b"", grants=())
    audit.record_token(token, change="before", grants="")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, text: real(file, text[:30]))
    audit.record_token(token, change="cut", grants="")
    monkeypatch.undo()
    audit.record_token(token, change="after", grants="")
    audit.close()

    assert check_audit(written) == 1
    assert capsys.readouterr().out.count("not a whole one") == 1


def test_no_file_is_no_audit(tmp_path):
    with pytest.raises(CommandFailed, match="No such file"):
        check_audit(tmp_path / "none")
