"""Clients from the npm registry, installed once below `.cache/clients` and kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.contract.program import ROOT, Program

CACHE = ROOT / ".cache" / "clients"
NODE_WANTED = (22, 12)
"""What wrangler asks for since 4.87. Where the machine has an older one, the npm package `node` brings it."""
INSTALL_S = 600
QUIET = ("--no-audit", "--no-fund", "--loglevel=error", "--no-progress")


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with some clients in it, as a user's project has them."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return CACHE / self.name

    def version(self, package: str) -> str:
        """The version that is installed."""
        manifest = self.folder / "node_modules" / package / "package.json"
        return str(json.loads(manifest.read_text())["version"])

    def install(self, program: Program | None = None) -> None:
        """Have the packages and, from the server, ours. Returns at once when they are there."""
        with _lock(self.name):
            wanted = "\n".join(self.packages)
            stamp = self.folder / "stamp"
            if not stamp.is_file() or stamp.read_text() != wanted:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                (self.folder / "package.json").write_text('{"private": true}\n')
                self._npm("install", "--save-exact", *self.packages)
                stamp.write_text(wanted)
            if program is not None:
                self._install_ours(f"{program.url}/npm/headrace.tgz")

    def _install_ours(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=60) as response:
            found = hashlib.sha256(response.read()).hexdigest()
        stamp = self.folder / "node_modules" / "headrace" / ".stamp"
        if not stamp.is_file() or stamp.read_text() != found:
            self._npm("install", "--no-save", "--no-package-lock", url)
            stamp.write_text(found)

    def _npm(self, *arguments: str) -> None:
        done = subprocess.run(
            ["npm", *arguments, *QUIET],
            cwd=self.folder,
            env=os.environ | {"NO_UPDATE_NOTIFIER": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_S,
        )
        assert done.returncode == 0, f"npm {' '.join(arguments)}:\n{done.stdout}{done.stderr}"


NODE = Project("node", ("node@22.23.3",))


def has_npm() -> bool:
    """Whether this machine can run any of this."""
    return shutil.which("npm") is not None


@cache
def node_folder() -> Path:
    """The folder of a `node` that is new enough, or of the version that the variable CLIENTS_NODE asks for."""
    asked = os.environ.get("CLIENTS_NODE", "")
    if asked:
        return _installed_node(Project(f"node-{asked}", (f"node@{asked}",)))
    own = shutil.which("node")
    if own is not None:
        text = subprocess.run([own, "--version"], capture_output=True, text=True, check=True).stdout
        if tuple(int(part) for part in re.findall(r"\d+", text)[:2]) >= NODE_WANTED:
            return Path(own).parent
    return _installed_node(NODE)


def _installed_node(project: Project) -> Path:
    project.install()
    return project.folder / "node_modules" / "node" / "bin"


def environment(**more: str) -> dict[str, str]:
    """The environment of a client: a new enough node, no colours, no questions, nothing of ours but what is given."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HEADRACE_", "CLOUDFLARE_", "PYTEST_", "WRANGLER_"))
    }
    home = CACHE / "home"
    home.mkdir(parents=True, exist_ok=True)
    quiet = {"CI": "true", "NO_COLOR": "1", "WRANGLER_SEND_METRICS": "false", "XDG_CONFIG_HOME": str(home)}
    path = os.pathsep.join([str(node_folder()), os.environ.get("PATH", "")])
    return inherited | quiet | {"PATH": path} | more


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Two runs of the tests at a time must not install into one folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
