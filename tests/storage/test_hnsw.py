"""Graphs: they reach the recall they claim, lose nothing silently, and are given up when they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.errors import SegmentDamaged
from storage.indexes import flat
from storage.indexes.hnsw import (
    COUNTS,
    NO_TWINS,
    RECALLS,
    Expansions,
    Form,
    GraphDraft,
    HnswGraph,
    Precision,
    Space,
    Twins,
    build_graph,
    candidate_count,
    view_graph,
)
from storage.records import Metric
from storage.segment.audit import SIDE_TWINS, Audit, build_audited, find_lost
from storage.segment.recall import Subject

ROWS = 3_000
DIMENSIONS = 24
THREADS = 1  # Two builds with several threads differ; these tests say the same every time.


def clustered(rows: int = ROWS, dimensions: int = DIMENSIONS, *, seed: int = 1) -> np.ndarray:
    """Vectors around forty centres, of lengths from about 1 to about 12, away from the origin."""
    centres = np.random.default_rng(0).standard_normal((40, dimensions)) + 0.5
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, 40, rows)] + 0.4 * generator.standard_normal((rows, dimensions))
    return (vectors * generator.uniform(0.8, 2.0, (rows, 1))).astype(np.float32)


def subject_of(metric: Metric, vectors: np.ndarray) -> Subject:
    norms = flat.norms(vectors)
    labels = np.arange(1_000, 1_000 + 3 * len(vectors), 3, dtype=np.uint64)
    space = Space.of(metric, vectors, norms)
    twins = Twins.among(space, vectors)
    return Subject(space=space, twins=twins, labels=labels, vectors=vectors, norms=norms)


def audited(path: Path, subject: Subject) -> tuple[Audit | None, HnswGraph | None]:
    audit = build_audited(path, subject, recalls=RECALLS, threads=THREADS)
    if audit is None:
        return None, None
    graph = view_graph(
        path,
        subject.space,
        subject.labels,
        form=audit.form,
        twins=subject.twins,
        side=audit.side,
        companions=audit.companions,
        expansions=Expansions(audit.expansions, floor=audit.expansion_min),
    )
    return audit, graph


def answer(graph: HnswGraph, subject: Subject, query: np.ndarray, *, count: int, expansion: int) -> np.ndarray:
    """The scores of the best rows, as a search finds them: the graph's and the side list's, by exact score."""
    proposed = graph.search(query, count=candidate_count(count), expansion=expansion)
    rows = np.union1d(proposed, graph.side)
    return np.sort(ranks(subject, query, rows))[:count]


def ranks(subject: Subject, query: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    scores = flat.scores(subject.space.metric, subject.vectors[rows], query)
    return scores if subject.space.metric.lower_is_better else -scores


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("count", COUNTS)
def test_a_measured_expansion_reaches_its_recall_on_vectors_that_are_not_in_the_graph(tmp_path, metric, count):
    subject = subject_of(metric, clustered())
    _, graph = audited(tmp_path / "graph", subject)
    assert graph is not None
    expansion = graph.expansion(count=count, recall=0.99)
    queries = clustered(100, seed=2)

    shares = []
    for query in queries:
        right = np.sort(ranks(subject, query))[count - 1]
        found = answer(graph, subject, query, count=count, expansion=expansion)
        shares.append((found <= right).sum() / count)

    assert expansion > 0
    assert np.mean(shares) >= 0.98


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("kind", ["clustered", "random", "far from the origin"])
def test_every_vector_is_found_by_its_own_values(tmp_path, metric, kind):
    vectors = {
        "clustered": clustered(),
        "random": np.random.default_rng(3).standard_normal((ROWS, DIMENSIONS)).astype(np.float32),
        "far from the origin": clustered() + np.float32(500),
    }[kind]
    subject = subject_of(metric, vectors)

    audit, graph = audited(tmp_path / "graph", subject)

    assert audit is not None
    assert graph is not None
    assert len(audit.side) <= ROWS // 100
    asked = subject.space.stored(vectors)
    found = graph.walk(asked, count=10, expansion=audit.expansion_min, threads=THREADS)
    missed = np.flatnonzero(~(found == np.arange(ROWS)[:, np.newaxis]).any(axis=1))
    for row in missed.tolist():
        brought = graph.search(vectors[row], count=10, expansion=audit.expansion_min)
        assert row in brought or row in audit.side


@pytest.mark.parametrize("metric", Metric)
def test_duplicates_are_one_unit(tmp_path, metric):
    vectors = clustered()
    vectors[100:400] = vectors[7]
    subject = subject_of(metric, vectors)

    audit, graph = audited(tmp_path / "graph", subject)

    assert audit is not None
    assert graph is not None
    assert not {*range(100, 400)} & {*audit.side.tolist()}
    best = ranks(subject, vectors[7])[7]
    if metric is not Metric.DOT_PRODUCT:  # By inner product, others are nearer to it than it is itself.
        found = answer(graph, subject, vectors[7], count=100, expansion=audit.expansion_min)
        assert found.tolist() == [best] * 100


def test_zero_vectors_of_a_cosine_index_stand_on_the_side_list(tmp_path):
    vectors = clustered()
    vectors[::10] = 0
    subject = subject_of(Metric.COSINE, vectors)

    audit, graph = audited(tmp_path / "graph", subject)

    assert audit is not None
    assert graph is not None
    assert audit.side.tolist() == list(range(0, 10 * SIDE_TWINS, 10))
    query = -vectors[1:2].mean(axis=0)
    right = np.sort(ranks(subject, query))[9]
    found = answer(graph, subject, query, count=10, expansion=graph.expansion(count=10, recall=0.98))
    assert (found <= right).mean() >= 0.9


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.DOT_PRODUCT])
def test_zero_vectors_are_vectors_like_others(tmp_path, metric):
    vectors = clustered()
    vectors[::10] = 0

    audit, graph = audited(tmp_path / "graph", subject_of(metric, vectors))

    assert audit is not None
    assert graph is not None
    if metric is Metric.EUCLIDEAN:
        assert not graph.search(np.zeros(DIMENSIONS, np.float32), count=1, expansion=16)[0] % 10


@pytest.mark.parametrize("metric", Metric)
def test_all_vectors_alike_make_a_graph_or_none(tmp_path, metric):
    subject = subject_of(metric, np.full((500, DIMENSIONS), 3.0, np.float32))

    audit, graph = audited(tmp_path / "graph", subject)

    assert (audit is None) == (graph is None)
    if graph is not None:
        assert len(graph.search(subject.vectors[0], count=10, expansion=64)) == 10


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("scale", [3e37, 1e-37], ids=["huge", "tiny"])
def test_no_length_of_vectors_breaks_a_graph(tmp_path, metric, scale):
    vectors = (clustered() / np.float32(40) * np.float32(scale)).astype(np.float32)
    subject = subject_of(metric, vectors)

    audit, graph = audited(tmp_path / "graph", subject)

    assert audit is not None
    assert graph is not None
    assert 0.98 in audit.expansions[10]
    assert graph.search(vectors[5], count=30, expansion=64).size == 30


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_one_huge_vector_does_not_blur_the_others(tmp_path, metric):
    vectors = clustered()
    vectors[17] = 1e37

    audit, graph = audited(tmp_path / "graph", subject_of(metric, vectors))

    assert audit is not None
    assert graph is not None
    assert 0.98 in audit.expansions[10]
    assert graph.search(vectors[16], count=10, expansion=64)[0] == 16


def test_a_graph_that_loses_too_much_is_built_again_in_a_stronger_form(tmp_path):
    subject = subject_of(Metric.EUCLIDEAN, np.random.default_rng(1).standard_normal((ROWS, 64)).astype(np.float32))
    forms = (Form(connectivity=2), Form())

    audit = build_audited(tmp_path / "graph", subject, recalls=RECALLS, threads=THREADS, forms=forms)

    assert audit is not None
    assert audit.form == Form()


def test_where_every_form_loses_too_much_there_is_no_graph(tmp_path):
    subject = subject_of(Metric.EUCLIDEAN, np.random.default_rng(1).standard_normal((ROWS, 64)).astype(np.float32))

    audit = build_audited(tmp_path / "graph", subject, recalls=RECALLS, threads=THREADS, forms=(Form(connectivity=2),))

    assert audit is None
    assert not (tmp_path / "graph").exists()


def test_rows_that_a_graph_does_not_hold_are_found_to_be_lost(tmp_path):
    whole = subject_of(Metric.COSINE, clustered())
    kept = np.arange(ROWS) % 200 != 3
    build_graph(
        tmp_path / "graph",
        whole.space,
        whole.labels[kept],
        whole.vectors[kept],
        twins=NO_TWINS,
        form=Form(),
        threads=THREADS,
    )
    graph = view_graph(
        tmp_path / "graph",
        whole.space,
        whole.labels[kept],
        form=Form(),
        twins=NO_TWINS,
        side=np.zeros(0, np.int64),
        expansions=Expansions({}, floor=0),
    )
    graph._labels = whole.labels  # Its keys are a part of these.

    lost = find_lost(graph, whole, threads=THREADS)

    assert lost is not None
    assert {*np.flatnonzero(~kept).tolist()} <= {*lost.side.tolist(), *lost.companions.rows.tolist()}


def test_a_row_that_a_walk_loses_comes_along_with_its_neighbours(tmp_path):
    # given a graph without some rows, and what was found out about it
    whole = subject_of(Metric.COSINE, clustered())
    gone = np.flatnonzero(np.arange(ROWS) % 200 == 3)
    kept = np.ones(ROWS, dtype=np.bool_)
    kept[gone] = False
    draft = GraphDraft(whole.space, whole.labels, whole.vectors, form=Form(), threads=THREADS)
    draft.add(kept)
    lost = find_lost(draft.graph(NO_TWINS), whole, threads=THREADS)
    assert lost is not None

    # when the same graph is asked with what is known
    graph = draft.graph(NO_TWINS)
    graph._companions = lost.companions

    # then every such row is proposed for its own values, and once
    for row in gone.tolist():
        found = graph.search(whole.vectors[row], count=10, expansion=lost.expansion_min).tolist()
        assert found.count(row) == 1
        assert len(found) == len(set(found))


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("metric", Metric)
def test_another_graph_than_the_one_expected_is_refused(tmp_path, metric, precision):
    subject = subject_of(metric, clustered(200))
    build_graph(
        tmp_path / "graph",
        subject.space,
        subject.labels,
        subject.vectors,
        twins=NO_TWINS,
        form=Form(precision=precision),
        threads=THREADS,
    )
    other = Precision.F32 if precision is Precision.BF16 else Precision.BF16

    for labels, form in (
        (subject.labels[1:], Form(precision=precision)),
        (subject.labels, Form(precision=other)),
    ):
        with pytest.raises(SegmentDamaged, match="not"):
            view_graph(
                tmp_path / "graph",
                subject.space,
                labels,
                form=form,
                twins=NO_TWINS,
                side=np.zeros(0, np.int64),
                expansions=Expansions({}, floor=0),
            )


def test_a_missing_graph_is_refused(tmp_path):
    subject = subject_of(Metric.COSINE, clustered(10))

    with pytest.raises(SegmentDamaged, match="missing"):
        view_graph(
            tmp_path / "graph",
            subject.space,
            subject.labels,
            form=Form(),
            twins=NO_TWINS,
            side=np.zeros(0, np.int64),
            expansions=Expansions({}, floor=0),
        )


MEASURED = {10: {0.90: 16, 0.95: 32, 0.98: 64}, 100: {0.90: 128, 0.95: 192}}


@pytest.mark.parametrize(
    ("count", "recall", "expected"),
    [
        pytest.param(1, 0.98, 64, id="fewer answers than measured take the figure of ten"),
        pytest.param(10, 0.97, 64, id="a recall between two takes the higher"),
        pytest.param(10, 0.5, 24, id="below the lowest recall, the floor still holds"),
        pytest.param(10, 0.99, 0, id="a recall that was not reached has none"),
        pytest.param(10, 1.0, 0, id="exact is not for a graph"),
        pytest.param(55, 0.95, 112, id="between ten and a hundred it is interpolated"),
        pytest.param(100, 0.95, 192, id="a hundred as measured"),
        pytest.param(11, 0.98, 0, id="reached at ten but not at a hundred is not known between"),
        pytest.param(250, 0.95, 480, id="above a hundred it grows with the answers"),
    ],
)
def test_the_expansion_for_any_number_of_answers(count, recall, expected):
    assert Expansions(MEASURED, floor=24).at(count=count, recall=recall) == expected


def test_a_segment_too_small_for_a_hundred_answers_has_no_figure_for_them(tmp_path):
    audit, graph = audited(tmp_path / "graph", subject_of(Metric.COSINE, clustered(80)))

    assert audit is not None
    assert graph is not None
    assert graph.expansion(count=10, recall=0.98) > 0
    assert graph.expansion(count=50, recall=0.98) == 0


def test_a_search_for_more_rows_than_there_are_gives_each_at_most_once(tmp_path):
    _, graph = audited(tmp_path / "graph", subject_of(Metric.COSINE, clustered(80)))
    assert graph is not None

    rows = graph.search(clustered(1)[0], count=500, expansion=500)

    assert len({*rows.tolist()}) == len(rows) <= 80
    assert set(rows.tolist()) <= set(range(80))
