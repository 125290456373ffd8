"""The masks of a snapshot are what `holds` says row by row, whatever columns its parts have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import masks
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, Or, Scalar, holds, path_of
from storage.masks import SELECTION_BYTES, Selection, filter_mask, matching, selections
from storage.records import (
    AccountId,
    IndexConfig,
    IndexId,
    IndexSpec,
    MetadataIndex,
    MetadataType,
    Metric,
    Sequence,
)
from storage.segment.columns import FactorColumn
from storage.snapshot import Column, LivePart, Mask, Snapshot

GENRE = MetadataIndex(id=1, property="genre", type=MetadataType.STRING)
YEAR = MetadataIndex(id=2, property="film.year", type=MetadataType.NUMBER)
INDEXES = (GENRE, YEAR)
RELAXED = FilterRules()
STRICT = FilterRules(string_bytes_max=64, arrays=False, unindexed=False)
SPEC = IndexSpec(
    id=IndexId("0" * 32),
    account=AccountId("a"),
    name="films",
    description="",
    config=IndexConfig(dimensions=1, metric=Metric.COSINE),
    created_us=0,
    modified_us=0,
)


@dataclass(frozen=True)
class Rows:
    """What masks need of a part: rows with namespaces and metadata, and columns for some of the indexes."""

    documents: list[dict[str, object]]
    namespaces: list[str]
    filled: tuple[MetadataIndex, ...]

    @property
    def rows(self) -> int:
        return len(self.documents)

    def namespace_mask(self, namespace: str) -> Mask:
        return np.array([one == namespace for one in self.namespaces], dtype=np.bool_)

    def column(self, index: MetadataIndex) -> Column | None:
        if index not in self.filled:
            return None
        return self.property_column(path_of(index.property)).bound(index.type)

    def property_column(self, path: tuple[str, ...]) -> FactorColumn:
        return FactorColumn.of(path, [orjson.dumps(one) for one in self.documents])


def snapshot_of(*parts: tuple[Rows, list[bool]]) -> Snapshot:
    live_parts = tuple(
        LivePart(part=part, live=np.array(live, dtype=np.bool_), live_count=sum(live))  # type: ignore[arg-type]
        for part, live in parts
    )
    return Snapshot(spec=SPEC, applied=Sequence(1), layout=1, parts=live_parts, metadata_indexes=INDEXES)


values = st.sampled_from(["drama", "noir", 1990, 2001.5, True, None, ["noir", 1990]])
documents = st.fixed_dictionaries(
    {}, optional={"genre": values, "film": st.fixed_dictionaries({}, optional={"year": values}), "other": values}
)
scalars = st.sampled_from(["drama", "noir", "", 1990, 2001.5, True, None])
paths = st.sampled_from([("genre",), ("film", "year"), ("other",)])
compares = st.one_of(
    st.builds(Compare, paths, st.sampled_from([Comparison.EQ, Comparison.NE]), scalars),
    st.builds(Compare, paths, st.sampled_from([Comparison.IN, Comparison.NIN]), st.lists(scalars).map(tuple)),
    st.builds(Compare, paths, st.sampled_from([Comparison.LT, Comparison.GTE]), st.sampled_from([1990, "noir"])),
    st.builds(Compare, paths, st.just(Comparison.EXISTS), st.booleans()),
)
trees: st.SearchStrategy[Filter] = st.recursive(
    compares,
    lambda child: (
        st.builds(And, st.lists(child, max_size=3).map(tuple))
        | st.builds(Or, st.lists(child, max_size=3).map(tuple))
        | st.builds(Not, child)
    ),
    max_leaves=6,
)


@given(
    rows=st.lists(documents, max_size=12),
    tree=trees,
    filled=st.sampled_from([(), (GENRE,), (YEAR,), INDEXES]),
    rules=st.sampled_from([RELAXED, STRICT]),
)
@settings(deadline=None, max_examples=400)
def test_a_filter_answers_as_holds_does_whether_or_not_its_columns_are_back_filled(
    rows: list[dict[str, object]], tree: Filter, filled: tuple[MetadataIndex, ...], rules: FilterRules
) -> None:
    part = Rows(rows, [""] * len(rows), filled)
    indexed = {path_of(index.property): index.type for index in INDEXES}

    mask = filter_mask(tree, part, rules, INDEXES)  # type: ignore[arg-type]

    assert mask.tolist() == [holds(tree, row, rules, indexed) for row in rows]


def test_without_namespace_and_filter_the_live_masks_themselves_are_the_answer() -> None:
    snapshot = snapshot_of((Rows([{}, {}], ["", "n"], ()), [True, False]))

    masks = matching(snapshot, "", None, RELAXED)

    assert masks[0] is snapshot.parts[0].live


def test_what_matches_is_live_and_in_the_namespace_and_satisfies_the_filter() -> None:
    noir: dict[str, object] = {"genre": "noir"}
    first = Rows([noir, noir, noir, {}], ["n", "n", "", "n"], (GENRE,)), [True, False, True, True]
    second = Rows([noir, noir], ["m", "n"], ()), [True, True]
    snapshot = snapshot_of(first, second)
    tree = Compare(("genre",), Comparison.EQ, "noir")

    def found(namespace: str, wanted: Filter | None) -> list[list[bool]]:
        return [mask.tolist() for mask in matching(snapshot, namespace, wanted, RELAXED)]

    assert found("n", tree) == [[True, False, False, False], [False, True]]
    assert found("n", None) == [[True, False, False, True], [False, True]]
    assert found("", tree) == [[True, False, True, False], [True, True]]
    assert found("unknown", tree) == [[False] * 4, [False] * 2]


def test_asking_leaves_the_live_masks_as_they_were() -> None:
    snapshot = snapshot_of((Rows([{}, {}], ["", "n"], ()), [True, True]))

    matching(snapshot, "n", Compare(("genre",), Comparison.EQ, "noir"), RELAXED)

    assert snapshot.parts[0].live.tolist() == [True, True]


@pytest.mark.parametrize("tree", [And(()), Or(()), Not(And(()))], ids=["and", "or", "not"])
def test_a_tree_without_comparisons_has_a_mask_of_every_row(tree: Filter) -> None:
    part = Rows([{}, {}, {}], ["", "", ""], ())

    mask = filter_mask(tree, part, STRICT, ())  # type: ignore[arg-type]

    assert mask.tolist() == [holds(tree, {}, STRICT, {})] * 3


@pytest.mark.parametrize("few", [0, 1, 3, 4, 200], ids=str)
def test_a_selection_is_the_same_as_a_mask_and_as_numbers(few: int) -> None:
    mask = np.zeros(200, dtype=np.bool_)
    mask[np.random.default_rng(1).permutation(200)[:few]] = True

    selection = Selection.from_mask(mask)

    assert selection.count == few
    assert selection.mask.tolist() == mask.tolist()
    assert selection.rows.tolist() == np.flatnonzero(mask).tolist()


def test_a_filter_asked_again_is_answered_from_memory_and_told_from_its_likes() -> None:
    # given values that are equal to Python and not to a filter
    rows: list[dict[str, object]] = [{"seen": True}, {"seen": 1}, {"seen": "1"}]
    snapshot = snapshot_of((Rows(rows, ["", "n", ""], ()), [True, True, True]))
    known = selections(snapshot)

    def found(operand: Scalar, namespace: str = "", rules: FilterRules = RELAXED) -> list[int]:
        tree = Or((Compare(("seen",), Comparison.IN, (operand,)), Not(And(()))))
        answer = known.of(snapshot, namespace, tree, rules)
        assert known.knows(namespace, tree, rules)
        assert known.of(snapshot, namespace, tree, rules) is answer
        return answer[0].rows.tolist()

    assert not known.knows("", None, RELAXED)
    assert [found(True), found(1), found("1")] == [[0], [1], [2]]
    assert found(1, namespace="other") == []
    assert found("1", rules=STRICT) == []
    assert selections(snapshot) is known


def test_what_was_not_asked_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # given room for three answers
    monkeypatch.setattr(masks, "SELECTIONS_BYTES_MAX", 3 * SELECTION_BYTES + 1000)
    snapshot = snapshot_of((Rows([{}, {}], ["", "n"], ()), [True, True]))
    known = selections(snapshot)

    for namespace in ("a", "b", "c", "a", "d"):
        known.of(snapshot, namespace, None, RELAXED)

    assert [one for one in "abcd" if known.knows(one, None, RELAXED)] == ["a", "c", "d"]
