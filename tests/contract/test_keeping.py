"""Backup, restore and doctor as commands, on a `headrace up` that goes on running."""

from __future__ import annotations

import http.client
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from tests.contract.program import ACCOUNT, ROOT, Program, running

INDEX = f"/client/v4/accounts/{ACCOUNT}/vectorize/v2/indexes"

pytestmark = pytest.mark.slow


def headrace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "service", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def ask(program: Program, method: str, path: str, body: bytes | None = None) -> dict:
    with closing(http.client.HTTPConnection("127.0.0.1", program.port, timeout=60)) as connection:
        connection.request(method, INDEX + path, body, {"Content-Type": "application/json"})
        answer = orjson.loads(connection.getresponse().read())
    assert answer["success"], answer
    return answer["result"]


def write(program: Program, count: int) -> str:
    lines = b"\n".join(orjson.dumps({"id": f"v{place}", "values": [1, place, 2, 3]}) for place in range(count))
    return ask(program, "POST", "/docs/upsert?wait=true", lines)["mutationId"]


def test_a_running_headrace_is_backed_up_checked_and_gone_back_to(tmp_path):
    data, backup, restored = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again" / "data"
    restored.parent.mkdir()
    with running(tmp_path) as program:
        ask(program, "POST", "", orjson.dumps({"name": "docs", "config": {"dimensions": 4, "metric": "cosine"}}))
        first = write(program, 100)
        done = headrace("backup", backup, "--data", data)
        assert done.returncode == 0, done.stderr
        assert f"100 vectors, mutations up to {first}" in done.stdout
        second = write(program, 150)
        write(program, 170)

        checked = headrace("doctor", "--data", data)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert f"{ACCOUNT}/docs: whole" in checked.stdout
        assert headrace("doctor", "--salvage", "--data", data).returncode == 1  # It is in use.
        done = headrace("restore", backup, restored, "--log-from", data, "--until", second)
        assert done.returncode == 0, done.stderr
    with running(tmp_path / "again") as program:
        ask(program, "GET", f"/docs/info?wait_for={second}")
        assert ask(program, "GET", "/docs/info")["vectorCount"] == 150
    refused = headrace("restore", backup, restored)
    assert refused.returncode == 1
    assert "nothing was restored" in refused.stderr
