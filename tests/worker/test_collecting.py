"""What the collector gives back, and what it must not take from anybody."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from structlog.testing import capture_logs

import worker.collect
from storage import plan as planning
from storage.backends.sqlite.database import Reader, file_bytes
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.reader import IndexReader
from storage.backends.sqlite.state import State, StateReader
from storage.backends.sqlite.workshop import Workshop
from storage.errors import CursorExpired, MutationNotFound
from storage.filters import FilterRules
from storage.interfaces import ListRequest
from storage.open import open_store
from storage.plan import PlanKind
from storage.records import IndexSpec, Metric, Sequence
from storage.search import Query, search
from storage.segment import format as layout
from tests.conftest import Running, batch, running_on, until
from tests.storage.model import Model
from worker.collect import Collector
from worker.jobs import BuildAnswer, BuildJob, run_builder

DIMENSIONS = 32
ROWS = 200
"""Of one batch: 25 KiB of numbers."""
RULES = FilterRules()


@pytest.fixture
def eager(small):
    """Everything is sealed, merged and collected as soon as it can be."""
    return replace(small, seal_bytes=1, grace_ms=200, merge_idle_ms=200)


@pytest.fixture
async def running(eager):
    async with running_on(eager) as one:
        yield one


@pytest.fixture
def dear_scans(monkeypatch):
    """Graphs are walked wherever there are any."""
    monkeypatch.setattr(planning, "SCAN_BYTES_FREE", 0)
    monkeypatch.setattr(planning, "EXPANSION_BYTES", 1)


class Look:
    """An index as its files are, seen from outside."""

    def __init__(self, running: Running, spec: IndexSpec) -> None:
        self._data = DataFolder(running.settings.data)
        self.folder: IndexFolder = self._data.index(spec.id)

    def rows(self, sql: str) -> list[tuple]:
        with closing(StateReader(Reader(self.folder.state))) as reader:
            return reader.rows(sql)

    def log_rows(self, sql: str) -> list[tuple]:
        with closing(LogReader(self.folder)) as log:
            return log.rows(sql)

    def state(self) -> State:
        with closing(StateReader(Reader(self.folder.state))) as reader:
            return reader.state()

    def segments(self) -> set[str]:
        return {name for (name,) in self.rows("SELECT name FROM segments")}

    def folders(self) -> set[str]:
        return {path.name for path in self.folder.segments.iterdir()}

    def bodies(self) -> int:
        [(count,)] = self.log_rows("SELECT count(*) FROM bodies")
        return count

    def log_bytes(self) -> int:
        return file_bytes(self.folder.log) + file_bytes(self.folder.log.with_name("log.db-wal"))

    def segment_rows(self) -> int:
        [(count,)] = self.rows("SELECT coalesce(sum(rows), 0) FROM segments")
        return count

    def segment_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.segments.rglob("*") if path.is_file())

    def is_forgotten(self) -> bool:
        """Whether everything is sealed and merged to one, and the state holds no more than that."""
        # A folder goes a moment before the note that it is to go.
        is_one = len(self.segments()) == 1 and self.folders() == self.segments()
        return is_one and not self.rows("SELECT 1 FROM parts") and not self.rows("SELECT 1 FROM garbage")

    def is_settled(self) -> bool:
        """Whether all of that holds, and the log has no bodies of what is sealed."""
        return self.is_forgotten() and not self.log_rows(
            f"SELECT 1 FROM bodies WHERE sequence <= {self.state().sealed_through}"
        )

    def head_is_kept(self, sequence: int) -> bool:
        """Whether the log still knows where it is, and every mutation's row is there."""
        return self.log_rows("SELECT sequence, (SELECT count(*) FROM mutations) FROM head") == [(sequence, sequence)]


def numbers(seed: int, count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)


async def write(running: Running, spec: IndexSpec, model: Model, batches: int, *, begin: int = 0) -> None:
    """Upsert some batches: half of each batch's ids are those of the one before."""
    for number in range(begin, begin + batches):
        named = [f"v{number * ROWS // 2 + row:05}" for row in range(ROWS)]
        one = batch(named, numbers(number))
        model.upsert(one)
        appended = await running.upsert(spec, one)
    await running.applied(spec, appended)


async def ask(store, spec: IndexSpec, model: Model, seed: int = 1) -> None:
    """The answer at recall 1 is that of the model."""
    query = Query(vector=numbers(seed, 1)[0], count=50, rules=RULES, recall=1.0)
    found = search(await store.snapshot(spec), query)
    assert [hit.id for hit in found.hits] == nearest(model, query)


def nearest(model: Model, query: Query) -> list[str]:
    return [id for id, _ in model.ranked(query.vector, model.rows)[: query.count]]


def flip(path: Path) -> None:
    """Turn one bit of a file over."""
    path.chmod(0o600)
    with path.open("r+b") as file:  # In place: whoever has it mapped must not find it cut short.
        [byte] = file.read(1)
        file.seek(0)
        file.write(bytes([byte ^ 1]))


async def test_what_is_sealed_is_given_back(running):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)

    await write(running, spec, model, 40)
    written_bytes = 40 * ROWS * DIMENSIONS * 4
    await until(look.is_settled)

    await until(lambda: look.log_bytes() < written_bytes / 4)
    assert look.rows("SELECT 1 FROM tombstones") == []
    assert look.rows("SELECT 1 FROM garbage") == []
    assert look.head_is_kept(40)
    await ask(running.store, spec, model)


async def test_under_load_what_an_older_layout_had_sealed_is_forgotten_now_and_then(small):
    """There is always a newer layout then before one has been there for the grace period."""
    forgotten = []

    async def forget_sealed(snapshot, *, layout, through):
        forgotten.append((layout, through))

    async def snapshot():
        return None

    state = SimpleNamespace(layout=9, collected_layout=0)
    index = SimpleNamespace(state=lambda: state, snapshot=snapshot, forget_sealed=forget_sealed)
    collector = Collector(index, replace(small, grace_ms=60_000))
    for now, settled in ((100.0, 3), (159.0, 4), (161.0, 5), (162.0, 9)):
        seen = worker.collect._Seen(settled, Sequence(10 * settled), (), at=0.0, is_open=True)
        await collector._forget_sealed(seen, now)

    assert forgotten == [(3, 30), (5, 50), (9, 90)]


async def test_of_an_older_layout_only_what_it_had_sealed_is_forgotten(small):
    """Who follows a layout in between still asks for the tombstones that came after, of rows that are nowhere since."""
    model = Model(Metric.COSINE)
    calm = replace(small, seal_bytes=1, grace_ms=1 << 40, merge_idle_ms=1 << 40, segments_max=100)
    async with running_on(calm) as running:
        spec = await running.index(dimensions=DIMENSIONS)
        look = Look(running, spec)
        await write(running, spec, model, 2)
        await until(lambda: look.state().sealed_through == 2)
        older = look.state()
        await write(running, spec, model, 1, begin=2)
        await until(lambda: look.state().sealed_through == 3)
    follower = IndexReader(spec, look.folder)
    followed = await follower.snapshot()
    gone = list(model.rows)[::2]
    model.delete(gone)
    async with running_on(replace(calm, merge_idle_ms=200)) as running:
        await running.applied(spec, await running.delete(spec, gone))
        await until(lambda: look.segment_rows() == len(model.rows))

    workshop = await Workshop.open(calm)
    index = await workshop.open_index(spec.id)
    try:
        await index.take("collector")
        earlier = look.rows(f"SELECT 1 FROM tombstones WHERE sequence <= {older.sealed_through}")
        await index.forget_sealed(await index.snapshot(), layout=older.layout, through=older.sealed_through)

        assert older.layout < followed.layout < look.state().layout
        assert look.state().collected_layout == older.layout
        assert not look.rows(f"SELECT 1 FROM parts WHERE sequence <= {older.sealed_through}")
        assert earlier
        assert not look.rows(f"SELECT 1 FROM tombstones WHERE sequence <= {older.sealed_through}")
        current = await follower.snapshot()
        assert current.layout == followed.layout
        query = Query(vector=numbers(1, 1)[0], count=50, rules=RULES, recall=1.0)
        assert [hit.id for hit in search(current, query).hits] == nearest(model, query)
    finally:
        await follower.close()
        await index.close()
        await workshop.close()


async def test_log_bodies_stay_as_long_as_they_are_to_be_retained(eager):
    async with running_on(replace(eager, log_retain_ms=3_600_000)) as running:
        spec = await running.index(dimensions=DIMENSIONS)
        look = Look(running, spec)
        await write(running, spec, Model(Metric.COSINE), 3)
        await until(lambda: look.is_forgotten())
        assert look.bodies() == 3

    async with running_on(replace(eager, log_retain_ms=1_500)) as running:
        await write(running, spec, Model(Metric.COSINE), 3, begin=3)
        # The last becomes old enough when everything else is long settled.
        await until(lambda: look.bodies() == 0)


async def test_a_store_that_nobody_asked_meanwhile_answers_right(running, eager):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 2)
    other = await open_store(eager)
    try:
        await ask(other, spec, model)
        old = await other.snapshot(spec)
        old_model = Model(Metric.COSINE, dict(model.rows))

        await write(running, spec, model, 5, begin=2)
        await until(look.is_settled)
        await running.applied(spec, await running.delete(spec, list(model.rows)[::3]))
        model.delete(list(model.rows)[::3])
        await until(look.is_settled)

        query = Query(vector=numbers(1, 1)[0], count=50, rules=RULES, recall=1.0)
        assert [hit.id for hit in search(old, query).hits] == nearest(old_model, query)
        await ask(other, spec, model)
        [first] = await other.records(spec, ["v00001"])
        assert first.values == model.rows["v00001"].values.tobytes()
    finally:
        await other.close()


async def test_every_answer_is_right_while_everything_is_rewritten_under_it(running, eager):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    other = await open_store(eager)
    try:
        await write(running, spec, model, 4)
        for number in range(4, 6):
            await write(running, spec, model, 1, begin=number)
            layout = look.state().layout
            while not (look.state().layout > layout and look.is_settled()):
                await ask(other, spec, model, seed=number)
                await asyncio.sleep(0.005)
    finally:
        await other.close()


async def test_dead_rows_give_their_space_back(running):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 10)
    await until(look.is_settled)
    before = look.segment_bytes()

    gone = list(model.rows)[: len(model.rows) // 2]
    await running.applied(spec, await running.delete(spec, gone))
    model.delete(gone)
    await until(lambda: look.segment_rows() == len(model.rows) and look.is_settled())

    assert look.segment_bytes() < 0.6 * before
    await until(lambda: not look.rows("SELECT 1 FROM tombstones"))
    await ask(running.store, spec, model)


async def test_nothing_is_left_of_vectors_that_are_all_deleted(running):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 3)
    await until(look.is_settled)

    await running.applied(spec, await running.delete(spec, list(model.rows)))
    await until(lambda: not look.segments() and not look.folders())

    await ask(running.store, spec, Model(Metric.COSINE))
    await write(running, spec, again := Model(Metric.COSINE), 1)
    await ask(running.store, spec, again)


async def test_what_builds_of_earlier_epochs_left_behind_is_removed(running):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 1)
    await until(look.is_settled)
    await running.stop_worker()
    epoch = look.state().epoch
    for name in (f"{epoch}-left", f".tmp-{epoch}-left", f"{epoch + 5}-later", "named-otherwise"):
        (look.folder.segments / name).mkdir()

    await running.start_worker()
    await write(running, spec, model, 1, begin=1)
    await until(lambda: look.state().sealed_through == 2 and not look.rows("SELECT 1 FROM garbage"))

    left = look.folders() - look.segments()
    assert left == {f"{epoch + 5}-later", "named-otherwise"}
    await ask(running.store, spec, model)


async def test_a_draft_that_a_killed_back_fill_left_in_a_segment_is_removed(eager):
    async with running_on(replace(eager, merge_idle_ms=1 << 40, segments_max=100)) as running:
        spec = await running.index(dimensions=DIMENSIONS)
        model, look = Model(Metric.COSINE), Look(running, spec)
        await write(running, spec, model, 1)
        await until(look.is_settled)
        await running.stop_worker()
        [segment] = look.segments()
        columns = look.folder.segments / segment / layout.COLUMNS
        columns.mkdir(exist_ok=True)
        (columns / ".tmp-left").write_bytes(b"half a column")

        await running.start_worker()
        await write(running, spec, model, 1, begin=1)
        await until(lambda: look.state().sealed_through == 2)

        assert segment in look.segments()
        assert not list(columns.iterdir())
        await ask(running.store, spec, model)


async def test_a_damaged_merge_leaves_what_it_was_made_from(running, monkeypatch):
    """The inputs of a merge are the only other copy of its rows: they go when it is proved, not before."""
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 1)
    await until(look.is_settled)
    [sound] = look.segments()
    damaged = {sound}

    async def damage_and_prove(job: BuildJob) -> BuildAnswer:
        # Each once: a proof that was given up is begun again, and what is flipped twice is sound.
        for name in look.segments().intersection(job.inputs) - damaged if sound not in look.segments() else ():
            damaged.add(name)
            flip(look.folder.segments / name / layout.VECTORS)
        return await run_builder(job)

    monkeypatch.setattr(worker.collect, "run_builder", damage_and_prove)
    with capture_logs() as events:
        await running.upsert(spec, batch(["v1"], numbers(7, 1)))
        await until(lambda: any(event["event"] == "segment.unproved" for event in events))

    assert sound in look.folders()
    assert look.bodies() == 1


async def test_versions_and_mutations_too_old_to_be_asked_for_are_forgotten(eager):
    async with running_on(replace(eager, cursor_ttl_ms=1_000, mutation_retain_ms=1_000)) as running:
        spec = await running.index(dimensions=DIMENSIONS)
        model, look = Model(Metric.COSINE), Look(running, spec)
        await write(running, spec, model, 3)
        first = await running.store.list_page(spec, ListRequest(count=10, rules=RULES))
        [oldest] = await running.store.mutations(spec, before=Sequence(2), count=1)
        await running.applied(spec, await running.delete(spec, list(model.rows)[:100]))

        await until(lambda: not look.rows("SELECT 1 FROM vectors WHERE removed > 0"))
        await until(lambda: look.log_rows("SELECT sequence FROM mutations") == [(4,)])

        assert look.rows("SELECT 1 FROM outcomes") == []
        with pytest.raises(CursorExpired):
            await running.store.list_page(spec, ListRequest(count=10, rules=RULES, cursor=first.next_cursor))
        with pytest.raises(MutationNotFound):
            await running.store.mutation(spec, oldest.id)
        assert running.store.progress(spec).vectors == len(model.rows) - 100


async def test_a_deleted_index_is_thrown_away_and_then_gone(running, eager):
    spec = await running.index(dimensions=DIMENSIONS)
    model, look = Model(Metric.COSINE), Look(running, spec)
    await write(running, spec, model, 3)
    await until(look.is_settled)
    data = DataFolder(eager.data)
    other = await open_store(eager)
    try:
        await ask(other, spec, model)
        await running.store.delete_index(spec)

        await until(lambda: not look.folder.path.exists() and not (data.trash / spec.id).exists())

        # A file that is open or mapped keeps its space, whatever its name.
        await until(lambda: not held(spec))
    finally:
        await other.close()


def held(spec: IndexSpec) -> list[str]:
    """The files of an index that this process still has open or mapped."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [one for one in (*links, *maps) if spec.id in one]


@pytest.mark.usefixtures("dear_scans")
@pytest.mark.parametrize("metric", Metric)
async def test_the_nearest_neighbours_may_all_be_deleted(running, metric):
    spec = await running.index(dimensions=DIMENSIONS, metric=metric)
    model, look = Model(metric), Look(running, spec)
    await write(running, spec, model, 20)
    await until(look.is_settled)
    query = Query(vector=numbers(1, 1)[0], count=20, rules=RULES, recall=1.0)
    every = replace(query, count=len(model.rows))

    gone = nearest(model, every)[: len(model.rows) * 15 // 100]
    await running.applied(spec, await running.delete(spec, gone))
    model.delete(gone)

    snapshot = await running.store.snapshot(spec)
    assert snapshot.parts[0].part.graph is not None
    for count in (1, 20, 200):
        exact, fast = replace(query, count=count), replace(query, count=count, recall=0.98)
        expected = model.ranked(query.vector, model.rows)[:count]
        assert [(hit.id, hit.score) for hit in search(snapshot, exact).hits] == expected
        found = search(snapshot, fast)
        assert len(found.hits) == count
        assert not {hit.id for hit in found.hits} & set(gone)
        assert len({hit.id for hit in found.hits} & {id for id, _ in expected}) >= 0.9 * count
    # The largest list is long enough to pass by what is deleted; the others are given up for the scan.
    assert found.explanations[0].plan is PlanKind.GRAPH
