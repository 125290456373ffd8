"""The wheel: what is in it, and that it runs beside other packages called `worker` and `storage`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.version import VERSION

ROOT = Path(__file__).parents[2]
STRANGERS = ("worker", "storage")
"""Top-level names that other distributions have as well; PyPI has one of each name."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@dataclass(frozen=True, slots=True)
class Installed:
    """A fresh environment with the wheel in it, and with the strangers installed before and after it."""

    bin: Path
    folder: Path

    def run(self, *command: str) -> str:
        """What a command of this environment prints, started in a folder of its own."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    quietly(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Dependencies come from the environment that runs the tests: what is asked here is whose names win."""
    folder = tmp_path_factory.mktemp("install")
    quietly(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    install(stranger(folder, "worker"), site)
    install(wheel, site)
    install(stranger(folder, "storage"), site)
    ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "dependencies.pth").write_text(f"{ours}\n")
    return Installed(bin=folder / "venv" / "bin", folder=folder)


def test_everything_lies_in_one_folder_and_nothing_is_missing_or_compiled(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {name.split("/")[0] for name in names} == {"headrace", f"headrace-{VERSION}.dist-info"}
    assert [name for name in names if name.endswith(".pyc") or "__pycache__" in name] == []
    wanted = {
        path.relative_to(ROOT)
        for folder in ("service", "storage", "worker", "migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"headrace/{path}" for path in wanted} <= names
    assert f"headrace-{VERSION}.dist-info/licenses/LICENSE" in names
    assert {"headrace/service/sample/words.npy", "headrace/service/sample/NOTICE"} <= names


def test_the_strangers_keep_their_names_and_we_keep_ours(installed: Installed) -> None:
    for name in STRANGERS:
        assert installed.run("python", "-c", f"import {name}; print({name}.OWNER)") == "a stranger\n"

    assert installed.run("headrace", "--version") == f"headrace {VERSION}\n"
    assert re.search(r"^port +8787 +default$", installed.run("headrace", "config", "show"), re.MULTILINE)
    assert len(installed.run("headrace", "sample").splitlines()) == 5_000


def test_the_installed_command_serves_a_request(installed: Installed) -> None:
    with running(installed) as url:
        path = f"{url}/client/v4/accounts/local/vectorize/v2/indexes"
        body = json.dumps({"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}}).encode()
        asked = urllib.request.Request(path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as response:
            created = json.load(response)
        vector = json.dumps({"id": "a", "values": [1.0] + [0.0] * 31}).encode()
        asked = urllib.request.Request(
            f"{path}/docs/insert?wait=true", vector, {"Content-Type": "application/x-ndjson"}
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            written = json.load(response)
        with urllib.request.urlopen(f"{path}/docs/info", timeout=60) as response:
            info = json.load(response)

    assert created["result"]["name"] == "docs"
    assert info["result"]["vectorCount"] == 1
    assert info["result"]["processedUpToMutation"] == written["result"]["mutationId"]


def test_the_fixtures_are_there_wherever_headrace_is_installed(installed: Installed) -> None:
    example = ROOT / "tests" / "contract" / "examples" / "test_search.py"
    (installed.folder / example.name).write_bytes(example.read_bytes())

    assert "5 passed" in installed.run("python", "-m", "pytest", "-p", "no:asyncio", example.name)


@contextmanager
def running(installed: Installed) -> Iterator[str]:
    """`headrace up` of the installed wheel; its URL."""
    command = [str(installed.bin / "headrace"), "up", "--port", "0", "--data", str(installed.folder / "data")]
    with subprocess.Popen(
        command, cwd=installed.folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "listens on" in line
            yield line.split()[4]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
    assert code == 0


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "PYTHON"))}


def stranger(folder: Path, name: str) -> Path:
    """A wheel of another project with a top-level package of this name."""
    path = folder / f"{name}-9.0-py3-none-any.whl"
    info = f"{name}-9.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", 'OWNER = "a stranger"\n')
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{name}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


def install(wheel: Path, site: Path) -> None:
    python = site.parents[2] / "bin" / "python"
    quietly(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))


def quietly(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
