"""The arithmetic that every recall of the benchmark rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from scripts.benchmark import data
from scripts.benchmark.data import DataSet, data_set, recall

ROWS = 300


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "FOLDER", tmp_path_factory.mktemp("data"))
        made = data_set("syn768", ROWS)
        made.vectors  # noqa: B018 (kept from here on)
        return made


def test_recall_is_the_share_of_the_nearest_that_was_found() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])

    assert recall([[1, 2], [5, 6]], truth, count=2) == 1.0
    assert recall([[2, 9], [9, 10]], truth, count=2) == 0.25
    assert recall([[3, 4], [7, 8]], truth, count=2) == 0.0


def test_recall_counts_no_rows_where_none_are_to_be_found() -> None:
    truth = np.array([[1, -1, -1], [-1, -1, -1]])

    assert recall([[1], [7]], truth, count=3) == 1.0


def test_the_truth_is_what_an_exact_search_finds(small: DataSet) -> None:
    scores = small.queries @ small.vectors.T

    best = np.take_along_axis(scores, small.truth.astype(np.int64), axis=1)

    assert small.truth.shape == (1_000, 100)
    assert (np.diff(best, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(best, -np.sort(-scores, axis=1)[:, :100], atol=1e-6)


def test_the_truth_of_a_filter_is_among_the_rows_it_lets_through(small: DataSet) -> None:
    for case in small.filters.values():
        column = small.fields[case.field]
        for value, rows in zip(case.values, case.truth, strict=True):
            found = rows[rows >= 0]
            assert (column[found] == value).all()
            assert len(found) == min(10, int((column == value).sum()))


def test_a_set_is_the_same_whenever_it_is_made(small: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FOLDER", tmp_path)

    again = data_set("syn768", ROWS)

    assert np.array_equal(again.vectors, small.vectors)
    assert np.array_equal(again.queries, small.queries)
    assert not (small.vectors @ small.queries.T > 0.9999).any()


def test_the_body_of_an_upsert_holds_the_very_numbers(small: DataSet) -> None:
    lines = small.ndjson(3, 5).splitlines()

    records = [orjson.loads(line) for line in lines]

    assert [record["id"] for record in records] == ["3", "4"]
    assert np.array_equal(np.array(records[1]["values"], dtype=np.float32), small.vectors[4])
    assert records[0]["metadata"] == small.metadata(3)
