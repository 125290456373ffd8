"""`npx headrace COMMAND`: what it finds, what it starts, and what it says when it cannot."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.npm.tarball import SOURCE
from tests.contract.clients.installing import Project, environment, has_npm
from tests.contract.clients.ways import CURRENT, MINIFLARE_4, Stage, free_port, make_docs, results
from tests.contract.program import ROOT, Program, eventually, running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_npm(), reason="needs npm")]
CLI = SOURCE / "cli.mjs"
SHOW = "console.log(process.env.HEADRACE_URL, process.env.HEADRACE_ACCOUNT, process.env.NODE_OPTIONS)"
ASK = "fetch(process.env.HEADRACE_URL + '/_binding').then((one) => one.text()).then(console.log)"
LOCKED = ("--token", "secret")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("open")) as one:
        yield one


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("locked"), *LOCKED) as one:
        yield one


def npx(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """What `npx headrace ...` comes to once npm has found it."""
    return subprocess.run(
        ["node", str(CLI), *words],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def path_with_program(folder: Path) -> str:
    """A path with the Python program, as after `pip install`; and with this package's own command, which is not it."""
    own = folder / "node_modules" / ".bin"
    own.mkdir(parents=True)
    (own / "headrace").symlink_to(CLI)
    command = folder / "bin" / "headrace"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m service "$@"\n')
    command.chmod(0o755)
    return os.pathsep.join([str(own), str(command.parent), environment()["PATH"]])


def path_without_program() -> str:
    node = Path(str(shutil.which("node", path=environment()["PATH"]))).parent
    return os.pathsep.join([str(node), "/usr/bin", "/bin"])


@contextmanager
def stranger() -> Iterator[str]:
    """Something else that listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("file", ["miniflare.test.mjs", "client.test.mjs"])
def test_the_package_itself(file: str) -> None:
    path = ROOT / "tests" / "contract" / "npm" / file
    done = subprocess.run(
        ["node", "--test", str(path)], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout


def test_a_server_that_answers_is_used_and_the_command_is_told(program: Program, tmp_path: Path) -> None:
    done = npx(tmp_path, "--url", program.url, "--account", "mine", "node", "-e", SHOW)

    assert done.returncode == 0
    assert done.stderr == f"headrace: uses the server at {program.url}\n"
    url, account, options = done.stdout.strip().split(" ", 2)
    assert (url, account) == (program.url, "mine")
    assert options == f'--require "{SOURCE / "register.cjs"}"'


def test_the_exit_code_is_the_commands(program: Program, tmp_path: Path) -> None:
    assert npx(tmp_path, f"--url={program.url}", "--", "node", "-e", "process.exit(7)").returncode == 7


def test_where_nothing_answers_the_program_is_started_and_stopped(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = npx(tmp_path, "--url", url, "--data", "kept", "node", "-e", ASK, PATH=path_with_program(tmp_path))

    assert done.returncode == 0, done.stderr
    assert '"createsIndexes":true' in done.stdout
    assert f"bin/headrace dev at {url} (data in {tmp_path / 'kept'}); it stops with this command" in done.stderr
    assert (tmp_path / "kept" / "control.db").is_file()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--url", "{dead}"),
            "nothing answers at {dead}, and there is no Python program `headrace` to start; install it",
        ),
        (("--url", "{dead}", "--no-start"), "nothing answers at {dead}; start it with: headrace dev"),
        (("--url", "{locked}"), "Headrace at {locked} refuses requests without a token; set HEADRACE_TOKEN"),
        (("--url", "{locked}", "--token", "wrong"), "Headrace at {locked} refuses the token; set HEADRACE_TOKEN"),
        (("--url", "{stranger}"), "what answers at {stranger} (status 501) is not Headrace, or an older one"),
        (("--fast",), "--fast is no option; npx headrace --help lists them"),
        (("--token",), "--token needs a value"),
    ],
    ids=["down", "down, not to be started", "no token", "wrong token", "a stranger", "no option", "no value"],
)
def test_what_cannot_work_is_said_in_one_line(
    locked: Program, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with stranger() as other:
        names = {"dead": f"http://127.0.0.1:{free_port()}", "locked": locked.url, "stranger": other}
        given = [word.format(**names) for word in words]
        done = npx(tmp_path, *given, *(["node", "-e", "0"] if len(words) > 1 else []), PATH=path_without_program())

    assert done.returncode == 2
    assert done.stderr.startswith(f"headrace: {said.format(**names)}")
    assert done.stderr.count("\n") == 1


def test_a_command_that_is_not_there_is_named(program: Program, tmp_path: Path) -> None:
    done = npx(tmp_path, "--url", program.url, "nosuchcommand")

    assert done.returncode == 2
    assert "headrace: there is no command nosuchcommand; is it installed?" in done.stderr


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "Headrace does not answer at {url}; start it with: headrace dev"), ("wrong", "refuses the token: set")],
    ids=["down", "wrong token"],
)
def test_a_worker_hears_what_is_wrong_with_the_server(locked: Program, token: str, said: str) -> None:
    MINIFLARE_4.install(locked)
    url = locked.url if token else f"http://127.0.0.1:{free_port()}"
    stage = Stage(locked, MINIFLARE_4, f"wrong-{token or 'down'}-{os.getpid()}")
    done = subprocess.run(
        ["node", "--require", "headrace/register", "miniflare.mjs"],
        cwd=stage.folder,
        env=environment(HEADRACE_URL=url, HEADRACE_TOKEN=token),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    stage.close()

    assert said.format(url=url) in done.stdout
    assert "VECTOR_INSERT_ERROR" in done.stdout


def test_a_worker_with_the_token_comes_in(locked: Program) -> None:
    MINIFLARE_4.install(locked)
    stage = Stage(locked, MINIFLARE_4, f"right-token-{os.getpid()}")
    done = subprocess.run(
        ["node", "--require", "headrace/register", "miniflare.mjs"],
        cwd=stage.folder,
        env=environment(HEADRACE_URL=locked.url, HEADRACE_TOKEN="secret"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    stage.close()

    assert "vectorize.index.not_found" in done.stdout
    assert "(Headrace at" in done.stdout


@pytest.mark.parametrize("project", [MINIFLARE_4, CURRENT], ids=lambda project: project.name)
def test_a_remote_binding_goes_where_it_is_sent(tmp_path: Path, project: Project) -> None:
    with running(tmp_path, "--profile", "cloudflare", "--binding-creates-indexes") as remote:
        project.install(remote)
        stage = Stage(remote, project, f"remote-{os.getpid()}")
        make_docs(remote, stage.account)
        address = f"{remote.url}/accounts/{stage.account}/_binding?VECTORIZE=docs&FRESH=fresh"
        done = subprocess.run(
            ["node", "--require", "headrace/register", "miniflare.mjs", address],
            cwd=stage.folder,
            env=environment(HEADRACE_URL=f"http://127.0.0.1:{free_port()}"),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        stage.close()

    assert [case for case in results(done.stdout) if case[1]] == []
    assert "headrace: env.VECTORIZE has remote: true and is left alone" in done.stderr


def test_a_server_that_was_started_does_not_outlive_a_command_that_is_killed(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with subprocess.Popen(
        ["node", str(CLI), "--url", url, "node", "-e", "console.log('runs'); setInterval(() => 0, 1000)"],
        cwd=tmp_path,
        env=environment(PATH=path_with_program(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        urllib.request.urlopen(f"{url}/livez", timeout=60).close()
        os.killpg(process.pid, signal.SIGKILL)

    eventually("the server is gone", lambda: not answers(url))


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/livez", timeout=60).close()
    except OSError:
        return False
    return True
