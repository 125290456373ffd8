"""Every way a Worker's binding comes to us, each run on the sample Worker in `tests/contract/workers`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.contract.clients.installing import Project, environment
from tests.contract.program import PATIENCE_S, ROOT, Program

WORKERS = ROOT / "tests" / "contract" / "workers"
START_S = 120.0
"""Not a speed limit either: a dev server bundles first, and the machine may be busy."""

CURRENT = Project("wrangler-current", ("wrangler@4.164.0",))
MINIFLARE_4 = Project("miniflare-4", ("miniflare@4.20260730.0",))

Results = list[tuple[str, str]]
"""Each case and what went wrong, which is nothing when it passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One client, and how it is pointed here."""

    name: str
    project: Project
    package: str
    """What names the version in the table."""
    run: Callable[[Stage], Results]

    def try_on(self, program: Program, account: str) -> Results:
        """Run the sample Worker on a folder and an account of its own."""
        self.project.install(program)
        stage = Stage(program, self.project, account)
        make_docs(program, account)
        try:
            return self.run(stage)
        finally:
            stage.close()


class Stage:
    """A copy of the sample beside the packages it imports, with the address of the server in its files."""

    def __init__(self, program: Program, project: Project, account: str) -> None:
        self.program = program
        self.account = account
        self.project = project
        self.folder = project.folder / f"work-{account}"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(WORKERS, self.folder)
        self.port = free_port()
        self.replace("127.0.0.1:8787", program.url.removeprefix("http://"), "index.jsonc", "workerd.capnp")
        self.replace('"local"', f'"{account}"', "index.jsonc", "workerd.capnp")
        self.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}", "workerd.capnp")

    def close(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def replace(self, found: str, wanted: str, *names: str) -> None:
        for name in names:
            path = self.folder / name
            path.write_text(path.read_text().replace(found, wanted))

    def command(self, *words: str) -> list[str]:
        """A command of the project, and its arguments."""
        return [str(self.project.folder / "node_modules" / ".bin" / words[0]), *words[1:]]

    def environment(self, **more: str) -> dict[str, str]:
        return environment(HEADRACE_URL=self.program.url, HEADRACE_ACCOUNT=self.account, **more)

    def printed(self, command: list[str]) -> Results:
        """What a command prints in its last line."""
        done = self.finished(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return results(done.stdout.strip().rpartition("\n")[2])

    def finished(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
        )

    def served(self, command: list[str]) -> Results:
        """What the Worker answers under a dev server."""
        log = self.folder / "client.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            return results(self._ask(process, log))
        finally:
            # With its children: a dev server that is killed alone leaves workerd behind.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE_S)

    def _ask(self, process: subprocess.Popen[bytes], log: Path) -> str:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, f"it ended:\n{log.read_text(errors='replace')}"
            assert time.monotonic() < deadline, f"it did not answer:\n{log.read_text(errors='replace')}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=PATIENCE_S) as response:
                    return str(response.read().decode())
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{error.code} {error.read()!r}\n{log.read_text(errors='replace')}") from error
            except OSError:
                time.sleep(0.1)


def results(text: str) -> Results:
    """What the cases printed."""
    try:
        return [(name, found) for name, found in json.loads(text)]
    except ValueError as error:
        raise AssertionError(f"no results, but: {text[:2000]}") from error


def make_docs(program: Program, account: str) -> None:
    """The index that the sample expects; the other one it makes itself."""
    indexes = f"{program.base_url}/accounts/{account}/vectorize/v2/indexes"
    post(indexes, {"name": "docs", "config": {"dimensions": 32, "metric": "cosine"}})
    for name, kind in (("kind", "string"), ("year", "number")):
        post(f"{indexes}/docs/metadata_index/create?wait=true", {"propertyName": name, "indexType": kind})


def post(url: str, document: object) -> None:
    """Send JSON; fails on any other answer than 200."""
    asked = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_S):
        pass


def free_port() -> int:
    """A port nobody has, at least for now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wrangler(stage: Stage, *words: str, ours: bool = False) -> Results:
    """Under `wrangler dev`, which with `ours` is run through the npm package."""
    command = ["wrangler", "dev", *words, "--port", str(stage.port), "--inspector-port", "0"]
    return stage.served(stage.command(*(["headrace"] if ours else []), *command))


def proxied(stage: Stage) -> Results:
    """Under plain miniflare, whose bindings are all given one address."""
    address = f"{stage.program.url}/accounts/{stage.account}/_binding?VECTORIZE=docs&FRESH=fresh"
    return stage.printed(["node", "miniflare.mjs", address])


def vite(stage: Stage) -> Results:
    """Under vite."""
    command = ["headrace", "vite", "dev", "--port", str(stage.port), "--host", "127.0.0.1"]
    return stage.served(stage.command(*command))


def typed(stage: Stage) -> Results:
    """What the compiler says of code that uses the package."""
    done = stage.finished(stage.command("tsc", "--project", "tsconfig.json"))
    return [("the types fit", "" if done.returncode == 0 else done.stdout)]


def vitest(stage: Stage, package: str) -> Results:
    """In tests of vitest, which starts a server unless there is one."""
    stage.replace("@cloudflare/vitest-plugin", package, "vitest.config.mjs")
    done = stage.finished(stage.command("vitest", "run", "--reporter=verbose"))
    cases = re.findall(r"^\s*([✓×]) sample\.test\.mjs > (.+?)(?: \d+ms)?$", done.stdout, re.MULTILINE)
    assert cases, done.stdout + done.stderr
    return [(name, "" if mark == "✓" else done.stdout + done.stderr) for mark, name in cases]
