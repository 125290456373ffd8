"""The limit of a load: a bare server that does nothing a durable acknowledgement could leave out.

`python -m scripts.benchmark.ingest_limit --port 9000 --data FOLDER --dimensions 768` answers any POST of NDJSON with a
`mutationId`, as an insert does. In between it reads the body, has simdjson write the numbers of each line into one
float32 block, and commits ids, metadata and block as one row of a SQLite database with WAL and `synchronous=FULL`. It
checks nothing, keeps no chain, and nobody could search what it stores. SQLite checkpoints by itself, every 1,000 pages
as is its default, so that the log does not grow for ever.

With `--threads` parsing and committing are done in threads, one request each; without, in the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import uuid
from pathlib import Path

import numpy as np
import pysqlite3 as sqlite3
import simdjson
from aiohttp import web

BODY_BYTES_MAX = 512 * 1024 * 1024


class Ingest:
    """One database, and one way in."""

    def __init__(self, path: Path, dimensions: int, *, threads: bool) -> None:
        self._dimensions = dimensions
        self._threads = threads
        self._parsers = threading.local()
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL").fetchall()
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE mutations (id TEXT, ids BLOB, metadata BLOB, vectors BLOB)")

    async def post(self, request: web.Request) -> web.Response:
        """Answer once it is on disk."""
        body = await request.read()
        mutation = await asyncio.to_thread(self._ingest, body) if self._threads else self._ingest(body)
        return web.json_response({"success": True, "result": {"mutationId": mutation}})

    def _ingest(self, body: bytes) -> str:
        lines = body.split(b"\n")
        block = np.empty((len(lines), self._dimensions), dtype=np.float32)
        parser = self._parsers.__dict__.setdefault("parser", simdjson.Parser())
        ids, metadata = [], []
        for line in lines:
            if line:
                document = parser.parse(line)
                block[len(ids)] = np.frombuffer(document["values"].as_buffer(of_type="d"))
                ids.append(document["id"])
                metadata.append(document["metadata"].mini if "metadata" in document else b"")
                del document  # The parser takes no other line while a part of this one is held.
        mutation = str(uuid.uuid4())
        row = (mutation, "\n".join(ids), b"\n".join(metadata), block[: len(ids)].data)
        with self._lock:
            self._database.execute("INSERT INTO mutations VALUES (?, ?, ?, ?)", row)
        return mutation


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    ingest = Ingest(options.data / "ingest.db", options.dimensions, threads=options.threads)
    application = web.Application(client_max_size=BODY_BYTES_MAX)
    application.router.add_post("/{path:.*}", ingest.post)
    web.run_app(application, host="127.0.0.1", port=options.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
