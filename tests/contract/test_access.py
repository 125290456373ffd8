"""Tokens under a real `headrace up`: several processes, commands from beside, and indexes made at the start."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest
from cloudflare import Cloudflare

from tests.certificates import make_certificate, needs_openssl
from tests.contract.program import ROOT, Program, eventually, running

INDEXES = "/client/v4/accounts/local/vectorize/v2/indexes"
TRIES = 24
"""Connections of their own, which the kernel spreads: enough that each of three processes answers some."""


def token(folder: Path, *arguments: str) -> str:
    """Run `headrace token` on the data of a program."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    command = [sys.executable, "-P", "-m", "service", "token", *arguments, "--data", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    return done.stdout.decode().strip()


def status(program: Program, held: str, header: str = "api-key", path: str = INDEXES) -> int:
    """What a request on a connection of its own is answered with."""
    request = urllib.request.Request(program.url + path, headers={header: held} if held else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_a_token_that_is_made_or_revoked_is_so_in_every_process(tmp_path: Path) -> None:
    data = tmp_path / "data"  # Where `running` has it.
    first = token(data, "create", "first", "--grant", "read:local")
    with running(tmp_path, "--processes", "3", "--create-indexes", "docs:32:cosine") as program:
        assert {status(program, first) for _ in range(TRIES)} == {200}
        assert {status(program, "") for _ in range(TRIES)} == {401}
        assert status(program, first, path=f"{INDEXES}/docs/info") == 200, "made at the start, with tokens in force"

        second = token(data, "create", "second", "--grant", "read:other")
        assert {status(program, second) for _ in range(TRIES)} == {403}

        token(data, "revoke", first)
        eventually("revoked everywhere", lambda: {status(program, first) for _ in range(TRIES)} == {401})
        assert {status(program, second) for _ in range(TRIES)} == {403}


def shown(program: Program) -> set[str]:
    """The certificates that new connections are shown."""
    return {ssl.get_server_certificate(("127.0.0.1", program.port)) for _ in range(TRIES)}


@needs_openssl
@pytest.mark.slow
def test_a_hangup_shows_every_process_the_new_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    audit = tmp_path / "audit.jsonl"
    files = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--audit-file", str(audit)]
    with running(tmp_path, "--processes", "2", "--create-indexes", "docs:32:cosine", *files) as program:
        assert program.url.startswith("https://")
        assert shown(program) == {certificate.read_text()}
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusting) as http:
            client = Cloudflare(api_token="local", base_url=program.base_url, http_client=http)
            assert [one.name for one in client.vectorize.indexes.list(account_id="local")] == ["docs"]
        assert '"index":"docs"' in audit.read_text(), "made at the start, over TLS"
        audit.rename(tmp_path / "audit.1")
        fresh, fresh_key = make_certificate(tmp_path, "fresh")
        fresh.replace(certificate)
        fresh_key.replace(key)

        os.kill(program.supervisor, signal.SIGHUP)

        eventually("the new certificate everywhere", lambda: shown(program) == {certificate.read_text()})
        eventually("a new audit file", audit.exists)
        assert program.complaints() == []
        assert program.stop() == 0
