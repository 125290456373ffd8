"""Rot and loss: a file of one index is damaged, stopped or running, and everything is asked before and after.

No wrong answer, no crash, no error that is not a refusal, and the neighbour index right and writable throughout. Two
things may be noticed as late as the next scrub, and must be then and for good: rows of `state.db` that answers are
looked up by, and what is changed in a segment below an open mapping.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import pickle
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.trials.forked import HUNG, Ended, answered
from scripts.trials.report import VERDICTS, Trial, Trials
from scripts.trials.subject import (
    ACCOUNT,
    BUSY,
    QUIET,
    RULES,
    Expected,
    Questions,
    Row,
    Verdict,
    Writer,
    fast_folder,
    make,
)
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.inspection import Part, inspect_index
from storage.backends.sqlite.salvage import Salvaged, salvage
from storage.backends.sqlite.state import StateReader
from storage.errors import StorageError, Unavailable
from storage.interfaces import ListRequest, Store
from storage.open import open_store
from storage.records import IndexSpec, Record
from storage.settings import Settings
from worker.loop import Loop

SHORT = 24
FULL = 2_000
PAGE = 4096
TRIAL_S = 600.0
"""Far more than any trial takes: on a machine that has no time for it, one is slow and hangs nowhere."""
CATCH_UP_S = 240.0
KINDS = {"flip": 12, "zero page": 3, "truncate": 2, "zero tail": 2, "swap": 2, "missing": 2}
RUNNING_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to one file."""

    kind: str
    file: str
    place: int
    running: bool
    eager: bool
    """Whether the worker seals everything at once, so that what is damaged could be made durable."""

    def __str__(self) -> str:
        when = "running" if self.running else "stopped"
        return f"{self.kind} at {self.place} of {self.file}, {when}{', eager' if self.eager else ''}"


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Do the trials that were not done yet; a number stands for one trial of a seed."""
    done = Trials(results / f"rot-{seed}.jsonl", replay)
    with tempfile.TemporaryDirectory(prefix="headrace-rot-", dir=fast_folder()) as scratch:
        template = Path(scratch) / "template"
        template.mkdir()
        answered(lambda: asyncio.run(make(template, seed)), Path(scratch) / "make.log", TRIAL_S)
        if not (template / "model.pickle").exists():
            raise SystemExit((Path(scratch) / "make.log").read_text()[-3000:])
        for number in done.wanted(range(trials)):
            done.note(_trial(template, Path(scratch), seed, number, verbose=replay is not None))
    return done.result(range(trials))


def _trial(template: Path, scratch: Path, seed: int, number: int, *, verbose: bool) -> Trial:
    started = time.monotonic()
    folder = scratch / f"trial-{number}"
    shutil.copytree(template, folder)
    dice = random.Random(seed * 1_000_003 + number)
    docs, other = _folders(folder)
    if dice.random() < 0.5:
        _checkpoint(docs)
    fault = _choose(dice, docs)
    if not fault.running:
        _damage(fault, docs, other)
    found = _found(folder, fault, seed + number)
    if verbose:
        print((folder / "log").read_text())
    if found[0].startswith("crash") and fault.running and fault.file.startswith("segments/"):
        # A file that changes below a mapping may take one process with it, once: the next must know better.
        again = _found(folder, replace(fault, running=False), seed + number)
        found = ["crashed once", f"{found[0]}, then {again[0]}"] if again[0] in VERDICTS else again
    promise = f"rot of {_family(fault.file)}, {'running' if fault.running else 'stopped'}"
    shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - started, 3)
    return Trial(number=number, promise=promise, what=str(fault), verdict=found[0], note=found[1], seconds=seconds)


def _found(folder: Path, fault: Fault, seed: int) -> list[str]:
    """What an examination in a process of its own comes to, and then a salvage in another."""
    log = folder / "log"
    found = _read(answered(lambda: asyncio.run(_examine(folder, fault, seed)), log, TRIAL_S), log)
    if found[0] in VERDICTS and found[0] != "harmless":
        salvaged = _read(answered(lambda: asyncio.run(_salvage(folder)), log, TRIAL_S), log)
        if salvaged[0] not in VERDICTS:
            return salvaged
        found[1] = f"{found[1]} {salvaged[1]}".strip()
    return found


def _read(ended: Ended, log: Path) -> list[str]:
    if ended.code == 0:
        found: list[str] = ended.answer
        return found
    if ended.code < 0:
        return ["hang" if ended.code == HUNG else f"crash by signal {-ended.code}", ""]
    return ["error", log.read_text()[-600:]]


def _folders(folder: Path) -> tuple[Path, Path]:
    """The folders of `docs` and `other`: the one with more in it is `docs`."""
    some = sorted((folder / "data" / "indexes").iterdir(), key=lambda path: len(list(path.rglob("*"))))
    return some[-1], some[0]


def _checkpoint(docs: Path) -> None:
    """Half of the time everything lies in the databases themselves, and not in front of them."""
    for name in ("log.db", "state.db"):
        connection = connect(docs / name)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()


def _family(file: str) -> str:
    if file.startswith("segments/"):
        return "segments"
    databases = {"HEAD": "the log", "log.db": "the log", "state.db": "the state"}
    return databases.get(file.removesuffix("-wal"), "notes")


def _choose(dice: random.Random, docs: Path) -> Fault:
    files = sorted(
        str(path.relative_to(docs))
        for path in docs.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != "log.lock" and not path.name.endswith("-shm")
    )
    families: dict[str, list[str]] = {}
    for file in files:
        families.setdefault(file if not file.startswith("segments/") else "segments", []).append(file)
    weights = {"segments": 8, "log.db": 4, "log.db-wal": 4, "state.db": 4, "state.db-wal": 4, "HEAD": 1}
    family = dice.choices(list(families), [weights.get(name, 1) for name in families])[0]
    file = dice.choice(families[family])
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    size = (docs / file).stat().st_size
    place = dice.randrange(size * 8) if kind == "flip" else dice.randrange(size)
    return Fault(kind, file, place, dice.random() < RUNNING_SHARE, dice.random() < 0.4)


def _damage(fault: Fault, docs: Path, other: Path) -> None:
    """Do it, in place: whoever has the file open or mapped sees it."""
    path = docs / fault.file
    if not path.exists() or path.stat().st_size * (8 if fault.kind == "flip" else 1) <= fault.place:
        return  # A write-ahead log that was begun anew is shorter now.
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    match fault.kind:
        case "flip":
            _write(path, fault.place // 8, bytes([_byte(path, fault.place // 8) ^ (1 << (fault.place % 8))]))
        case "zero page":
            begin = fault.place // PAGE * PAGE
            _write(path, begin, bytes(min(PAGE, path.stat().st_size - begin)))
        case "truncate":
            os.truncate(path, fault.place)
        case "zero tail":
            size = path.stat().st_size
            os.truncate(path, fault.place)
            os.truncate(path, size)
        case "missing":
            path.unlink()
        case "swap":
            _swap(path, other, fault)


def _swap(path: Path, other: Path, fault: Fault) -> None:
    """With the file of the same name of the neighbour, or of another segment; else two halves change places."""
    candidates = [one for one in other.parent.rglob(path.name) if one != path and one.is_file()]
    if candidates:
        twin = sorted(candidates)[fault.place % len(candidates)]
        path.write_bytes(twin.read_bytes())
    else:
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes(content[half:] + content[:half])


def _byte(path: Path, place: int) -> int:
    with path.open("rb") as file:
        file.seek(place)
        return file.read(1)[0]


def _write(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


class _Examination:
    """One damaged folder, asked at every stage."""

    def __init__(self, folder: Path, fault: Fault, seed: int) -> None:
        self.fault = fault
        self.folder = folder
        self.dice = random.Random(seed)
        base = BUSY if fault.eager else QUIET
        self.settings: Settings = replace(base, data=folder / "data")
        self.models: dict[str, Expected] = pickle.loads((folder / "model.pickle").read_bytes())
        self.late = fault.file.startswith("state.db") or (fault.running and fault.file.startswith("segments/"))
        self.notes: list[str] = []
        self.refused = False
        self.is_slow = False
        self.seen_late = ""

    def judge(self, stage: str, name: str, verdict: Verdict, *, scrubbed: bool = False) -> None:
        """Raise at what must never be; remember what was refused."""
        if verdict.broken:
            raise _Violated("error", f"{stage}, {name}: {verdict.broken[0]}")
        if name == "other" and (verdict.wrong or verdict.refused):
            raise _Violated("neighbour", f"{stage}: {(verdict.wrong + verdict.refused)[0]}")
        if verdict.wrong:
            if self.late and not scrubbed:
                self.seen_late = f"{stage}: {verdict.wrong[0]}"
            else:
                raise _Violated("wrong answer", f"{stage}: {verdict.wrong[0]}")
        self.refused |= bool(verdict.refused)

    async def all(self) -> list[str]:
        store = await open_store(self.settings)
        questions = {name: Questions(store, name, model) for name, model in self.models.items()}

        async def ask(stage: str, *, scrubbed: bool = False) -> None:
            for name, some in questions.items():
                self.judge(stage, name, await some.ask(self.dice), scrubbed=scrubbed)

        try:
            await ask("opened")
            if self.fault.running:
                _damage(self.fault, *_folders(self.folder))
                await ask("damaged")
            loop = await Loop.start(self.settings)
            stop = asyncio.Event()
            working = asyncio.create_task(loop.run(stop))
            try:
                await self._wait(store, loop)
                await ask("applied")
                await self._write(store, loop)
                await ask("written")
                findings = await self._scrub(store, loop)
                await self._settle(ask, store)
                await ask("scrubbed", scrubbed=True)
                if self.is_slow and not (self.refused or findings):
                    await self._catch_up(store, loop)
            finally:
                stop.set()
                await working
        finally:
            await store.close()
        if self.seen_late:
            return ["scrubbed", self.seen_late]
        return ["detected", "; ".join(findings)[:300]] if self.refused or findings else ["harmless", ""]

    async def _settle(self, ask: Callable[[str], Awaitable[None]], store: Store) -> None:
        """Services open anew what the scrub found, beside what they answer from; how soon is the machine's affair."""
        for _ in range(300):
            before, self.seen_late = self.seen_late, ""
            await ask("settling")
            is_settled, self.seen_late = not self.seen_late, before or self.seen_late
            if is_settled and await self._is_newest(store):
                break
            await asyncio.sleep(0.1)

    async def _is_newest(self, store: Store) -> bool:
        """Whether queries of `docs` are answered from the newest layout, or refused."""
        spec = store.index(ACCOUNT, "docs")
        try:
            snapshot = await store.snapshot(spec)
            with closing(StateReader(Reader(DataFolder(self.settings.data).index(spec.id).state))) as reader:
                return snapshot.layout >= reader.state().layout
        except StorageError:
            return True

    async def _wait(self, store, loop: Loop) -> None:  # type: ignore[no-untyped-def]
        """Until all is applied, or the worker has given the index up."""
        spec = store.index(ACCOUNT, "docs")
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and not loop.is_halted(spec.id):
            with contextlib.suppress(StorageError):
                if store.progress(spec).applied >= len(self.models["docs"].ids):
                    break
            await asyncio.sleep(0.02)
        else:
            self._give_up(spec, loop)
        await asyncio.sleep(1.5 if self.fault.eager else 0.3)

    def _give_up(self, spec: IndexSpec, loop: Loop) -> None:
        """Do not wait longer for an index that is halted, which says so, or that is slow, which says nothing."""
        if loop.is_halted(spec.id):
            self.refused = True
        else:
            self.is_slow = True

    async def _catch_up(self, store: Store, loop: Loop) -> None:
        """What is slow and nothing else must come to its end: otherwise damage stops an index without a word."""
        spec = store.index(ACCOUNT, "docs")
        deadline = time.monotonic() + CATCH_UP_S
        try:
            while not loop.is_halted(spec.id):
                if await store.wait_applied(spec, await store.head(spec), 1):
                    return
                if time.monotonic() > deadline:
                    raise _Violated("stuck", "what is written is neither applied nor refused")
        except StorageError:
            pass
        self.refused = True

    async def _write(self, store, loop: Loop) -> None:  # type: ignore[no-untyped-def]
        for name, model in self.models.items():
            before = copy.copy(model)
            writer = Writer(store, store.index(ACCOUNT, name), model)
            try:
                sequence = await writer.upsert(["v0001", "o1"] if name == "docs" else ["o1"], 990)
                if not await store.wait_applied(writer.spec, sequence, 120 if name == "other" else 2):
                    if name == "other":
                        raise _Violated("neighbour", "a write is not applied")
                    self._give_up(writer.spec, loop)
            except StorageError as error:
                if name == "other":
                    raise _Violated("neighbour", f"a write is refused: {error}") from error
                self.refused = True
                self.models[name] = before
            except AssertionError as error:
                raise _Violated("wrong answer", "a sequence was given twice or left out") from error

    async def _scrub(self, store, loop: Loop) -> list[str]:  # type: ignore[no-untyped-def]
        """What a scrub finds, and what the worker makes of it."""
        spec = store.index(ACCOUNT, "docs")
        try:
            found = await asyncio.to_thread(inspect_index, DataFolder(self.settings.data).index(spec.id))
        except Unavailable as error:
            return [f"cannot be read while it is open: {error}"]
        if found:
            await loop.scrub_now(spec.id)
        return [f"{one.part}: {one.message}" for one in found]


class _Violated(Exception):
    def __init__(self, verdict: str, note: str) -> None:
        super().__init__(verdict, note)
        self.verdict, self.note = verdict, note


async def _examine(folder: Path, fault: Fault, seed: int) -> list[str]:
    try:
        return await _Examination(folder, fault, seed).all()
    except _Violated as violated:
        return [violated.verdict, violated.note[:500]]


async def _salvage(folder: Path) -> list[str]:
    """Salvage, and compare: what is not named as lost is there, and nothing that never was."""
    models: dict[str, Expected] = pickle.loads((folder / "model.pickle").read_bytes())
    data = DataFolder(folder / "data")
    settings = replace(QUIET, data=data.path)
    told = Salvaged()
    store = await open_store(settings)
    try:
        spec = store.index(ACCOUNT, "docs")
    finally:
        await store.close()
    found = [one for one in inspect_index(data.index(spec.id)) if one.part is not Part.DERIVED]
    if found:
        try:
            told = salvage(data, spec.id, spec.config, graph_rows_min=600)
        except StorageError as error:
            return ["salvage failed", str(error)[:400]]
        if left := [one for one in inspect_index(data.index(spec.id)) if one.part is not Part.DERIVED]:
            return ["salvage failed", left[0].message[:400]]
    store = await open_store(settings)
    loop = await Loop.start(settings)
    stop = asyncio.Event()
    working = asyncio.create_task(loop.run(stop))
    try:
        if not await store.wait_applied(spec, await store.head(spec), 120):
            return ["salvage failed", "what was salvaged is not applied"]
        model = models["docs"].rows[len(models["docs"].ids)]
        page = await store.list_page(spec, ListRequest(count=100_000, rules=RULES, include_records=True))
        rows = {
            id: one for id, one in zip(page.ids, page.records, strict=True) if one is not None and id not in WRITTEN
        }
        wrong = sorted(id for id in rows.keys() | (model.keys() - WRITTEN) if not _same(rows.get(id), model.get(id)))
        if wrong and not told.lost:
            return ["salvage lost without a word", f"{len(wrong)}: {wrong[:5]}"]
        history = models["docs"].rows
        never = [id for id in wrong if id in rows and not any(_same(rows[id], rows_at.get(id)) for rows_at in history)]
        if never:
            return ["salvage made something up", f"{len(never)}: {never[:5]}"]
    finally:
        stop.set()
        await working
        await store.close()
    return ["detected", f"(salvaged; lost: {'; '.join(told.lost)[:200]})" if told.lost else "(salvaged whole)"]


WRITTEN = {"v0001", "o1"}
"""Ids that the examination may have written."""


def _same(record: Record | None, row: Row | None) -> bool:
    if record is None or row is None:
        return record is None and row is None
    return (record.values, record.namespace) == (row[0], row[2])
