"""Moving from the live service and back, with the commands of WORKERS.md, between two whole programs."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.contract.program import ACCOUNT, ROOT, TOKEN, Program, eventually, ndjson, running

pytestmark = pytest.mark.slow
INTERRUPTED = 130


@pytest.fixture
def live(program: Program) -> Iterator[Program]:
    """What stands in for the live service: its limits, two processes, and no index that another test made."""
    yield program
    for name in ("docs", "copy"):
        ask(program, "DELETE", ACCOUNT, f"/{name}")


def ask(program: Program, method: str, account: str, path: str, body: bytes | None = None) -> Any:
    target = f"/client/v4/accounts/{account}/vectorize/v2/indexes{path}"
    with closing(http.client.HTTPConnection("127.0.0.1", program.port, timeout=60)) as connection:
        connection.request(method, target, body, {"Content-Type": "application/json"})
        return orjson.loads(connection.getresponse().read())["result"]


def fill(live: Program, count: int) -> list[dict[str, Any]]:
    config = {"dimensions": 32, "metric": "euclidean"}
    ask(live, "POST", ACCOUNT, "", orjson.dumps({"name": "docs", "config": config}))
    kind = {"propertyName": "kind", "indexType": "string"}
    ask(live, "POST", ACCOUNT, "/docs/metadata_index/create", orjson.dumps(kind))
    values = np.random.default_rng(5).standard_normal((count, 32)).astype(np.float32).astype(float).tolist()
    written = [
        {"id": f"v{row:05}", "values": one, "namespace": f"n{row % 3}", "metadata": {"kind": "xy"[row % 2]}}
        for row, one in enumerate(values)
    ]
    for start in range(0, count, 2_000):
        ask(live, "POST", ACCOUNT, "/docs/upsert?wait=true", ndjson(*written[start : start + 2_000]))
    return written


def everything(program: Program, account: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"nextCursor": ""}
    while page["nextCursor"] is not None:
        more = f"&cursor={page['nextCursor']}" if page["nextCursor"] else ""
        page = ask(program, "GET", account, f"/{name}/list?count=1000&include=values,metadata{more}")
        found += page["vectors"]
    return found


def environment(here: Program, live: Program) -> dict[str, str]:
    named = {"HEADRACE_URL": here.url, "CLOUDFLARE_API_BASE_URL": live.base_url, "CLOUDFLARE_API_TOKEN": TOKEN}
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **named}


def test_moving_from_the_live_service_and_back(tmp_path, live):
    page = (ROOT / "WORKERS.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^## Moving from the live service and back\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    [block] = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    written = fill(live, 300)
    folder = tmp_path / "folder"
    folder.mkdir()
    with running(tmp_path) as here:
        done = subprocess.run(
            ["bash", "-euc", block.replace("headrace ", f"{sys.executable} -P -m service ")],
            cwd=folder,
            env=environment(here, live),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert everything(here, "local", "docs") == written
        assert here.complaints() == []

    assert done.stdout.count("300 vectors") == 8
    assert [orjson.loads(line) for line in (folder / "docs.ndjson").read_bytes().splitlines()] == written
    assert everything(live, ACCOUNT, "copy") == written
    assert ask(live, "GET", ACCOUNT, "/copy")["config"]["metric"] == "euclidean"
    assert len(ask(live, "GET", ACCOUNT, "/copy/metadata_index/list")["metadataIndexes"]) == 1
    assert [path.name for path in folder.iterdir()] == ["docs.ndjson"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_an_import_that_is_ended_in_the_middle_goes_on(tmp_path, live, number):
    written = fill(live, 6_000)
    command = [sys.executable, "-P", "-m", "service", "import", f"vectorize://{ACCOUNT}/docs", "--resume", "kept"]
    kept = tmp_path / "kept"
    with running(tmp_path) as here:
        options: Any = {"cwd": tmp_path, "env": environment(here, live), "text": True}
        with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as process:
            eventually("a piece is moved", lambda: kept.is_file() and orjson.loads(kept.read_bytes())["moved"])
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        moved = orjson.loads(kept.read_bytes())["moved"]
        if number == signal.SIGINT:
            assert process.returncode == INTERRUPTED
            assert f"{moved:,} of 6,000 are over; the same command goes on from there" in said

        done = subprocess.run(command, capture_output=True, check=False, timeout=300, **options)

        assert done.returncode == 0, done.stderr
        assert f"going on where it was broken off: {moved:,} of 6,000 are over" in done.stderr
        assert everything(here, "local", "docs") == written
    assert not kept.exists()
