"""A Headrace under measurement: the real program, started as a user would, and asked over HTTP."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/client/v4/accounts/bench/vectorize/v2/indexes"
NDJSON = "application/x-ndjson"
START_S = 120.0
SETTLE_S = 1_800.0


class RefusedError(Exception):
    """An answer other than 200."""


@dataclass
class Server:
    """One running `headrace up`."""

    port: int
    process: subprocess.Popen[bytes]
    ready_s: float
    """From the start of the process to its first answer."""

    def __post_init__(self) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def call(self, method: str, path: str, body: bytes | None = None, *, content_type: str = "application/json") -> Any:
        """One request over a connection that is kept; the `result` of the answer. Raises RefusedError."""
        self._http.request(method, PREFIX + path, body, {"Content-Type": content_type} if body else {})
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RefusedError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return orjson.loads(content)["result"]

    def create(self, name: str, dimensions: int, fields: tuple[str, ...] = ()) -> None:
        """An index, with metadata indexes for these string fields."""
        config = {"name": name, "config": {"dimensions": dimensions, "metric": "cosine"}}
        self.call("POST", "", orjson.dumps(config))
        for field in fields:
            wanted = {"propertyName": field, "indexType": "string"}
            self.call("POST", f"/{name}/metadata_index/create", orjson.dumps(wanted))

    def upsert(self, name: str, body: bytes) -> str:
        """Write a batch; the id of its mutation."""
        return str(self.call("POST", f"/{name}/upsert", body, content_type=NDJSON)["mutationId"])

    def wait_visible(self, name: str, mutation: str) -> None:
        """Return when this mutation is applied."""
        self.call("GET", f"/{name}/info?wait_for={mutation}&timeout=300")

    def segments(self, name: str, vector: list[float]) -> list[dict[str, Any]]:
        """How a query was answered, part by part."""
        asked = {"vector": vector, "topK": 10, "explain": True}
        found: list[dict[str, Any]] = self.call("POST", f"/{name}/query", orjson.dumps(asked))["explain"]["segments"]
        return found

    def wait_layout(self, name: str, vector: list[float], *, tail_rows_max: int, segments_max: int = 1 << 30) -> None:
        """Wait until at most so many rows are in no segment, and there are at most so many segments."""
        deadline = time.perf_counter() + SETTLE_S
        while True:
            asked = time.perf_counter()
            parts = self.segments(name, vector)
            tail = sum(part["rows"] for part in parts if part["segment"] == "tail")
            if tail <= tail_rows_max and len(parts) - 1 <= segments_max:
                return
            if time.perf_counter() > deadline:
                raise TimeoutError(f"index {name} did not settle in {SETTLE_S:g} s: {parts}")
            # A query of many rows that are in no segment yet takes long, and a core away from building it.
            time.sleep(max(0.05, 5 * (time.perf_counter() - asked)))

    def pids(self) -> dict[str, list[int]]:
        """The processes by what they are: "supervisor", "service", "worker"."""
        found: dict[str, list[int]] = {"supervisor": [self.process.pid], "service": [], "worker": []}
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in map(int, children):
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            kind = "worker" if b"work" in command or b"worker" in command else "service"
            found[kind].append(child)
        return found


@contextmanager
def running(data: Path, *, processes: int, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start `headrace up` on a free port, and end it by its own process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-P", "-m", "service", "up", "--port", str(port), "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_LOG_LEVEL": "info", **(settings or {})}
    data.mkdir(parents=True, exist_ok=True)
    with (data.parent / f"{data.name}.log").open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--processes", str(processes)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield Server(port=port, process=process, ready_s=_wait_ready(port, process, output.name, started))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


def _wait_ready(port: int, process: subprocess.Popen[bytes], log: str, started: float) -> float:
    while time.perf_counter() - started < START_S:
        if process.poll() is not None:
            break
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return time.perf_counter() - started
        except OSError:
            pass
        time.sleep(0.01)
    tail = Path(log).read_text(errors="replace")[-2000:]
    raise RuntimeError(f"headrace did not get ready on port {port}; the end of its log:\n{tail}")
