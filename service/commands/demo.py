"""`headrace demo`: a whole visit, from an empty server to neighbours of a word, over the public API only.

Nothing here is privileged: each step is a request that a reader could send with curl, and its path is
printed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.commands.failure import EXIT_FAILED, CommandFailed
from service.commands.listeners import Address
from service.commands.rest import DUPLICATE_NAME, Api, ApiRefused
from service.commands.up import Crew, run_until
from service.sample.words import DIMENSIONS, EVERYDAY_RANK_MAX, Word, ndjson, sample_words
from storage.limits import CLOUDFLARE
from storage.logs import configure_logs
from storage.settings import Settings

USUAL_URL = "http://127.0.0.1:8787"
WORD = "ocean"
BATCH_WORDS = 500
"""Small enough for the bar to move, large enough to be quick."""
SEARCHABLE_TIMEOUT_S = 60
INFO_INTERVAL_S = 0.1
PROPERTIES = {"length": "number", "letter": "string", "rank": "number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What was asked for. An empty `url` is the usual one, or our own server if nothing listens there."""

    url: str
    account: str
    index: str
    token: str
    keep: bool


def run_demo(demo: Demo) -> int:
    """Show everything; returns the exit code. Raises CommandFailed."""
    return asyncio.run(_run(demo, Console()))


async def _run(demo: Demo, console: Console) -> int:
    # SIGTERM ends the demo as Ctrl-C does: through the clean-up.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with AsyncExitStack() as stack:
            url = await _find_server(demo, stack, console)
            api = await stack.enter_async_context(Api(url, demo.account, demo.token))
            await _visit(demo, api, console)
    except asyncio.CancelledError:
        return EXIT_FAILED
    return 0


async def _find_server(demo: Demo, stack: AsyncExitStack, console: Console) -> str:
    url = (demo.url or USUAL_URL).rstrip("/").removesuffix("/client/v4")
    if await _listens(url):
        console.print(f"Using the server at [bold]{url}[/].")
        return url
    if demo.url:
        raise CommandFailed(f"nothing listens at {url}; start a server with `headrace dev`, or leave --url out")
    own = await stack.enter_async_context(_own_server(demo.token))
    console.print(f"Nothing listens at {url}, so the demo runs its own server at [bold]{own}[/].", soft_wrap=True)
    return own


async def _listens(url: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/livez") as response:
            await response.read()
    except (aiohttp.ClientConnectionError, TimeoutError):
        return False
    except aiohttp.InvalidURL as error:
        raise CommandFailed(f"--url {url} is no URL; write it as {USUAL_URL}") from error
    return True


@asynccontextmanager
async def _own_server(token: str) -> AsyncIterator[str]:
    """What `headrace dev` would run, on a free port and a folder that goes away."""
    stop = asyncio.Event()
    listening = asyncio.Event()
    url = ""

    def ready(address: Address | None) -> None:
        nonlocal url
        assert address is not None
        url = address.url()
        listening.set()

    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        settings = replace(
            Settings(data=Path(folder), port=0, token=token, profile="cloudflare", limits=CLOUDFLARE),
            log_level="error",
        )
        configure_logs(settings, process="supervisor")
        running = asyncio.create_task(run_until(settings, Crew(), stop=stop, ready=ready))
        try:
            heard = asyncio.create_task(listening.wait())
            await asyncio.wait([running, heard], return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            if running.done():
                running.result()
            yield url
        finally:
            stop.set()
            await running


async def _visit(demo: Demo, api: Api, console: Console) -> None:
    words = sample_words()
    await _create(demo, api, console)
    try:
        last = await _load(demo, api, words, console)
        await _watch(demo, api, last, len(words), console)
        await _ask(demo, api, console)
    finally:
        if not demo.keep:
            await api.delete(f"/{demo.index}")
    if demo.keep:
        console.print(f"\nThe index [bold]{demo.index}[/] stays in account [bold]{demo.account}[/].")


async def _create(demo: Demo, api: Api, console: Console) -> None:
    console.print(f"\n[bold]1. Create[/] an index of {DIMENSIONS} dimensions, and the properties to filter on")
    body = {"name": demo.index, "config": {"dimensions": DIMENSIONS, "metric": "cosine"}}
    try:
        await api.post("", body)
    except ApiRefused as refused:
        if refused.code != DUPLICATE_NAME:
            raise
        raise CommandFailed(
            f"account {demo.account} already has an index {demo.index}, which the demo leaves alone; "
            "choose another name with --index"
        ) from refused
    for name, kind in PROPERTIES.items():
        await api.post(f"/{demo.index}/metadata_index/create", {"propertyName": name, "indexType": kind})


async def _load(demo: Demo, api: Api, words: Sequence[Word], console: Console) -> str:
    """Insert every word; the id of the last mutation."""
    console.print(f"\n[bold]2. Load[/] {len(words):,} English words with real vectors (GloVe 6B)")
    began = time.monotonic()
    last = ""
    with _progress(console) as progress:
        bar = progress.add_task("accepted", total=len(words))
        for start in range(0, len(words), BATCH_WORDS):
            batch = words[start : start + BATCH_WORDS]
            answer = await api.post_lines(f"/{demo.index}/insert", b"".join(ndjson(batch)))
            last = answer["mutationId"]
            progress.advance(bar, len(batch))
    console.print(f"   durable after {time.monotonic() - began:.1f} s; the last mutation is {last}", soft_wrap=True)
    return last


async def _watch(demo: Demo, api: Api, last: str, count: int, console: Console) -> None:
    """Look at /info until it has passed the last mutation; ids of one index compare in log order."""
    console.print("\n[bold]3. Watch[/] /info until the worker has applied it all")
    deadline = time.monotonic() + SEARCHABLE_TIMEOUT_S
    with _progress(console) as progress:
        bar = progress.add_task("searchable", total=count)
        while True:
            info = await api.get(f"/{demo.index}/info?latest=true")
            progress.update(bar, completed=info["vectorCount"])
            if (info.get("processedUpToMutation") or "") >= last:
                break
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"after {SEARCHABLE_TIMEOUT_S} s only {info['vectorCount']:,} of {count:,} words are "
                    "searchable; is a worker running on that data (`headrace work`)?"
                )
            await asyncio.sleep(INFO_INTERVAL_S)
    console.print(f"   processedUpToMutation is {info['processedUpToMutation']}", soft_wrap=True)


async def _ask(demo: Demo, api: Api, console: Console) -> None:
    console.print(f'\n[bold]4. Ask[/] for the neighbours of "{WORD}"\n')
    questions: tuple[tuple[str, dict[str, Any]], ...] = (
        (f'near "{WORD}"', {}),
        ("of at most 4 letters", {"filter": {"length": {"$lte": 4}}}),
        ("starting with c", {"filter": {"letter": "c"}}),
        (f"among the {EVERYDAY_RANK_MAX:,} commonest", {"namespace": "everyday"}),
    )
    for title, extra in questions:
        body = {"vectorId": WORD, "topK": 6, "returnMetadata": "all", **extra}
        answer = await api.post(f"/{demo.index}/query", body)
        console.print(_table(title, extra, answer["matches"]))


def _table(title: str, extra: dict[str, Any], matches: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title=f"[bold]{title}[/]", caption=json.dumps(extra) if extra else None, title_justify="left", min_width=52
    )
    table.add_column("word")
    for heading in ("score", "length", "letter", "rank"):
        table.add_column(heading, justify="right")
    table.add_column("namespace")
    for match in matches:
        metadata = match["metadata"]
        cells = (str(metadata[key]) for key in ("length", "letter", "rank"))
        table.add_row(match["id"], f"{match['score']:.3f}", *cells, match["namespace"])
    return table


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("   {task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)
