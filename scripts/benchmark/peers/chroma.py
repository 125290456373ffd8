"""Chroma: its server, asked over HTTP by its Python client, and with requests made beforehand.

A change of `ef_search` is stored by `collection.modify` but not seen by a graph that is in memory already, so the
server is started anew for each effort. Everything measured of one effort follows on one start.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmark.load import closed_loop, post
from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Loaded, M, Where

NAME = "bench"
START_S = 60.0
BATCH = 250
WRITERS = 4
INCLUDE = ["metadatas", "distances"]


class Chroma:
    """A server as a child process, on a free port of its own."""

    package = "chromadb"
    note = "HTTP; ids, distances and metadata in the answers"
    efforts = EFFORTS
    abilities = frozenset({"filters", "get", "scan", "write", "raw"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()
        self._effort = 0
        self._idle: list[ChromaSession] = []
        self.settings = {
            "max_neighbors": M,
            "ef_construction": EF_CONSTRUCTION,
            "space": "cosine",
            "load": f"{WRITERS} clients, batches of {BATCH}",
        }

    def create(self, data: Data) -> None:
        """A server with one empty collection."""
        del data
        self._start()
        graph = {"space": "cosine", "ef_construction": EF_CONSTRUCTION, "max_neighbors": M}
        graph |= {"ef_search": EFFORTS[0]}
        self._client().create_collection(NAME, embedding_function=None, configuration={"hnsw": graph})
        self._effort = EFFORTS[0]

    def load(self, data: Data) -> Loaded:
        """With several clients at once, as its guide to performance says; a row is indexed when it is first found."""
        names = list(data.fields)
        columns = [data.fields[name] for name in names]
        metadata = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        waiting: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for slice_ in data.batches(BATCH):
            waiting.put(slice_)
        failures: list[Exception] = []

        def write() -> None:
            try:
                collection = self._collection()
                while True:
                    start, end = waiting.get_nowait()
                    ids = [str(row) for row in range(start, end)]
                    collection.add(ids, embeddings=data.vectors[start:end], metadatas=metadata[start:end])
            except queue.Empty:
                pass
            except Exception as error:  # It is raised again below.
                failures.append(error)

        begun = time.perf_counter()
        writers = [threading.Thread(target=write) for _ in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if failures:
            raise failures[0]
        # The log is applied before a search is answered.
        session = self.session(EFFORTS[0])
        session.ask(session.prepare(data.vectors[-1], 1))
        seconds = time.perf_counter() - begun
        assert self._collection().count() == len(data)
        return Loaded(searchable_s=seconds, indexed_s=seconds)

    def open(self) -> None:
        """The server, with what it stored."""
        self._start()

    def session(self, effort: int) -> ChromaSession:
        """A client of its own; the server is started anew where its effort differs."""
        with self._changing:
            if effort != self._effort:
                self._collection().modify(configuration={"hnsw": {"ef_search": effort}})
                self.close()
                self._start()
                self._effort = effort
            # Making a client takes 50 ms, and is not what is measured.
            if not self._idle:
                self._idle.append(ChromaSession(self._collection(), self._idle))
            return self._idle.pop()

    def close(self) -> None:
        """Ask it to stop, and wait."""
        self._server.terminate()
        self._server.wait(30)

    def processes(self) -> list[int]:
        """The server is one process."""
        return [self._server.pid]

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        ids = [str(row) for row in sorted(set(rows))]
        return len(self._collection_kept().get(ids=ids, include=["embeddings", "metadatas"])["ids"])

    def scan(self) -> Iterator[int]:
        """By offset, ids alone."""
        listed = 0
        while page := len(self._collection_kept().get(limit=1_000, offset=listed, include=[])["ids"]):
            listed += page
            yield page

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """An upsert of one."""
        self._collection_kept().upsert([str(row)], embeddings=[vector], metadatas=[metadata])

    def raw(self, queries: Floats, effort: int, *, clients: int, seconds: float) -> tuple[list[float], float]:
        """The same requests as the client's, from our load generator."""
        self.session(effort)
        path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{self._collection().id}/query"
        requests = [
            post(path, json.dumps({"query_embeddings": [query], "n_results": 10, "include": INCLUDE}).encode())
            for query in queries.tolist()
        ]
        run = closed_loop(self._port, requests, connections=clients, seconds=seconds)
        assert not run.refused, f"{run.refused} requests were refused"
        return run.latencies, run.seconds

    def _client(self) -> Any:
        import chromadb

        return chromadb.HttpClient(
            host="127.0.0.1", port=self._port, settings=chromadb.Settings(anonymized_telemetry=False)
        )

    def _collection(self) -> Any:
        return self._client().get_collection(NAME, embedding_function=None)

    def _collection_kept(self) -> Any:
        """A client that is made once for each start of the server, not for each call."""
        self._kept = self._kept or self._collection()
        return self._kept

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        program = Path(sys.executable).parent / "chroma"
        command = [str(program), "run", "--path", str(self._folder), "--host", "127.0.0.1", "--port", str(self._port)]
        environ = {**os.environ, "ANONYMIZED_TELEMETRY": "False"}
        self._server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ
        )
        self._kept = None
        self._idle.clear()
        ends = time.monotonic() + START_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the server did not start: {self._server.poll()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/api/v2/heartbeat")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class ChromaSession:
    """The Python client."""

    def __init__(self, collection: Any, idle: list[ChromaSession]) -> None:
        self._collection, self._idle = collection, idle

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The arguments of one query."""
        filters = {} if where is None else {"where": {where.field: where.value}}
        return {"query_embeddings": [query], "n_results": count, "include": INCLUDE, **filters}

    def ask(self, request: Any) -> Any:
        """One query."""
        return self._collection.query(**request)

    def rows(self, answer: Any) -> list[int]:
        """Ids are the text of row numbers."""
        return [int(identifier) for identifier in answer["ids"][0]]

    def close(self) -> None:
        """Another session may have the client."""
        self._idle.append(self)
