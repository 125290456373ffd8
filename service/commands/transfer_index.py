"""An index on a server, as one end of a transfer: over the public API and within the limits of the live service.

The ids are listed first, all of them, into a file: a cursor expires, and on the live service, where twenty vectors are
read per request and requests are rationed, reading takes far longer than listing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import orjson

from service.commands.failure import CommandFailed
from service.commands.rest import Api, ApiRefused, ApiUnreachable
from service.commands.transfer_ends import Description, Piece, Told
from service.commands.transfer_journal import Journal, Progress

LIST_COUNT = 1_000
GET_IDS = 20
GETS_AT_ONCE = 4
PIECE_VALUES = 1_000_000
"""Numbers in one piece: about 20 MB of text."""
UPSERT_VECTORS_MAX = 1_000
UPSERT_BYTES_MAX = 50_000_000
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
TRIES = 12
"""Together more than the five minutes after which the live service lets requests through again."""
FIRST_WAIT_S = 1.0
WAIT_MAX_S = 60.0
SETTLED_TIMEOUT_S = 900.0
"""The live service applies 99 % of writes within two minutes."""
CATCH_UP_TIMEOUT_S = 60.0
FIRST_LOOK_S = 0.05
LOOK_MAX_S = 5.0
NO_SUCH_INDEX = frozenset({3000, 3005})
"""Never there, or deleted. Told by the number: an account that is wrong is a 404 as well."""

Answer = TypeVar("Answer")


class IndexEnd:
    """One index, to read from or to write to. Raises CommandFailed, and ApiRefused with what the server says."""

    def __init__(self, api: Api, name: str, shown: str) -> None:
        self.shown = self.identity = shown
        self._api = api
        self._name = name
        self._dimensions = 0

    async def describe(self) -> Description:
        """How the index was made. The first request of a transfer, so it is not repeated when it fails."""
        found = await self._found()
        if found is None:
            raise CommandFailed(f"there is no index {self.shown}")
        answer = await patiently(lambda: self._api.get(f"/{self._name}/metadata_index/list"))
        self._dimensions = found["config"]["dimensions"]
        return Description(
            dimensions=self._dimensions,
            metric=found["config"]["metric"],
            text=found.get("description") or "",
            metadata_indexes=tuple(
                (one["propertyName"], one["indexType"].lower()) for one in answer["metadataIndexes"]
            ),
        )

    async def catch_up(self) -> None:
        """Wait until everything that was written is applied. Only a Headrace can tell."""
        answer = await self._api.get(f"/{self._name}/mutations?count=1")
        for latest in answer["mutations"]:
            await self.settle(latest["mutationId"], timeout_s=CATCH_UP_TIMEOUT_S)

    async def count(self, progress: Progress, journal: Journal, told: Told, /) -> None:
        """List every id into the file of ids, from where a listing was broken off."""
        if progress.is_listed and journal.ids.is_file() and journal.ids.stat().st_size == progress.listed_bytes:
            return
        if progress.is_listed or not journal.ids.is_file() or journal.ids.stat().st_size < progress.listed_bytes:
            progress.list_anew()
        with journal.ids.open("ab") as ids:
            ids.truncate(progress.listed_bytes)
            while not progress.is_listed:
                page = await self._page(progress)
                if not progress.cursor:
                    ids.truncate(0)
                    progress.total = page["totalCount"]
                ids.write(b"".join(orjson.dumps(one["id"]) + b"\n" for one in page["vectors"]))
                ids.flush()
                os.fsync(ids.fileno())
                progress.listed += len(page["vectors"])
                progress.listed_bytes = ids.seek(0, os.SEEK_END)
                progress.cursor = page["nextCursor"] or ""
                progress.is_listed = not page["isTruncated"]
                journal.save(progress)
                told(progress.listed, progress.total)

    async def _page(self, progress: Progress) -> Any:
        first = f"/{self._name}/list?count={LIST_COUNT}"
        if not progress.cursor:
            return await patiently(lambda: self._api.get(first))
        try:
            # A cursor is letters, digits, - and _, here and on the live service.
            return await patiently(lambda: self._api.get(f"{first}&cursor={progress.cursor}"))
        except ApiRefused as refused:
            if refused.status != HTTPStatus.BAD_REQUEST:
                raise
            progress.list_anew()  # It has expired: nothing else is wrong with a cursor that the server gave.
            return await patiently(lambda: self._api.get(first))

    async def pieces(self, progress: Progress, journal: Journal, /) -> AsyncIterator[Piece]:
        """Every vector whose id was listed and not yet moved, as lines."""
        size = max(GET_IDS, min(LIST_COUNT, PIECE_VALUES // self._dimensions))
        for ids, position in _listed(journal, progress.position, size):
            lines = await self._vectors(ids)
            yield Piece(lines=lines, gone=len(ids) - len(lines), position=position)

    async def _vectors(self, ids: Sequence[str]) -> tuple[bytes, ...]:
        """The vectors as lines, in the order of the ids; those that are gone are left out."""
        turn = asyncio.Semaphore(GETS_AT_ONCE)

        async def some(part: Sequence[str]) -> list[dict[str, Any]]:
            async with turn:
                answer: list[dict[str, Any]] = await patiently(
                    lambda: self._api.post(f"/{self._name}/get_by_ids", {"ids": part})
                )
                return answer

        parts = [ids[start : start + GET_IDS] for start in range(0, len(ids), GET_IDS)]
        found = {one["id"]: one for answer in await asyncio.gather(*map(some, parts)) for one in answer}
        return tuple(orjson.dumps(found[id]) + b"\n" for id in ids if id in found)

    async def prepare(self, wanted: Description, progress: Progress, /) -> None:
        """Make the index where there is none, and the metadata indexes that it lacks, before any vector."""
        found = await self._found()
        if found is None:
            config = {"dimensions": wanted.dimensions, "metric": wanted.metric or "cosine"}
            await self._api.post("", {"name": self._name, "description": wanted.text, "config": config})
        else:
            self._compare(found["config"], wanted)
        answer = await patiently(lambda: self._api.get(f"/{self._name}/metadata_index/list"))
        present = {one["propertyName"] for one in answer["metadataIndexes"]}
        for name, kind in wanted.metadata_indexes:
            if name not in present:
                body = {"propertyName": name, "indexType": kind}
                await self._api.post(f"/{self._name}/metadata_index/create", body)
        if progress.before < 0:
            progress.before = (await self._info())["vectorCount"]

    def _compare(self, config: dict[str, Any], wanted: Description) -> None:
        same_metric = not wanted.metric or config["metric"] == wanted.metric
        if config["dimensions"] != wanted.dimensions or not same_metric:
            raise CommandFailed(
                f"the index {self.shown} is there already, with {config['dimensions']} dimensions and "
                f"{config['metric']}; what would come has {wanted.dimensions} and {wanted.metric or 'any metric'}. "
                "Name another index, or delete that one"
            )

    async def put(self, lines: Sequence[bytes], mark: str) -> str:
        """Upsert, in as many requests as the limits want; the last mutation, durable on the server."""
        for batch in _batches(lines):
            try:
                mark = await patiently(functools.partial(self._upsert, b"".join(batch)))
            except ApiRefused as refused:
                if refused.status != HTTPStatus.BAD_REQUEST:
                    raise
                # The live service does not always say which vector it does not want.
                first, last = (orjson.loads(line)["id"] for line in (batch[0], batch[-1]))
                raise CommandFailed(f"{refused}, of the vectors from {first!r} to {last!r}") from refused
        return mark

    async def _upsert(self, body: bytes) -> str:
        answer = await self._api.post_lines(f"/{self._name}/upsert", body)
        return str(answer["mutationId"])

    async def settle(self, mark: str, *, timeout_s: float = SETTLED_TIMEOUT_S) -> int:
        """Wait until the last mutation is applied; how many vectors there are then."""
        deadline, look_s = time.monotonic() + timeout_s, FIRST_LOOK_S
        while True:
            # A Headrace may otherwise name an older mutation of ours: one that it has not told us of yet.
            info = await self._info("?latest=true" if _is_ours(mark) else "")
            if not mark or _has_passed(info.get("processedUpToMutation") or "", mark):
                return int(info["vectorCount"])
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"after {timeout_s:.0f} s mutation {mark} of {self.shown} is not applied; does a worker run there?"
                )
            await asyncio.sleep(look_s)
            look_s = min(look_s * 2, LOOK_MAX_S)

    async def _info(self, question: str = "") -> dict[str, Any]:
        info: dict[str, Any] = await patiently(lambda: self._api.get(f"/{self._name}/info{question}"))
        return info

    async def _found(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.get(f"/{self._name}")
        except ApiRefused as refused:
            if refused.code in NO_SUCH_INDEX:
                return None
            raise
        except ApiUnreachable as error:
            raise CommandFailed(
                f"nothing answers for {self.shown}; is it running, and is the address right?"
            ) from error
        return found


async def patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again while the server is busy, rations requests or does not answer. Reads and upserts bear it."""
    wait_s = FIRST_WAIT_S
    for left in reversed(range(TRIES)):
        asked_s = 0
        try:
            return await ask()
        except ApiRefused as refused:
            if refused.status not in RETRIED or not left:
                raise
            asked_s = refused.retry_after_s
        except ApiUnreachable:
            if not left:
                raise
        await asyncio.sleep(asked_s or wait_s)
        wait_s = min(wait_s * 2, WAIT_MAX_S)
    raise AssertionError("the last try returns or raises")


def _listed(journal: Journal, position: int, size: int) -> Iterator[tuple[list[str], int]]:
    with journal.ids.open("rb") as file:
        file.seek(position)
        while lines := [line for _, line in zip(range(size), file, strict=False)]:
            position += sum(map(len, lines))
            yield [orjson.loads(line) for line in lines], position


def _batches(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == UPSERT_VECTORS_MAX or size + len(line) > UPSERT_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


def _is_ours(mutation: str) -> bool:
    """Whether a Headrace gave it: version 7, where the live service has 4."""
    return mutation[14:15] == "7"


def _has_passed(processed: str, mark: str) -> bool:
    """Whether a mutation is applied. Ours compare in the order of the log; others are equal, or nobody knows."""
    return processed == mark or (_is_ours(processed) and _is_ours(mark) and processed >= mark)
