"""A data folder with a bit of everything in it, what it must answer, and the questions that find out.

The folder is made once by a process that ends without closing anything, so that write-ahead logs are full. `docs` has
segments, graphs, columns, dead rows, an applied tail, and mutations that wait; `other` is its neighbour, which must
not notice anything that happens to `docs`.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

import worker.tending
from storage.batch import Batch, pack_ids, pack_json, pack_vectors
from storage.errors import IndexNotFound, StorageError
from storage.filters import Compare, Comparison, FilterRules
from storage.interfaces import ListRequest, Store
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import (
    AccountId,
    Action,
    Change,
    IndexConfig,
    IndexSpec,
    MetadataIndex,
    MetadataType,
    Metric,
    Sequence,
)
from storage.search import Query, search
from storage.settings import Settings
from worker.loop import Loop

ACCOUNT = AccountId("acc")
DIMENSIONS = 48
IDS = 1_800
COLOURS = ("red", "green", "blue")
RULES = FilterRules()
QUIET = Settings(
    seal_bytes=1 << 40,
    seal_mutations=1 << 40,
    seal_idle_ms=1 << 40,
    merge_idle_ms=1 << 40,
    graph_rows_min=600,
    builder_threads=1,
    grace_ms=200,
    sweep_ms=200,
)
"""Nothing is sealed or merged unless something is damaged."""
BUSY = replace(QUIET, seal_bytes=200_000, seal_mutations=8, seal_idle_ms=100, merge_idle_ms=1 << 40, segments_max=3)

PRELOAD = "HEADRACE_TORTURE_PRELOAD"
"""The variable that names a module of this package which every started process of the product imports first: a build
that is broken on purpose."""


def launch(module: str) -> tuple[str, ...]:
    """The start of the command that runs a module of the product, `service` say, in a process of its own."""
    preload = os.environ.get(PRELOAD, "")
    return (sys.executable, "-P", "-m", *(("scripts.trials.preloaded", preload) if preload else ()), module)


Found = TypeVar("Found")
Row = tuple[bytes, int, str]
"""What the model keeps of a vector: its values, its colour, its namespace."""


def fast_folder() -> str | None:
    """Where scratch data goes: memory, where there is some, because these trials are not about the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass
class Expected:
    """What an index must answer, as of every sequence."""

    ids: list[str] = field(default_factory=list)
    """Mutation ids by sequence - 1."""
    rows: list[dict[str, Row]] = field(default_factory=lambda: [{}])
    """By sequence; the first is of the empty index."""
    indexes: list[bool] = field(default_factory=lambda: [False])
    """Whether `colour` has a metadata index, by sequence."""

    def add(self, id: str, rows: dict[str, Row], *, indexed: bool) -> None:
        """One more mutation."""
        self.ids.append(id)
        self.rows.append(rows)
        self.indexes.append(indexed)


def values_of(number: int) -> np.ndarray:
    """The values that stand for a number."""
    return np.random.default_rng(number).normal(size=DIMENSIONS).astype(np.float32)


def batch_of(ids: list[str], number: int) -> tuple[Batch, dict[str, Row]]:
    """A batch, and what the model keeps of it."""
    rows = {
        id: (values_of(number * 1000 + place).tobytes(), (number + place) % 3, "near" if place % 4 == 0 else "")
        for place, id in enumerate(ids)
    }
    batch = Batch(
        ids=tuple(rows),
        namespaces=tuple(row[2] for row in rows.values()),
        metadata=tuple(f'{{"colour":"{COLOURS[row[1]]}"}}'.encode() for row in rows.values()),
        values=np.stack([np.frombuffer(row[0], np.float32) for row in rows.values()]),
    )
    return batch, rows


class Writer:
    """Writes to one index and keeps its model."""

    def __init__(self, store: Store, spec: IndexSpec, expected: Expected) -> None:
        self.store, self.spec, self.expected = store, spec, expected

    async def upsert(self, ids: list[str], number: int) -> Sequence:
        """Write vectors with values that stand for a number."""
        batch, rows = batch_of(ids, number)
        change = Change(action=Action.UPSERT, body=pack_vectors(batch), rows=len(batch))
        return await self._append(change, {**self.expected.rows[-1], **rows})

    async def delete(self, ids: list[str]) -> Sequence:
        """Delete some."""
        left = {id: row for id, row in self.expected.rows[-1].items() if id not in set(ids)}
        return await self._append(Change(action=Action.DELETE, body=pack_ids(ids), rows=len(ids)), left)

    async def index_colour(self) -> Sequence:
        """Create the metadata index."""
        named = MetadataIndex(id=0, property="colour", type=MetadataType.STRING)
        body = pack_json({"property": "colour", "type": "string"})
        change = Change(action=Action.CREATE_METADATA_INDEX, body=body, rows=0, metadata_index=named)
        return await self._append(change, self.expected.rows[-1], indexed=True)

    async def _append(self, change: Change, rows: dict[str, Row], *, indexed: bool | None = None) -> Sequence:
        appended = await self.store.append(self.spec, change, RELAXED)
        assert appended.sequence == len(self.expected.ids) + 1
        self.expected.add(appended.id, rows, indexed=self.expected.indexes[-1] if indexed is None else indexed)
        return appended.sequence


async def make(folder: Path, seed: int) -> None:
    """Make the folder and its model, and end the process as if by the power switch."""
    dice = random.Random(seed)
    settings = replace(BUSY, data=folder / "data")
    store = await open_store(settings)
    loop = await Loop.start(settings)
    working = asyncio.create_task(loop.run(asyncio.Event()))
    models: dict[str, Expected] = {"docs": Expected(), "other": Expected()}
    writers = {}
    for name, model in models.items():
        spec = await store.create_index(
            ACCOUNT, name, "", IndexConfig(dimensions=DIMENSIONS, metric=Metric.COSINE), RELAXED
        )
        writers[name] = Writer(store, spec, model)
    docs, other = writers["docs"], writers["other"]
    await docs.index_colour()
    for number in range(24):
        await docs.upsert([f"v{dice.randrange(IDS):04}" for _ in range(130)], number)
        last = await docs.delete([f"v{dice.randrange(IDS):04}" for _ in range(9)])
    await other.upsert([f"o{place}" for place in range(40)], 900)
    await other.delete(["o3"])
    await store.wait_applied(docs.spec, last, 60)
    # Until what can be built is built, and the log gave up what is in segments.
    await asyncio.sleep(5)
    worker.tending.due = lambda *_, **__: None
    await asyncio.sleep(3)
    for number in range(30, 36):
        last = await docs.upsert([f"v{dice.randrange(IDS):04}" for _ in range(20)], number)
        last = await docs.delete([f"v{dice.randrange(IDS):04}" for _ in range(3)])
    last_other = await other.upsert([f"o{place}" for place in range(30, 60)], 901)
    assert await store.wait_applied(docs.spec, last, 60)
    assert await store.wait_applied(other.spec, last_other, 60)

    async def refuse(*_: object, **__: object) -> int:
        return 0

    worker.tending.apply_next = refuse
    for number in range(40, 44):
        await docs.upsert([f"v{dice.randrange(IDS):04}" for _ in range(15)], number)
    await docs.delete(["v0001", "v0002"])
    (folder / "model.pickle").write_bytes(pickle.dumps(models))
    assert not working.done()
    os._exit(0)


@dataclass
class Verdict:
    """What some questions came to."""

    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Errors that are no refusal: they would be a 500 and a traceback."""
    refused: list[str] = field(default_factory=list)
    right: int = 0


class Questions:
    """Everything one can ask about an index, and what the answers must be."""

    def __init__(self, store: Store, name: str, expected: Expected) -> None:
        self._store = store
        self._name = name
        self._expected = expected

    async def ask(self, dice: random.Random) -> Verdict:
        """Ask everything once."""
        verdict = Verdict()
        for what, question in self._all(dice):
            try:
                complaint = await question()
            except IndexNotFound as error:
                verdict.wrong.append(f"{what}: {error}")
            except StorageError as error:
                verdict.refused.append(f"{what}: {type(error).__name__}: {error}")
            except Exception as error:
                verdict.broken.append(f"{what}: {type(error).__name__}: {error}")
            else:
                if complaint:
                    verdict.wrong.append(f"{what}: {complaint}")
                else:
                    verdict.right += 1
        return verdict

    def _all(self, dice: random.Random) -> Iterator[tuple[str, Callable[[], Awaitable[str]]]]:
        yield "progress", self._progress
        yield "records", self._records
        yield "listing", self._listing
        yield "statuses", self._statuses
        yield "metadata indexes", self._metadata_indexes
        for recall in (1.0, 0.9):
            for kind in ("", "namespace", "filter"):
                number = dice.randrange(1 << 30)
                yield f"query {recall} {kind}", lambda r=recall, k=kind, n=number: self._query(r, k, n)  # type: ignore[misc]

    def _spec(self) -> IndexSpec:
        return self._store.index(ACCOUNT, self._name)

    async def _progress(self) -> str:
        progress = self._store.progress(self._spec())
        if not 0 <= progress.applied <= len(self._expected.ids):
            return f"applied {progress.applied} of {len(self._expected.ids)}"
        if progress.applied and progress.applied_id != self._expected.ids[progress.applied - 1]:
            return f"mutation {progress.applied} is {progress.applied_id}"
        wanted = len(self._expected.rows[progress.applied])
        return "" if progress.vectors == wanted else f"{progress.vectors} vectors, not {wanted}"

    async def _records(self) -> str:
        ids = [f"{'v' if self._name == 'docs' else 'o'}{number:04}" for number in range(IDS)]
        if self._name != "docs":
            ids = [f"o{number}" for number in range(80)]
        spec = self._spec()
        applied, found = await self._unmoved(spec, lambda: self._store.records(spec, ids))
        rows = self._expected.rows[applied]
        for id, record in zip(ids, found, strict=True):
            wanted = rows.get(id)
            have = None if record is None else (record.values, record.metadata, record.namespace)
            should = None if wanted is None else (wanted[0], _metadata(wanted), wanted[2])
            if have != should:
                return f"{id} is {have and have[1:]}, not {should and should[1:]}"
        return ""

    async def _unmoved(self, spec: IndexSpec, ask: Callable[[], Awaitable[Found]]) -> tuple[int, Found]:
        """An answer, and the mutation it is as of: asked again when more was applied meanwhile."""
        while True:
            before = self._store.progress(spec).applied
            found = await ask()
            if self._store.progress(spec).applied == before:
                return before, found

    async def _walk(self, spec: IndexSpec) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = await self._store.list_page(spec, ListRequest(count=700, cursor=cursor, rules=RULES))
            found += page.ids
            cursor = page.next_cursor
            if not cursor:
                return found

    async def _listing(self) -> str:
        spec = self._spec()
        applied, found = await self._unmoved(spec, lambda: self._walk(spec))
        wanted = sorted(self._expected.rows[applied])
        return "" if found == wanted else f"{len(found)} ids listed, not {len(wanted)}, or others"

    async def _statuses(self) -> str:
        spec = self._spec()
        found = await self._store.mutations(spec, before=Sequence(1 << 40), count=1000)
        for status in found:
            if not 1 <= status.sequence <= len(self._expected.ids):
                return f"there is no mutation {status.sequence}"
            if status.id != self._expected.ids[status.sequence - 1]:
                return f"mutation {status.sequence} is {status.id}"
        return ""

    async def _metadata_indexes(self) -> str:
        spec = self._spec()
        found = [(one.property, one.type) for one in self._store.metadata_indexes(spec)]
        wanted = [("colour", MetadataType.STRING)] if self._expected.indexes[-1] else []
        return "" if found == wanted else f"{found}, not {wanted}"

    async def _query(self, recall: float, kind: str, number: int) -> str:
        spec = self._spec()
        snapshot = await self._store.snapshot(spec)
        rows = self._expected.rows[snapshot.applied]
        vector = values_of(number)
        named = "near" if kind == "namespace" else ""
        tree = Compare(("colour",), Comparison.EQ, "red") if kind == "filter" else None
        found = search(
            snapshot,
            Query(vector=vector, count=10, namespace=named, filter=tree, rules=RULES, recall=recall),
        )
        fitting = {
            id: row
            for id, row in rows.items()
            if (not named or row[2] == named) and (tree is None or COLOURS[row[1]] == "red")
        }
        scores = {id: _cosine(vector, np.frombuffer(row[0], np.float32)) for id, row in fitting.items()}
        for hit in found.hits:
            if hit.id not in scores or abs(hit.score - scores[hit.id]) > 1e-5:
                return f"hit {hit.id} scores {hit.score}, not {scores.get(hit.id)}"
        if len(found.hits) != min(10, len(fitting)):
            return f"{len(found.hits)} hits of {len(fitting)}"
        best = sorted(scores.values(), reverse=True)[:10]
        if recall == 1 and any(abs(hit.score - score) > 1e-5 for hit, score in zip(found.hits, best, strict=True)):
            return "not the nearest"
        return ""


def _metadata(row: Row) -> bytes:
    return f'{{"colour":"{COLOURS[row[1]]}"}}'.encode()


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
