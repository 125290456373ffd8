"""`headrace import` and `headrace export`: vectors from one index or file to another, over the public API.

Nothing here is privileged: both ends are asked as any client asks, so both may run, be far away, or be Headrace.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from service.commands.failure import EXIT_FAILED, EXIT_USAGE, CommandFailed
from service.commands.rest import Api, ApiRefused, ApiUnreachable
from service.commands.transfer_arguments import LIVE_URL
from service.commands.transfer_ends import Description, Source, Target
from service.commands.transfer_file import FileSource, FileTarget
from service.commands.transfer_index import IndexEnd
from service.commands.transfer_journal import Journal, Progress

SCHEME = "vectorize://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One Vectorize API. `set_with` is where a person puts the token."""

    url: str
    account: str
    token: str
    set_with: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What was asked for. `other` is `vectorize://ACCOUNT/INDEX` or a file; the account of `live` is in it."""

    other: str
    index: str
    here: Server
    live: Server
    resume: Path | None
    metric: str = ""
    metadata_indexes: tuple[str, ...] = ()


def run_import(asked: Transfer) -> int:
    """Bring vectors here; 0 when all that were counted arrived. Raises CommandFailed."""
    return asyncio.run(_import(asked))


def run_export(asked: Transfer) -> int:
    """Take vectors from here; 0 when all that were counted arrived. Raises CommandFailed."""
    return asyncio.run(_export(asked))


async def _import(asked: Transfer) -> int:
    async with AsyncExitStack() as stack:
        live = _live(asked)
        if live is None:
            metadata_indexes = tuple(map(_metadata_index, asked.metadata_indexes))
            source: Source = FileSource(Path(asked.other), metric=asked.metric, metadata_indexes=metadata_indexes)
            kept = Path(f"{asked.other}.resume")
        else:
            source = await _end(stack, *live)
            kept = Path(f"{live[0].account}-{live[1]}.import.resume")
        target = await _end(stack, asked.here, _named(asked, live))
        return await _move(source, target, Journal(asked.resume or kept))


async def _export(asked: Transfer) -> int:
    async with AsyncExitStack() as stack:
        live = _live(asked)
        name = _named(asked, live)
        source = await _end(stack, asked.here, name)
        if live is None:
            target: Target = FileTarget(Path(asked.other))
            kept = Path(f"{asked.other}.resume")
        else:
            target = await _end(stack, *live)
            kept = Path(f"{live[0].account}-{live[1]}.export.resume")
        with suppress(ApiRefused, ApiUnreachable):  # An index that is not there is told of below.
            await source.catch_up()
        return await _move(source, target, Journal(asked.resume or kept))


async def _move(source: Source, target: Target, journal: Journal) -> int:
    if source.identity == target.identity:
        raise CommandFailed(f"both ends are {source.shown}", exit_code=EXIT_USAGE)
    progress = journal.load(source.identity, target.identity)
    if progress.total >= 0:
        _tell(f"going on where it was broken off: {progress.moved:,} of {progress.total:,} are over")
    description = await source.describe()
    await target.prepare(description, progress)
    try:
        with _bar() as bar:
            await _carry(source, target, journal, progress, bar)
        after = await target.settle(progress.mark)
    except CommandFailed as failure:
        raise CommandFailed(f"{failure}. {_way_on(progress, journal)}", exit_code=failure.exit_code) from failure
    except asyncio.CancelledError:
        _tell(_way_on(progress, journal))
        raise
    journal.remove()
    return _report(source, target, description, progress, after)


async def _carry(source: Source, target: Target, journal: Journal, progress: Progress, bar: Bar) -> None:
    counting = bar.add_task("counted", total=None)
    await source.count(progress, journal, lambda done, of: bar.update(counting, completed=done, total=of))
    bar.update(counting, visible=False)
    task = bar.add_task("moved", total=progress.total, completed=progress.moved)
    async for piece in source.pieces(progress, journal):
        progress.mark = await target.put(piece.lines, progress.mark)
        progress.position = piece.position
        progress.moved += len(piece.lines)
        progress.gone += piece.gone
        journal.save(progress)
        bar.update(task, completed=progress.moved)


def differences(progress: Progress, after: int) -> list[str]:
    """What the counts say against the transfer; nothing when it is whole."""
    found = []
    wanted = progress.total - progress.gone
    if progress.gone:
        found.append(f"{progress.gone:,} vectors were listed and were gone when they were read")
    if after < wanted:
        found.append(f"the target has {after:,} vectors, which is {wanted - after:,} too few")
    elif after > wanted and not progress.before:
        found.append(f"the target has {after:,} vectors, which is {after - wanted:,} more than came, and it was empty")
    return found


def _report(source: Source, target: Target, description: Description, progress: Progress, after: int) -> int:
    found = differences(progress, after)
    kinds = "".join(f" --metadata-index {name}:{kind}" for name, kind in description.metadata_indexes)
    metric = description.metric or "cosine"
    sys.stdout.write(f"{source.shown}: {progress.total:,} vectors of {description.dimensions} dimensions\n")
    sys.stdout.write(f"{target.shown}: {after:,} vectors\n")
    if isinstance(target, FileTarget):
        sys.stdout.write(f"the file does not say how the index was made: import it with --metric {metric}{kinds}\n")
    elif progress.before > 0:
        sys.stdout.write(f"the target had {progress.before:,} vectors before, so the counts need not be the same\n")
    for one in found:
        sys.stderr.write(f"headrace: {one}\n")
    if found:
        sys.stderr.write(
            "headrace: somebody wrote meanwhile, or something was lost: run the command again and compare\n"
        )
    return EXIT_FAILED if found else 0


def _live(asked: Transfer) -> tuple[Server, str] | None:
    """The other end, when it is an index; None when it is a file."""
    if not asked.other.startswith(SCHEME):
        return None
    found = re.fullmatch(r"([^/?#]+)/([^/?#]+)/?", asked.other.removeprefix(SCHEME))
    if found is None:
        raise CommandFailed(f"write the index as {SCHEME}ACCOUNT/INDEX", exit_code=EXIT_USAGE)
    live = asked.live
    if live.url == LIVE_URL and not live.token:
        raise CommandFailed(f"set {live.set_with} to an API token with Vectorize permissions", exit_code=EXIT_USAGE)
    return Server(url=live.url, account=found[1], token=live.token, set_with=live.set_with), found[2]


def _named(asked: Transfer, live: tuple[Server, str] | None) -> str:
    """The index here: as named, else as it is called there."""
    if asked.index:
        return asked.index
    if live is None:
        raise CommandFailed("name the index with --index", exit_code=EXIT_USAGE)
    return live[1]


async def _end(stack: AsyncExitStack, server: Server, name: str) -> IndexEnd:
    url = server.url.rstrip("/").removesuffix("/client/v4")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        # It is not repeated: there may be a password in it.
        raise CommandFailed("a server is named as http://HOST:PORT, without user or password", exit_code=EXIT_USAGE)
    api = Api(url, quote(server.account, safe=""), server.token, set_with=server.set_with)
    await stack.enter_async_context(api)
    return IndexEnd(api, quote(name, safe=""), f"{server.account}/{name} at {url}")


def _metadata_index(text: str) -> tuple[str, str]:
    name, _, kind = text.rpartition(":")
    if not name or kind not in ("string", "number", "boolean"):
        raise CommandFailed(
            f"{text!r} is no metadata index; write NAME:string, NAME:number or NAME:boolean", exit_code=EXIT_USAGE
        )
    return name, kind


def _way_on(progress: Progress, journal: Journal) -> str:
    if not journal.path.exists():
        return "Nothing was moved"
    of = f" of {progress.total:,}" if progress.total >= 0 else ""
    return f"{progress.moved:,}{of} are over; the same command goes on from there ({journal.path} says where)"


def _tell(line: str) -> None:
    sys.stderr.write(f"headrace: {line}\n")


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
