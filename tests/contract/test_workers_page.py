"""WORKERS.md does what it says: its files are those that the tests run, and its commands are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.contract.clients.installing import has_npm
from tests.contract.clients.matrix import MORE_WAYS, WAYS
from tests.contract.clients.ways import CURRENT, Stage, make_docs
from tests.contract.program import ROOT, Program, running

PAGE = (ROOT / "WORKERS.md").read_text(encoding="utf-8")
USUAL_URL = "http://127.0.0.1:8787"
NAMED = re.compile(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

needs_npm = pytest.mark.skipif(not has_npm(), reason="needs npm")


def commands(heading: str) -> list[str]:
    """The lines of the one shell block of a section."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    [block] = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block.splitlines()


@pytest.fixture
def stage(tmp_path) -> Iterator[Stage]:
    """The folder of a Worker's author, with wrangler in it, beside a server as `headrace dev` is."""
    with running(tmp_path, "--profile", "cloudflare", "--binding-creates-indexes") as program:
        yield from _stage(program)


def _stage(program: Program) -> Iterator[Stage]:
    CURRENT.install(program)
    one = Stage(program, CURRENT, f"page-{os.getpid()}")
    (one.folder / "package.json").write_text('{"private": true}\n')
    yield one
    one.close()


def shell(stage: Stage, lines: list[str]) -> str:
    """What a shell in the Worker's folder prints."""
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines).replace(USUAL_URL, stage.program.url)],
        cwd=stage.folder,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("path", "text"), NAMED.findall(PAGE), ids=lambda value: value[:40].partition("\n")[0])
def test_every_file_that_is_shown_is_one_that_is_run(path: str, text: str) -> None:
    assert text in (ROOT / path).read_text(encoding="utf-8")


def test_the_table_names_every_way_that_is_tried() -> None:
    shown = re.findall(r"^\| (\S+) \| \S+ \| (.+?) \| (\d+) of \3 \| passed \|$", PAGE, re.MULTILINE)

    assert sorted((package, way) for package, way, _ in shown) == sorted(
        (way.package, way.name) for way in WAYS + MORE_WAYS
    )


@needs_npm
@pytest.mark.slow
def test_my_worker_locally(stage: Stage) -> None:
    install, run = commands("My Worker, locally")
    make_docs(stage.program, stage.account)

    shell(stage, [install])
    found = stage.served([*run.split(), "--port", str(stage.port), "--inspector-port", "0"])

    assert [case for case in found if case[1]] == []
    assert (stage.folder / "node_modules" / "headrace" / "package.json").is_file()
    [told] = stage.program.events("index.created_by_binding", index="fresh", dimensions=48, metric="cosine")
    assert "wrangler vectorize create fresh --dimensions=48 --metric=cosine" in told["next"]


@needs_npm
@pytest.mark.slow
def test_the_package_in_the_repository_of_a_worker(stage: Stage) -> None:
    shell(stage, commands("My Worker, in CI"))

    assert "file:vendor/headrace.tgz" in (stage.folder / "package.json").read_text()
    assert "Usage: npx headrace" in shell(stage, ["npx headrace --help"])


@needs_npm
@pytest.mark.slow
def test_wrangler_against_headrace(stage: Stage) -> None:
    said = shell(stage, commands("wrangler against Headrace"))

    assert "Successfully created a new Vectorize index: 'docs'" in said
    assert re.search(r"│ 32 +│ 0 ", said)
