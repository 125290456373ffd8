"""A plugin of pytest: a server for the run, and an empty index for each test.

It is loaded wherever Headrace is installed, so it imports nothing but the standard library and pytest, and starts
nothing before a fixture is asked for. What it starts is `headrace dev` in a process of its own: a free port, a
temporary folder, and every write answers when it can be found.

With HEADRACE_URL in the environment that server is used instead, with HEADRACE_TOKEN; what the tests make there is in
an account of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DIMENSIONS = 32
METRIC = "cosine"
NO_TOKEN = "local"  # noqa: S105 (clients that insist on a token send this where none is needed)
LISTENS = re.compile(r"listens on (http://\S+)")
STOP_S = 60
"""How long a server may take to stop before it is killed."""


class HeadraceError(Exception):
    """A request that was refused: what was asked, the status, and what the server said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadraceServer:
    """A running server, and what clients need to know of it."""

    url: str
    account: str
    token: str = NO_TOKEN

    @property
    def base_url(self) -> str:
        """What the Cloudflare SDKs and LangChain take as `base_url`."""
        return f"{self.url}/client/v4"

    @property
    def environ(self) -> dict[str, str]:
        """What wrangler, the SDKs and `npx headrace` read from their environment."""
        return {
            "CLOUDFLARE_API_BASE_URL": self.base_url,
            "CLOUDFLARE_BASE_URL": self.base_url,
            "CLOUDFLARE_ACCOUNT_ID": self.account,
            "CLOUDFLARE_API_TOKEN": self.token,
            "WRANGLER_SEND_METRICS": "false",
            "HEADRACE_URL": self.url,
            "HEADRACE_ACCOUNT": self.account,
            "HEADRACE_TOKEN": self.token,
            "HEADRACE_WAIT": "true",
        }

    def create_index(
        self,
        name: str,
        *,
        dimensions: int = DIMENSIONS,
        metric: str = METRIC,
        metadata_indexes: Mapping[str, str] | None = None,
    ) -> HeadraceIndex:
        """Make an index; `metadata_indexes` are properties and their types. Raises HeadraceError."""
        config = {"dimensions": dimensions, "metric": metric}
        self.ask("POST", "", {"name": name, "config": config})
        index = HeadraceIndex(self, name, config, dict(metadata_indexes or {}))
        index.create_metadata_indexes()
        return index

    def ask(self, method: str, path: str, document: object = None, *, lines: Iterable[object] | None = None) -> Any:
        """Send a request below the indexes of the account and return its result. Raises HeadraceError."""
        account = urllib.parse.quote(self.account, safe="")
        url = f"{self.base_url}/accounts/{account}/vectorize/v2/indexes{path}"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = None if document is None else json.dumps(document).encode()
        if lines is not None:
            headers["Content-Type"] = "application/x-ndjson"
            body = "\n".join(json.dumps(line) for line in lines).encode()
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 (the address is the user's own)
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310
                return json.load(response)["result"]
        except urllib.error.HTTPError as error:
            raise HeadraceError(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}") from error


@dataclass(frozen=True, slots=True)
class HeadraceIndex:
    """An index of a test. What a method writes can be found when it returns."""

    server: HeadraceServer
    name: str
    config: Mapping[str, Any]
    metadata_indexes: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """The length of its vectors."""
        return int(self.config["dimensions"])

    def insert(self, vectors: Iterable[Mapping[str, Any]]) -> str:
        """Add vectors; ids that are there keep what they have. Returns the mutationId."""
        return self._write("insert", lines=map(_plain, vectors))

    def upsert(self, vectors: Iterable[Mapping[str, Any]]) -> str:
        """Add or replace vectors. Returns the mutationId."""
        return self._write("upsert", lines=map(_plain, vectors))

    def delete_by_ids(self, ids: Sequence[str]) -> str:
        """Remove vectors. Returns the mutationId."""
        return self._write("delete_by_ids", document={"ids": list(ids)})

    def get_by_ids(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The vectors that are there, in the order asked for."""
        found: list[dict[str, Any]] = self._ask("POST", "get_by_ids", {"ids": list(ids)})
        return found

    def query(self, vector: Iterable[float], **options: Any) -> list[dict[str, Any]]:
        """The matches, best first; options are those of the API: `topK`, `filter`, `returnMetadata` and so on."""
        found: list[dict[str, Any]] = self._ask("POST", "query", {"vector": _numbers(vector)} | options)["matches"]
        return found

    def info(self) -> dict[str, Any]:
        """What `/info` says."""
        found: dict[str, Any] = self._ask("GET", "info?latest=true")
        return found

    def settle(self) -> None:
        """Wait until all that was written can be found, whoever wrote it."""
        for mutation in self._ask("GET", "mutations?count=1")["mutations"]:
            self._ask("GET", f"info?wait_for={mutation['mutationId']}")

    def create_metadata_indexes(self) -> None:
        """Make those it should have."""
        for name, kind in self.metadata_indexes.items():
            self._write("metadata_index/create", document={"propertyName": name, "indexType": kind})

    def delete(self) -> None:
        """Remove it."""
        self.server.ask("DELETE", f"/{self.name}")

    def reset(self) -> None:
        """Empty it: an index of the same name and config takes its place."""
        self.delete()
        self.server.create_index(self.name, **self.config, metadata_indexes=self.metadata_indexes)

    def _write(self, operation: str, **body: Any) -> str:
        return str(self._ask("POST", f"{operation}?wait=true", **body)["mutationId"])

    def _ask(self, method: str, path: str, document: object = None, *, lines: Iterable[object] | None = None) -> Any:
        return self.server.ask(method, f"/{self.name}/{path}", document, lines=lines)


@pytest.fixture(scope="session")
def headrace_server() -> Iterator[HeadraceServer]:
    """A server with the limits of the live service, for the whole run."""
    url = os.environ.get("HEADRACE_URL", "").rstrip("/")
    if url:
        token = os.environ.get("HEADRACE_TOKEN") or NO_TOKEN
        yield HeadraceServer(url=url, account=f"pytest-{uuid.uuid4().hex}", token=token)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder, _running(Path(folder)) as own:
        yield HeadraceServer(url=own, account="local")


@pytest.fixture
def headrace_index(request: pytest.FixtureRequest, headrace_server: HeadraceServer) -> Iterator[HeadraceIndex]:
    """An empty index that no other test has. `@pytest.mark.headrace(dimensions=768, ...)` says which kind."""
    marker = request.node.get_closest_marker("headrace")
    index = headrace_server.create_index(f"test-{uuid.uuid4().hex}", **(marker.kwargs if marker else {}))
    yield index
    index.delete()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "headrace(dimensions, metric, metadata_indexes): the kind of index that headrace_index is"
    )


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    """`headrace dev` until the block ends; its address."""
    arguments = ["dev", "--port", "0", "--data", str(folder / "data"), "--writes-wait", "--log-level", "warning"]
    arguments.append("--stop-with-input")
    log = folder / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*_program(), *arguments],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            found = LISTENS.search(process.stdout.readline())
            if found is None:
                raise HeadraceError(f"headrace dev did not start:\n{log.read_text()}")
            yield found[1]
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _program() -> list[str]:
    """How this very Headrace is started. Installed, it lies in a package of its own name; else in a source tree."""
    if __name__.startswith("headrace."):
        return [sys.executable, "-P", "-c", "import sys, headrace; sys.exit(headrace.main())"]
    source = str(Path(__file__).resolve().parents[1])
    return [
        sys.executable,
        "-P",
        "-c",
        f"import sys; sys.path.insert(0, {source!r}); from service.__main__ import main; sys.exit(main())",
    ]


def _plain(vector: Mapping[str, Any]) -> dict[str, Any]:
    return {**vector, "values": _numbers(vector["values"])}


def _numbers(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values]
