"""A mutation that ends the worker, or that it cannot apply: three tries, then it is set aside, named, and passed."""

from __future__ import annotations

import http.client
from pathlib import Path

import orjson
import pytest

from tests.contract.program import ROOT, Program, axis, eventually, ndjson, running

DEADLY = """
import os, signal, sys

if sys.orig_argv[-1] == "worker":
    import worker.apply

    real = worker.apply.unpack_ids

    def unpack_ids(body):
        found = real(body)
        if "deadly" in found:
            {ends}
        return found

    worker.apply.unpack_ids = unpack_ids
"""
ENDS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "out of memory": "raise MemoryError",
    "surprised": 'raise ValueError("a surprise")',
}


@pytest.fixture(params=ENDS, ids=lambda name: name.replace(" ", "-"))
def program(tmp_path: Path, request: pytest.FixtureRequest):
    """A server whose worker ends in one way or another when it meets the id `deadly`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY.format(ends=ENDS[request.param]))
    with running(tmp_path, environ={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}) as one:
        yield one


def call(program: Program, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=60)
    prefix = program.indexes_url.removeprefix(program.url) if path[:1] != "!" else ""
    connection.request(method, prefix + path.removeprefix("!"), body, {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    return orjson.loads(content)["result"] if not path.startswith("!") else content.decode()


def upsert(program: Program, *ids: str) -> str:
    body = ndjson(*({"id": id, "values": axis(place, 4)} for place, id in enumerate(ids)))
    return call(program, "POST", "/docs/upsert", body, "application/x-ndjson")["mutationId"]


def test_a_mutation_that_ends_the_worker_is_set_aside_named_and_passed(program: Program):
    call(program, "POST", "", orjson.dumps({"name": "docs", "config": {"dimensions": 4, "metric": "cosine"}}))
    call(program, "POST", "", orjson.dumps({"name": "other", "config": {"dimensions": 4, "metric": "cosine"}}))
    upsert(program, "before")
    poison = upsert(program, "deadly", "with it")
    last = [upsert(program, f"behind {number}") for number in range(3)][-1]

    found = eventually(
        "the mutations behind it are applied",
        lambda: (one := call(program, "GET", "/docs/info?latest=true")).get("processedUpToMutation") == last and one,
    )

    assert found["vectorCount"] == 4
    assert found["setAside"]["count"] == 1
    [named] = found["setAside"]["mutations"]
    assert named["mutationId"] == poison
    assert "3 times" in named["error"]
    assert call(program, "GET", f"/docs/mutations/{poison}")["state"] == "failed"
    assert {one["mutation"] for one in program.events("mutation.set_aside")} == {poison}
    page = call(program, "GET", "!/metrics")
    assert 'headrace_mutations_set_aside{index="0123456789abcdef0123456789abcdef/docs"} 1.0' in page
    assert 'headrace_mutations_set_aside{index="0123456789abcdef0123456789abcdef/other"} 0.0' in page
    assert "setAside" not in call(program, "GET", "/other/info")
