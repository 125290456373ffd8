"""The whole of storage and worker against a dictionary: random mutations, queries, walks, seals, merges and restarts.

Two stores on one data folder stand for two service processes; a worker runs in the same loop and starts real builders.
Everything in the background happens soon and with little, and scanning is declared dear, so that graphs are walked.

HEADRACE_MODEL chooses how much is done: `ci` (the default, always the same walks) or `long` (many new walks, smaller
ones looked for when one fails).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from storage import plan as planning
from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import DataFolder, IndexFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.state import State, StateReader
from storage.batch import Batch, pack_ids, pack_json, pack_vectors
from storage.errors import MetadataIndexConflict, MetadataIndexNotFound
from storage.filters import Compare, Filter, FilterRules, to_json
from storage.interfaces import ListPage, ListRequest, Store
from storage.limits import RELAXED
from storage.open import open_store
from storage.records import (
    Action,
    Appended,
    Change,
    Counts,
    IndexConfig,
    IndexSpec,
    MetadataIndex,
    MetadataType,
    Metric,
    MutationState,
    Record,
)
from storage.search import Query, search
from storage.settings import Settings
from tests.conftest import ACCOUNT, Running, until
from tests.storage.model import Model
from tests.storage.questions import (
    DIMENSIONS,
    RELAXED_RULES,
    batches,
    bulk,
    comparisons,
    filters,
    ids,
    namespaces,
    properties,
    queries,
    row_seeds,
    rules_of_filters,
)

WAITS_MAX = 4
"""How often one walk waits for the background: a builder takes half a second to start."""
PROFILES = {
    "ci": hypothesis.settings(
        max_examples=15, stateful_step_count=60, derandomize=True, database=None, phases=(Phase.generate,)
    ),
    "long": hypothesis.settings(max_examples=200, stateful_step_count=80, database=None),
}


def check_hits(model: Model, query: Query, hits: list[tuple[str, float]]) -> None:
    """At recall 1 the answer is the model's. Below, it is as long, and what is in it is right and in order."""
    ranked = model.ranked(query.vector, model.matching(query.namespace, query.filter, query.rules))
    wanted = ranked[query.offset : query.offset + query.count]
    if query.recall == 1:
        assert hits == wanted
        return
    assert len(hits) == len(wanted)
    assert len({id for id, _ in hits}) == len(hits)
    assert set(hits) <= set(ranked)
    assert hits == model.ranked(query.vector, [id for id, _ in hits])


@dataclass
class Walk:
    """A listing that was begun, and what must still come."""

    request: ListRequest
    left: list[str]
    total: int


class IndexMachine(RuleBasedStateMachine):
    """One index, its two stores and its worker, and what they should answer.

    `past` is the index at every sequence, so that an answer is judged by the sequence it is of.
    """

    walks = Bundle("walks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        self.exits = ExitStack()
        self.events = self.exits.enter_context(capture_logs())
        self.runner = self.exits.enter_context(asyncio.Runner())
        self.settings = settings_of(self.folder)
        self.written: list[tuple[Appended, Counts]] = []
        self.waits = 0
        self.running: Running | None = None

    @initialize(metric=st.sampled_from(Metric), seals=st.sampled_from([1, 2, 0]), seed=row_seeds)
    def begin(self, metric: Metric, seals: int, seed: int) -> None:
        self.model = Model(metric)
        self.past = {0: copy_of(self.model)}
        self.run(self.open())
        config = IndexConfig(dimensions=DIMENSIONS, metric=metric)
        self.spec: IndexSpec = self.run(self.running.store.create_index(ACCOUNT, "docs", "", config, RELAXED))
        for number in range(seals):
            self.seal(seed + 100 * number)

    # Mutations

    @rule(batch=batches(), action=st.sampled_from([Action.INSERT, Action.UPSERT]), second=st.booleans())
    def write(self, batch: Batch, action: Action, second: bool) -> None:
        self.put(action, batch, second=second)

    @rule(seed=row_seeds, count=st.integers(20, 200), action=st.sampled_from([Action.INSERT, Action.UPSERT]))
    def write_much(self, seed: int, count: int, action: Action) -> None:
        self.put(action, bulk(seed, count))

    @rule(named=st.lists(ids, min_size=1, max_size=5), second=st.booleans())
    def delete(self, named: list[str], second: bool) -> None:
        change = Change(action=Action.DELETE, body=pack_ids(named), rows=len(named))
        self.append(change, lambda: self.model.delete(named), second=second)

    @rule(seed=row_seeds, share=st.sampled_from([0.05, 0.3]))
    def delete_much(self, seed: int, share: float) -> None:
        random = np.random.default_rng(seed)
        self.delete([id for id in self.model.ids() if random.random() < share] or ["nobody"], second=False)

    @rule(namespace=namespaces, tree=filters, rules=rules_of_filters)
    def delete_by_filter(self, namespace: str, tree: Filter | None, rules: FilterRules) -> None:
        if tree is None and not namespace:
            return  # The service refuses to select everything.
        document = {"filter": tree and to_json(tree), "namespace": namespace, "rules": asdict(rules)}
        change = Change(action=Action.DELETE_BY_FILTER, body=pack_json(document), rows=0)
        self.append(change, lambda: self.model.delete(self.model.matching(namespace, tree, rules)))

    @rule(
        property=properties,
        json_type=st.sampled_from(MetadataType),
        trees=st.lists(comparisons(), min_size=3, max_size=5),
        query=queries(),
    )
    def create_metadata_index(self, property: str, json_type: MetadataType, trees: list[Compare], query: Query) -> None:
        """Ask at once, too, while old segments have no column yet."""
        change = metadata_change(Action.CREATE_METADATA_INDEX, property, json_type)
        if self.model.types.get(property, json_type) is not json_type:
            with pytest.raises(MetadataIndexConflict):
                self.append(change, Counts)
            return
        self.model.types[property] = json_type
        self.append(change, Counts)
        self.catch_up()
        path = tuple(property.split("."))
        self.ask([replace(query, filter=replace(tree, path=path)) for tree in trees], second=False)

    @rule(property=properties)
    def delete_metadata_index(self, property: str) -> None:
        change = metadata_change(Action.DELETE_METADATA_INDEX, property, MetadataType.STRING)
        if property not in self.model.types:
            with pytest.raises(MetadataIndexNotFound):
                self.append(change, Counts)
            return
        del self.model.types[property]
        self.append(change, Counts)

    # Answers

    @rule(asked=st.lists(queries(), min_size=2, max_size=8), second=st.booleans(), caught_up=st.booleans())
    def query(self, asked: list[Query], second: bool, caught_up: bool) -> None:
        if caught_up:
            self.catch_up()
        self.ask(asked, second=second)

    def ask(self, asked: list[Query], *, second: bool) -> None:
        promised = self.store(not second).progress(self.spec).applied
        snapshot = self.run(self.store(second).snapshot(self.spec))
        assert snapshot.applied >= promised, "what one process has said, every process answers with"
        for query in asked:
            hits = [(hit.id, hit.score) for hit in search(snapshot, query).hits]
            check_hits(self.past[snapshot.applied], query, hits)

    @rule(named=st.lists(ids, min_size=1, max_size=8), second=st.booleans())
    def records(self, named: list[str], second: bool) -> None:
        self.catch_up()
        found = self.run(self.store(second).records(self.spec, named))
        assert list(found) == [self.record(id) for id in named]

    @rule(
        target=walks,
        count=st.sampled_from([1, 3, 50]),
        prefix=st.sampled_from(["", "", "a", "v0", "漢", "nobody"]),
        namespace=namespaces,
        tree=filters,
        rules=rules_of_filters,
        include_records=st.booleans(),
    )
    def begin_walk(self, tree: Filter | None, **asked: object) -> Walk:
        self.catch_up()
        request = ListRequest(filter=tree, **asked)
        selected = set(self.model.matching(request.namespace, tree, request.rules))
        pinned = self.model.ids(request.prefix)
        walk = Walk(request, pinned, len([id for id in pinned if id in selected]))
        return self.step(walk, second=False)

    @rule(target=walks, walk=consumes(walks), second=st.booleans())
    def continue_walk(self, walk: Walk, second: bool) -> Walk:
        return self.step(walk, second=second)

    @precondition(lambda self: self.written)
    @rule()
    def statuses(self) -> None:
        self.catch_up()
        self.check_statuses(self.written[-20:])

    # What happens around them

    @rule(which=st.sampled_from(["worker", "stores", "all"]))
    def restart(self, which: str) -> None:
        self.run(self.restarted(which))

    @precondition(lambda self: self.waits < WAITS_MAX)
    @rule(seed=row_seeds)
    def seal(self, seed: int) -> None:
        """Write until a seal is due, and wait until it is published."""
        before = self.state().sealed_through
        while self.tail_bytes() < self.settings.seal_bytes and self.state().sealed_through == before:
            self.put(Action.UPSERT, bulk(seed, 150))
            self.catch_up()
            seed += 1
        self.wait_until(lambda: self.state().sealed_through > before)

    @precondition(lambda self: self.waits < WAITS_MAX)
    @rule()
    def merge(self) -> None:
        """Be idle until what there is is one segment."""
        self.catch_up()
        self.wait_until(lambda: self.segments() <= 1)

    @precondition(lambda self: self.waits < WAITS_MAX)
    @rule()
    def collect(self) -> None:
        """Be idle until the log and the state have let go of what is sealed."""
        self.catch_up()
        self.wait_until(lambda: self.segments() <= 1 and self.is_collected())

    def teardown(self) -> None:
        try:
            if self.running is not None:
                self.check_everything()
        finally:
            self.run(self.closed())
            self.exits.close()
            shutil.rmtree(self.folder)
        self.check_events()

    # The rest is how, not what.

    def run(self, awaitable: Awaitable):
        return self.runner.run(awaitable)

    def store(self, second: bool) -> Store:
        return self.other if second else self.running.store

    async def open(self) -> None:
        self.running = Running(settings=self.settings, store=await open_store(self.settings), stop=asyncio.Event())
        self.other = await open_store(self.settings)
        await self.running.start_worker()

    async def closed(self) -> None:
        if self.running is not None:
            await self.running.stop_worker()
            await self.running.store.close()
            await self.other.close()

    async def restarted(self, which: str) -> None:
        if which in {"worker", "all"}:
            await self.running.stop_worker()
        if which in {"stores", "all"}:
            await self.running.store.close()
            await self.other.close()
            self.running.store = await open_store(self.settings)
            self.other = await open_store(self.settings)
        if which in {"worker", "all"}:
            await self.running.start_worker()

    def put(self, action: Action, batch: Batch, *, second: bool = False) -> None:
        change = Change(action=action, body=pack_vectors(batch), rows=len(batch))
        effect = self.model.insert if action is Action.INSERT else self.model.upsert
        self.append(change, lambda: effect(batch), second=second)

    def append(self, change: Change, effect: Callable[[], Counts], *, second: bool = False) -> None:
        appended = self.run(self.store(second).append(self.spec, change, RELAXED))
        assert appended.sequence == len(self.written) + 1
        self.written.append((appended, effect()))
        self.past[appended.sequence] = copy_of(self.model)

    def catch_up(self) -> None:
        if self.written:
            self.run(self.running.applied(self.spec, self.written[-1][0]))

    def record(self, id: str) -> Record | None:
        row = self.model.rows.get(id)
        return row and Record(id=id, namespace=row.namespace, values=row.values.tobytes(), metadata=row.metadata)

    def step(self, walk: Walk, *, second: bool) -> Walk:
        """Take the next page of a walk and strike it off."""
        self.catch_up()
        request = walk.request
        page: ListPage = self.run(self.store(second).list_page(self.spec, request))
        wanted = walk.left
        if request.namespace or request.filter is not None:
            selected = set(self.model.matching(request.namespace, request.filter, request.rules))
            wanted = [id for id in walk.left if id in selected]
        assert list(page.ids) == wanted[: request.count]
        assert page.total == walk.total
        assert page.next_cursor or len(wanted) <= request.count
        if request.include_records:
            assert list(page.records) == [self.record(id) for id in page.ids]
        left = walk.left[walk.left.index(page.ids[-1]) + 1 :] if page.ids else []
        if not page.next_cursor:
            return multiple()
        walk.request, walk.left = replace(request, cursor=page.next_cursor), left
        return walk

    def check_statuses(self, written: list[tuple[Appended, Counts]]) -> None:
        for appended, counts in written:
            status = self.run(self.running.store.mutation(self.spec, appended.id))
            assert (status.state, status.counts) == (MutationState.APPLIED, counts)

    def check_everything(self) -> None:
        self.catch_up()
        self.check_statuses(self.written)
        everything = self.model.ids()
        for store in (self.running.store, self.other):
            assert store.progress(self.spec).vectors == len(everything)
            named = [(one.property, one.type) for one in store.metadata_indexes(self.spec)]
            assert named == list(self.model.types.items())
            page = self.run(store.list_page(self.spec, ListRequest(count=1000, rules=RELAXED_RULES)))
            assert list(page.ids) == everything
            found = self.run(store.records(self.spec, everything))
            assert list(found) == [self.record(id) for id in everything]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        self.waits += 1

        def happened() -> bool:
            self.check_events()
            return condition()

        self.run(until(happened))

    def check_events(self) -> None:
        """What goes wrong in the background and is tried again must not go wrong at all here."""
        wrong = [event for event in self.events if event["log_level"] in {"error", "critical"}]
        assert not wrong, "\n".join(map(str, wrong))

    def state(self) -> State:
        with self.reading() as reader:
            return reader.state()

    def rows(self, sql: str) -> list[tuple]:
        with self.reading() as reader:
            return reader.rows(sql)

    def tail_bytes(self) -> int:
        [(size,)] = self.rows("SELECT coalesce(sum(bytes), 0) FROM parts, progress WHERE sequence > sealed_through")
        return size

    def segments(self) -> int:
        return len(self.rows("SELECT 1 FROM segments"))

    def is_collected(self) -> bool:
        sealed = "SELECT 1 FROM parts, progress WHERE sequence <= sealed_through"
        with closing(LogReader(self.index_folder)) as log:
            _, pruned_through = log.head()
        return not self.rows(sealed) and pruned_through == self.state().sealed_through

    @property
    def index_folder(self) -> IndexFolder:
        return DataFolder(self.settings.data).index(self.spec.id)

    def reading(self) -> closing[StateReader]:
        return closing(StateReader(Reader(self.index_folder.state)))


def settings_of(folder: Path) -> Settings:
    return Settings(
        data=folder / "data",
        seal_bytes=48 * 1024,
        seal_mutations=40,
        graph_rows_min=100,
        merge_idle_ms=300,
        seal_idle_ms=200,
        segments_max=2,
        grace_ms=200,
        sweep_ms=300,
        builder_threads=1,
    )


def copy_of(model: Model) -> Model:
    return Model(model.metric, dict(model.rows), dict(model.types))


def metadata_change(action: Action, property: str, json_type: MetadataType) -> Change:
    named = MetadataIndex(id=0, property=property, type=json_type)
    return Change(action=action, body=pack_json({"property": property}), rows=0, metadata_index=named)


@pytest.fixture
def dear_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are walked wherever there are any."""
    monkeypatch.setattr(planning, "SCAN_BYTES_FREE", 0)
    monkeypatch.setattr(planning, "EXPANSION_BYTES", 1)


@pytest.mark.usefixtures("dear_scans")
def test_every_answer_is_that_of_a_dictionary() -> None:
    profile = PROFILES[os.environ.get("HEADRACE_MODEL", "ci")]
    run_state_machine_as_test(
        IndexMachine,
        settings=hypothesis.settings(profile, deadline=None, suppress_health_check=list(HealthCheck)),
    )
