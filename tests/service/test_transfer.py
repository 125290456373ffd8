"""`headrace import` and `headrace export`, between two services and files, as they are typed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web

from service.commands import transfer_index
from service.commands.cli import main
from service.commands.failure import EXIT_FAILED, EXIT_USAGE
from service.commands.transfer import differences
from service.commands.transfer_journal import Progress
from storage.settings import Settings
from tests.service.conftest import Service, limited, serving

THERE = "vectorize://acc/docs"
PIECE = 40
"""Vectors in a piece, so that a few of them are several."""


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Service]:
    """The server that the commands call theirs; `service` is the other side."""
    async with serving(limited(Settings(data=tmp_path / "here"), "relaxed")) as one:
        yield one


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transfer_index, "PIECE_VALUES", PIECE * 32)
    monkeypatch.setattr(transfer_index, "LIST_COUNT", PIECE)
    monkeypatch.setattr(transfer_index, "FIRST_WAIT_S", 0.01)
    monkeypatch.chdir(tmp_path)
    for name in ("HEADRACE_URL", "HEADRACE_ACCOUNT", "HEADRACE_TOKEN", "CLOUDFLARE_API_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "local")


async def headrace(*arguments: str, here: str, there: str = "") -> int:
    """Run a command beside the services that it asks."""
    ends = ["--url", here, "--account", "acc", *(["--api", f"{there}/client/v4"] if there else [])]
    return await asyncio.to_thread(main, [*arguments, *ends])


def vectors(count: int, dimensions: int = 32) -> list[dict[str, Any]]:
    numbers = np.random.default_rng(7).standard_normal((count, dimensions)).astype(np.float32)
    found: list[dict[str, Any]] = []
    for row, values in enumerate(numbers.astype(float).tolist()):
        one: dict[str, Any] = {"id": f"ä{row}\n\"'/{row % 7}", "values": values}
        if row % 3:
            one["namespace"] = f"space {row % 5}"
        if row % 4:
            one["metadata"] = {"kind": "xy"[row % 2], "size": row / 8, "deep": {"list": ["ö", "\n"], "on": True}}
        found.append(one)
    return found


async def filled(service: Service, count: int, *, metric: str = "euclidean") -> list[dict[str, Any]]:
    await service.create(metric=metric)
    for name, kind in (("kind", "string"), ("size", "number")):
        await service.post("docs/metadata_index/create", {"propertyName": name, "indexType": kind})
    written = vectors(count)
    await service.upsert(written)
    return written


async def everything(service: Service, name: str = "docs") -> dict[str, dict[str, Any]]:
    """What the server has, by id."""
    page = (await service.get(f"{name}/list?count=1000")).result
    assert not page["isTruncated"]
    ids = [one["id"] for one in page["vectors"]]
    found = []
    for start in range(0, len(ids), 20):
        found += (await service.post(f"{name}/get_by_ids", {"ids": ids[start : start + 20]})).result
    return {one["id"]: one for one in found}


def by_id(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in found}


class Gateway:
    """What stands before a server: lets `passing` requests of a kind through and answers the others itself."""

    def __init__(self, behind: Service, path_ends: str, passing: int, *answers: int) -> None:
        self.url = ""
        self._behind, self._ends, self._passing, self._answers = behind, path_ends, passing, list(answers)
        self.asked: list[str] = []
        self.came = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if request.path.endswith(self._ends):
            self.came.set()
            self._passing -= 1
            if self._passing < 0 and self._answers:
                errors = [{"code": 10000, "message": "not now"}]
                document = {"success": False, "errors": errors, "result": None, "messages": []}
                return web.json_response(document, status=self._answers.pop(0))
        url = self._behind.url + request.path_qs
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with self._behind.session.request(
            request.method, url, data=await request.read(), headers=headers
        ) as response:
            return web.Response(status=response.status, body=await response.read(), content_type="application/json")


@pytest.fixture
async def gateways() -> AsyncIterator[Any]:
    runners: list[web.AppRunner] = []

    async def start(*arguments: Any) -> Gateway:
        gateway = Gateway(*arguments)
        app = web.Application(client_max_size=10**9)
        app.router.add_route("*", "/{rest:.*}", gateway.answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        gateway.url = "http://{}:{}".format(*runners[-1].addresses[0][:2])
        return gateway

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_an_index_comes_over_whole_and_goes_back_whole(service, here, capsys):
    written = await filled(service, 150)

    assert await headrace("import", THERE, "--index", "copy", here=here.url, there=service.url) == 0

    assert await everything(here, "copy") == by_id(written)
    assert (await here.get("copy")).result["config"] == {"dimensions": 32, "metric": "euclidean"}
    indexes = (await here.get("copy/metadata_index/list")).result["metadataIndexes"]
    assert sorted((one["propertyName"], one["indexType"]) for one in indexes) == [
        ("kind", "String"),
        ("size", "Number"),
    ]
    back = "vectorize://acc/again"
    assert await headrace("export", back, "--index", "copy", here=here.url, there=service.url) == 0
    assert await everything(service, "again") == by_id(written)
    assert "150 vectors" in capsys.readouterr().out
    assert list(Path.cwd().glob("*.resume*")) == []


async def test_a_file_has_all_of_an_index_and_makes_it_again(service, here, capsys):
    written = await filled(here, 130)

    assert await headrace("export", "--index", "docs", "docs.ndjson", here=here.url) == 0

    assert by_id([json.loads(line) for line in Path("docs.ndjson").read_bytes().splitlines()]) == by_id(written)
    [how] = re.findall(r"import it with (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert await headrace("import", "docs.ndjson", "--index", "copy", *how.split(), here=here.url) == 0
    assert await everything(here, "copy") == by_id(written)
    assert (await here.get("copy")).result["config"]["metric"] == "euclidean"
    assert len((await here.get("copy/metadata_index/list")).result["metadataIndexes"]) == 2


@pytest.mark.parametrize("broken", ["upsert", "get_by_ids", "list"])
async def test_a_break_in_the_middle_is_gone_on_from(service, here, gateways, capsys, broken):
    written = await filled(service, 200)
    near, far = here.url, service.url
    if broken == "upsert":
        near = (gateway := await gateways(here, "/upsert", 2, 403)).url
    else:
        far = (gateway := await gateways(service, f"/{broken}", 3, 403)).url

    assert await headrace("import", THERE, here=near, there=far) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "the same command goes on from there (acc-docs.import.resume says where)" in said
    before = len(gateway.asked)
    kept = orjson.loads(Path("acc-docs.import.resume").read_bytes())

    # The state names both ends, so the gateway stays: it lets everything pass now.
    assert await headrace("import", THERE, here=near, there=far) == 0

    assert await everything(here) == by_id(written)
    again = gateway.asked[before:]
    assert sum(path.endswith("/upsert") for path in again) == (3 if broken == "upsert" else 0)
    if broken == "list":
        assert f"cursor={kept['cursor']}" in next(path for path in again if "/list?" in path)
    else:
        assert not any("docs/list" in path for path in again)
    assert not Path("acc-docs.import.resume").exists()


async def test_a_file_that_broke_off_is_gone_on_with_and_has_its_name_only_when_it_is_whole(here, gateways):
    written = await filled(here, 200)
    gateway = await gateways(here, "/get_by_ids", 5, 403)

    assert await headrace("export", "docs.ndjson", "--index", "docs", here=gateway.url) == EXIT_FAILED
    part = Path("docs.ndjson.part")
    assert not Path("docs.ndjson").exists()
    part.write_bytes(part.read_bytes() + b'{"id": "torn')

    assert await headrace("export", "docs.ndjson", "--index", "docs", here=gateway.url) == 0
    lines = Path("docs.ndjson").read_bytes().splitlines()
    assert len(lines) == 200
    assert by_id([json.loads(line) for line in lines]) == by_id(written)
    assert not part.exists()


async def test_an_expired_cursor_begins_the_listing_anew(service, here, gateways):
    written = await filled(service, 100)
    gateway = await gateways(service, "/list", 3, 403)
    assert await headrace("import", THERE, here=here.url, there=gateway.url) == EXIT_FAILED
    kept = orjson.loads(Path("acc-docs.import.resume").read_bytes())
    Path("acc-docs.import.resume").write_bytes(orjson.dumps(kept | {"cursor": "expired"}))

    assert await headrace("import", THERE, here=here.url, there=gateway.url) == 0

    assert await everything(here) == by_id(written)


async def test_a_busy_server_is_asked_again(service, here, gateways):
    written = await filled(service, 60)
    gateway = await gateways(service, "/get_by_ids", 1, 429, 503, 500)

    assert await headrace("import", THERE, here=here.url, there=gateway.url) == 0
    assert await everything(here) == by_id(written)


async def test_a_wrong_token_is_named_by_where_it_belongs_and_never_shown(tmp_path, here, capsys, monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "wrong-secret")
    locked = replace(limited(Settings(data=tmp_path / "locked"), "relaxed"), token="right-secret")
    async with serving(locked) as there:
        assert await headrace("import", THERE, here=here.url, there=there.url) == EXIT_FAILED
        said = capsys.readouterr().err
        assert "(401, code 10000)" in said
        assert "CLOUDFLARE_API_TOKEN" in said

        arguments = ["export", "docs.ndjson", "--index", "docs", "--token", "wrong-secret"]
        assert await headrace(*arguments, here=there.url) == EXIT_FAILED
        said += capsys.readouterr().err
        assert "--token or HEADRACE_TOKEN" in said
        assert "secret" not in said


async def test_what_cannot_begin_says_why_and_leaves_nothing(service, here, capsys, monkeypatch):
    assert await headrace("import", THERE, here=here.url, there=service.url) == EXIT_FAILED
    assert f"there is no index acc/docs at {service.url}" in capsys.readouterr().err

    await here.create(dimensions=48)
    await service.create()
    assert await headrace("import", THERE, here=here.url, there=service.url) == EXIT_FAILED
    assert "is there already, with 48 dimensions and cosine; what would come has 32 and" in capsys.readouterr().err

    assert await headrace("import", THERE, here=service.url, there=service.url) == EXIT_USAGE
    assert await headrace("import", "vectorize://docs", here=here.url, there=service.url) == EXIT_USAGE
    assert await headrace("export", "docs.ndjson", here=here.url) == EXIT_USAGE
    capsys.readouterr()
    assert await headrace("export", THERE, here="http://me:secret@127.0.0.1:1", there=service.url) == EXIT_USAGE
    assert "secret" not in capsys.readouterr().err
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    assert await headrace("export", THERE, here=here.url) == EXIT_USAGE
    assert "set CLOUDFLARE_API_TOKEN" in capsys.readouterr().err
    nowhere = "http://127.0.0.1:1"
    assert await headrace("export", "docs.ndjson", "--index", "docs", here=nowhere) == EXIT_FAILED
    assert f"nothing answers for acc/docs at {nowhere}" in capsys.readouterr().err
    assert [path.name for path in Path.cwd().glob("*.*")] == []


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["{}"], "docs.ndjson:1: no vector"),
        (
            ['{"id": "a", "values": [1, 2]}', "", '{"id": "b", "values": [1]}'],
            "docs.ndjson:3: 1 values, where the first",
        ),
        (['{"id": 1, "values": [1, 2]}'], "docs.ndjson:1: the id must be a string"),
        ([], "docs.ndjson has no vectors"),
    ],
)
async def test_a_file_that_is_not_good_is_refused_before_a_vector_is_sent(here, capsys, lines, why):
    Path("docs.ndjson").write_text("\n".join(lines))

    assert await headrace("import", "docs.ndjson", "--index", "copy", here=here.url) == EXIT_FAILED

    assert why in capsys.readouterr().err
    found = await here.get("copy/info")
    assert found.status == 404 or found.result["vectorCount"] == 0


async def test_lines_with_one_id_count_once_and_the_last_stays(here):
    first, second, third = vectors(3)
    again = second | {"id": first["id"]}
    Path("docs.ndjson").write_text("\n".join(map(json.dumps, [first, third, again])))

    assert await headrace("import", "docs.ndjson", "--index", "copy", here=here.url) == 0
    assert await everything(here, "copy") == by_id([again, third])


async def test_an_export_has_what_was_written_before_it_began(here, gateways):
    await here.create()
    await here.running.stop_worker()
    written = vectors(30)
    await here.upsert(written, wait=False)
    gateway = await gateways(here, "/info", 0)

    export = asyncio.create_task(headrace("export", "docs.ndjson", "--index", "docs", here=gateway.url))
    await gateway.came.wait()
    await here.running.start_worker()

    assert await export == 0
    assert len(Path("docs.ndjson").read_bytes().splitlines()) == 30


async def test_a_vector_that_the_other_side_does_not_want_is_narrowed_down(service, here, capsys):
    await here.create()
    await here.upsert([*vectors(3), {"id": "x" * 65, "values": [1.0] * 32}])

    assert await headrace("export", THERE, here=here.url, there=service.url) == EXIT_FAILED

    said = capsys.readouterr().err
    assert "id too long; max is 64 bytes, got 65 bytes, of the vectors from 'xxxxx" in said


async def test_a_file_that_is_there_is_not_replaced(here, capsys):
    await filled(here, 3)
    Path("docs.ndjson").write_text("precious")

    assert await headrace("export", "docs.ndjson", "--index", "docs", here=here.url) == EXIT_FAILED
    assert Path("docs.ndjson").read_text() == "precious"


async def test_a_state_of_another_transfer_is_refused(service, here, capsys):
    await filled(service, 3)
    Path("other.resume").write_bytes(b'{"source": "a", "target": "b"}')

    assert await headrace("import", THERE, "--resume", "other.resume", here=here.url, there=service.url) == EXIT_FAILED
    assert "other.resume is of another transfer, from a to b" in capsys.readouterr().err


async def test_a_vector_that_goes_away_meanwhile_is_counted_and_said(service, here, gateways, capsys):
    written = await filled(service, 100)
    gateway = await gateways(service, "/get_by_ids", 0, 403)
    assert await headrace("import", THERE, here=here.url, there=gateway.url) == EXIT_FAILED
    await service.post("docs/delete_by_ids?wait=true", {"ids": [written[0]["id"]]})
    capsys.readouterr()

    assert await headrace("import", THERE, here=here.url, there=gateway.url) == EXIT_FAILED

    said = capsys.readouterr()
    assert "1 vectors were listed and were gone when they were read" in said.err
    assert await everything(here) == by_id(written[1:])


@pytest.mark.parametrize(
    ("before", "gone", "after", "wrong"),
    [(0, 0, 10, 0), (0, 0, 9, 1), (0, 0, 11, 1), (5, 0, 12, 0), (5, 0, 9, 1), (0, 1, 9, 1), (0, 1, 8, 2)],
)
def test_counts_that_differ_are_told(before, gone, after, wrong):
    progress = Progress(source="a", target="b", total=10, gone=gone, before=before)

    assert len(differences(progress, after)) == wrong
