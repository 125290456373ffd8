"""Small children for tests of the supervisor: each mode lives the life of a real child in one way.

Started as `python -P -m tests.service.child_double MODE`. `serve` answers HTTP with its process id on the socket it
inherited, `work` only waits, `crash-once` dies right after it is first ready, `die` never becomes ready, `refuse` will
not start on this data, `hang` does not stop when asked.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from storage.errors import SchemaTooNew
from storage.process import inherited_sockets, run_child
from storage.settings import Settings

ANSWER = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"


async def _serve(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = f'{{"success": true, "errors": [], "result": {{"pid": {os.getpid()}}}}}'
        writer.write(ANSWER.format(len(text), text).encode())
        await writer.drain()
        writer.close()

    (listener,) = inherited_sockets()
    server = await asyncio.start_server(answer, sock=listener)
    ready()
    await stop.wait()
    server.close()


async def _work(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    note = settings.data / "worker.started"
    note.write_text(f"{os.getpid()} {os.environ['PROMETHEUS_MULTIPROC_DIR']}\n")
    ready()
    await stop.wait()
    (settings.data / "worker.stopped").touch()


async def _crash_once(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    mark = settings.data / "crashed"
    ready()
    if not mark.exists():
        mark.touch()
        os._exit(9)
    (settings.data / "came.back").touch()
    await stop.wait()


async def _die(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    with (settings.data / "deaths").open("a") as deaths:
        deaths.write("x")
    raise RuntimeError("this child cannot live")


async def _refuse(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    with (settings.data / "deaths").open("a") as deaths:
        deaths.write("x")
    raise SchemaTooNew("control.db has schema 9 and this program knows up to 1")


async def _hang(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    ready()
    await asyncio.Event().wait()


MODES = {
    "serve": _serve,
    "work": _work,
    "crash-once": _crash_once,
    "die": _die,
    "refuse": _refuse,
    "hang": _hang,
}

if __name__ == "__main__":
    assert Path(__file__).exists()
    sys.exit(run_child(MODES[sys.argv[1]]))
