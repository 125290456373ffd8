"""An unchanged Worker whose `env.VECTORIZE` is served here, under Cloudflare's own tools."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.clients.installing import environment, has_npm
from tests.contract.clients.matrix import VITEST, WAYS
from tests.contract.clients.ways import Stage, Way
from tests.contract.program import ROOT, Program, running

NUMBERS = itertools.count(1)
LIKE_DEV = ("--profile", "cloudflare", "--processes", "2", "--binding-creates-indexes")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_npm(), reason="needs npm")]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server that makes the indexes that Workers write to, with nothing to complain about at the end."""
    with running(tmp_path_factory.mktemp("headrace"), *LIKE_DEV) as one:
        yield one
        assert one.stop() == 0
        assert one.complaints() == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.project.name}, {way.name}")
def test_the_sample_worker_passes_every_case(dev: Program, way: Way) -> None:
    found = way.try_on(dev, f"worker-{os.getpid()}-{next(NUMBERS)}")

    assert [case for case in found if case[1]] == []
    assert found


def test_vitest_has_a_server_of_its_own_that_leaves_nothing_behind(dev: Program, tmp_path: Path) -> None:
    VITEST.install(dev)
    stage = Stage(dev, VITEST, f"own-{os.getpid()}")
    command = tmp_path / "bin" / "headrace"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m service "$@"\n')
    command.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = os.pathsep.join([str(command.parent), environment()["PATH"]])
    done = subprocess.run(
        stage.command("vitest", "run"),
        cwd=stage.folder,
        env=environment(PATH=path, TMPDIR=str(temporary)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    stage.close()

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert [found.name for found in temporary.glob("headrace-*")] == []
