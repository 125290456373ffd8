"""The bare read path, as the limit of what a service in Python can answer: nothing is done but what must be.

aiohttp, the fastest parser there is for a vector, one search in a view of the same graph with the same expansion that
Headrace used, and an answer of ids and scores. No validation, no filters, no namespaces, no tail, no deletes, no
metadata, no exact scores, no logs, no metrics. `running` starts as many processes of it as Headrace runs, on one port.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import simdjson
from aiohttp import web
from usearch.index import Index

ROOT = Path(__file__).resolve().parents[2]
COUNT = 10
INDEX = web.AppKey("index", Index)


@contextmanager
def running(
    graph: Path, *, expansion: int, processes: int, uvloop: bool = False, python: Path | None = None
) -> Iterator[int]:
    """Serve a graph file; gives the port. Another `python` is one that has uvloop, and uses it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        program = str(python or sys.executable)
        command = [program, "-P", "-m", "scripts.benchmark.read_limit", str(graph), str(port), str(expansion)]
        started = [
            subprocess.Popen(
                command + ["--uvloop"] * (uvloop or python is not None),
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT)},
                stdout=-1,
            )
            for _ in range(processes)
        ]
        try:
            for process in started:
                assert process.stdout is not None
                process.stdout.readline()
            yield port
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)


def application(graph: Path, expansion: int) -> web.Application:
    """One route, whatever the path."""
    index = Index.restore(graph, view=True, enable_key_lookups=False)
    assert index is not None
    index.expansion_search = expansion  # type: ignore[misc]
    # Labels count from 1 in an index that was loaded once, in order; ids in the benchmark count from 0.
    compiled = index._compiled  # noqa: SLF001 (the wrapper costs more than the rest of this handler)

    async def query(request: web.Request) -> web.Response:
        document = simdjson.Parser().parse(await request.read())
        values = np.frombuffer(document["vector"].as_buffer(of_type="d"), dtype=np.float64).astype(np.float32)
        keys, distances, *_ = compiled.search_many(values[np.newaxis], COUNT, exact=False, threads=1)
        matches = [
            {"id": str(key - 1), "score": score}
            for key, score in zip(keys[0].tolist(), (1 - distances[0]).tolist(), strict=True)
        ]
        answer = {"result": {"count": len(matches), "matches": matches}, "success": True, "errors": [], "messages": []}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    app = web.Application()
    app[INDEX] = index  # What it maps is freed with it.
    app.router.add_post("/{path:.*}", query)
    return app


async def serve(app: web.Application, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True).start()
    print("ready", flush=True)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """Run one process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("expansion", type=int)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    app = application(options.graph, options.expansion)
    if options.uvloop:
        import uvloop

        uvloop.run(serve(app, options.port))
    else:
        asyncio.run(serve(app, options.port))


if __name__ == "__main__":
    main()
