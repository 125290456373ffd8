"""A service and a worker in one process, and a client that asks them over HTTP: for trials that end it anywhere."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import orjson

from scripts.trials import preloaded
from scripts.trials.crash_load import NAME_TAKEN, Api, Line, until
from scripts.trials.crash_writes import DIMENSIONS, Write
from scripts.trials.subject import PRELOAD
from service.process import run as serve
from storage.logs import configure_logs
from storage.settings import Settings
from worker.loop import Loop
from worker.tending import Tending

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a client does: a write to `docs`, or another index that is made or deleted."""

    write: Write | None = None
    make: str = ""
    drop: str = ""


@dataclass
class History:
    """What a client did and was told. It reaches others as it grows, through a file that no trial counts."""

    acknowledged: list[tuple[str, Write]] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)
    done: int = 0
    """Steps that were acknowledged."""
    done_before: int = 0
    """Those of stages that were done."""

    def add(self, step: Step, mutation: str) -> None:
        """A step was acknowledged."""
        self.done += 1
        if step.write is not None:
            self.acknowledged.append((mutation, step.write))
        self.extra = (self.extra | ({step.make} - {""})) - {step.drop}

    def save(self, path: Path) -> None:
        """Keep it: whole or as it was before."""
        draft = path.with_suffix(".draft")
        draft.write_bytes(pickle.dumps(self))
        draft.rename(path)

    @classmethod
    def load(cls, path: Path) -> History:
        """What was kept last."""
        found = pickle.loads(path.read_bytes())
        assert isinstance(found, cls)
        return found


class Site:
    """What a client reaches: the API, and for waiting the worker's own view of `docs`."""

    def __init__(self, line: Line, loop: Loop | None, asyncio_loop: asyncio.AbstractEventLoop) -> None:
        self.line = line
        self.api = Api(line)
        self._loop = loop
        self._asyncio_loop = asyncio_loop

    def do(self, steps: tuple[Step, ...], history: History, *, kept: Path | None = None, repeats: bool = False) -> None:
        """Do what is left of the steps, as often as it takes, and keep after each that it was acknowledged.

        With `repeats` the first of them was begun before: what is told may be that it was done.
        """
        for number, step in enumerate(steps, history.done_before):
            if number < history.done:
                continue
            mutation = self._do(step, number, repeats=repeats)
            repeats = False
            history.add(step, mutation)
            if kept is not None:
                history.save(kept)
        history.done_before += len(steps)

    def _do(self, step: Step, number: int, *, repeats: bool) -> str:
        if step.make:
            body = {"name": step.make, "config": {"dimensions": DIMENSIONS, "metric": "euclidean"}}
            self.api.call("POST", "", orjson.dumps(body), again=(NAME_TAKEN,), is_repeated=repeats)
        elif step.drop:
            self.api.call("DELETE", f"/{step.drop}", again=(404, 410), is_repeated=repeats)
        elif step.write is not None:
            answer = self.api.call("POST", f"/docs/{step.write.path}", step.write.body(), key=f"step-{number}")
            return str(answer["mutationId"])
        return ""

    def wait_applied(self, history: History) -> None:
        """Until all of it is."""
        if history.acknowledged:
            self.api.call("GET", f"/docs/info?wait_for={history.acknowledged[-1][0]}&timeout=100")

    def wait(self, what: str, holds: Callable[[Tending], bool]) -> None:
        """Until this is so of the index in the hands of the worker."""
        until(f"{what} happens", lambda: self._ask(lambda tending: not tending.is_busy and holds(tending)))

    def _ask(self, question: Callable[[Tending], bool]) -> bool:
        async def ask() -> bool:
            loop = self._loop
            assert loop is not None, "there is a worker"
            ours = [one for one in loop._tended.values() if one.index.spec.name == "docs"]  # noqa: SLF001
            if not ours:
                # Nobody writes to it, and the worker visits an index at rest once an hour: ring for it.
                for id in loop._workshop.indexes():  # noqa: SLF001
                    loop._heard(id)  # noqa: SLF001
            return bool(ours) and bool(ours[0].index.epoch) and question(ours[0])

        return asyncio.run_coroutine_threadsafe(ask(), self._asyncio_loop).result()


def on_site(settings: Settings, client: Callable[[Site], Found], *, with_worker: bool = True) -> Found:
    """Run service and worker as long as the client takes; what it returns. For a process that does nothing else."""
    break_if_asked()
    configure_logs(settings, process="site")
    return asyncio.run(_on_site(settings, client, with_worker=with_worker))


def settings_in(folder: Path, settings: Settings) -> Settings:
    """Those settings for the data folder in a folder."""
    return replace(settings, data=folder / "data", log_format="json")


def break_if_asked() -> None:
    """Break this process on purpose where trials are to show that they notice."""
    broken = os.environ.get(PRELOAD, "")
    if broken:
        preloaded.preload(broken)


async def _on_site(settings: Settings, client: Callable[[Site], Found], *, with_worker: bool) -> Found:
    stop, ready = asyncio.Event(), asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)
    loop = await Loop.start(settings) if with_worker else None
    chores = [asyncio.create_task(serve(settings, sockets=[listener], ready=ready.set, stop=stop))]
    if loop is not None:
        chores.append(asyncio.create_task(loop.run(stop)))
    starting = asyncio.create_task(ready.wait())
    await asyncio.wait([starting, *chores], return_when=asyncio.FIRST_COMPLETED)
    site = Site(Line(listener.getsockname()[1]), loop, asyncio.get_running_loop())
    working = asyncio.create_task(asyncio.to_thread(client, site))
    try:
        await asyncio.wait([working, *chores], return_when=asyncio.FIRST_COMPLETED)
        for chore in chores:
            if chore.done():
                chore.result()
        return await working
    finally:
        starting.cancel()
        site.line.is_over = True
        stop.set()
        await asyncio.gather(*chores, return_exceptions=True)
