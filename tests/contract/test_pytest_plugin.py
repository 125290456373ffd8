"""The fixtures that Headrace brings for other people's tests, in a run of pytest of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.program import ROOT, running

EXAMPLE = ROOT / "tests" / "contract" / "examples" / "test_search.py"

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str, **environ: str) -> str:
    """What pytest says of the example, run as in a project that has Headrace installed."""
    (folder / "test_search.py").write_bytes(EXAMPLE.read_bytes())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-p", "service.testing", "-p", "no:asyncio", *arguments],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_passes_with_a_server_of_its_own(tmp_path: Path) -> None:
    assert re.search(r"^=+ 5 passed", run(tmp_path, "-W", "error"), re.MULTILINE)


def test_the_example_passes_on_several_processes(tmp_path: Path) -> None:
    assert re.search(r"^=+ 5 passed", run(tmp_path, "-n", "2"), re.MULTILINE)


def test_the_example_passes_on_a_server_that_is_there(tmp_path: Path) -> None:
    with running(tmp_path, "--token", "secret") as program:
        arguments = {"HEADRACE_URL": program.url, "HEADRACE_TOKEN": "secret"}
        assert re.search(r"^=+ 5 passed", run(tmp_path, **arguments), re.MULTILINE)
        assert len(program.events("request.answered", route="/accounts/{account}/vectorize/v2/indexes")) >= 5


def test_without_its_fixtures_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")

    assert "1 passed" in run(tmp_path, "test_other.py", "--setup-show")
