"""Tables, verdicts and the page, from measurements that were made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.benchmark import report
from scripts.benchmark.journal import Journal
from scripts.benchmark.results import Measurement, from_dicts
from scripts.benchmark.tables import target_table
from scripts.benchmark.targets import Findings, Verdict, problems, verdicts

ROWS = 1_000
OURS = Measurement(
    subject="headrace",
    set="glove",
    rows=ROWS,
    what="query",
    value=2_000,
    unit="/s",
    low=1_900,
    high=2_100,
    recall=0.953,
    clients=8,
    p50_ms=1.0,
    p99_ms=2.0,
    settings={"level": 0.95, "recall": 0.95, "answer": "ids and metadata"},
)
BARE = replace(
    OURS,
    subject="limit: bare read path",
    value=2_500,
    recall=0.951,
    settings={"level": 0.95, "match": "level", "expansion": 64},
)
CHROMA = replace(OURS, subject="chroma", what="query.raw", value=250, recall=0.96, settings={"effort": 96})
POOR = replace(CHROMA, value=900, recall=0.90)
FILTERED = replace(
    OURS,
    what="filtered",
    filter="random 1 %",
    recall=0.995,
    clients=1,
    settings={"recall": "default", "to unfiltered": 1.2},
)


def judged(*measurements: Measurement) -> dict[str, Verdict]:
    return {one.case: one for one in verdicts(Findings(measurements, ROWS)) if one.asked != "compare"}


def test_nothing_measured_is_judged_by_nothing() -> None:
    assert {one.met for one in judged().values()} == {None}
    assert {one.target[0] for one in verdicts(Findings([], ROWS))} == set("1234567")


@pytest.mark.parametrize(("value", "met"), [(2_500, True), (3_000, False)], ids=["near the limit", "far below it"])
def test_the_bare_path_is_compared_at_the_same_recall(value: float, met: bool) -> None:
    found = judged(OURS, replace(BARE, value=value))["glove, 8 clients, to the bare read path"]

    assert found.met is met
    assert "recall 0.953 to 0.951" in found.found


def test_where_we_find_more_the_bare_path_is_judged_at_our_recall_and_shown_at_its_own() -> None:
    better = replace(OURS, recall=0.99)
    equal = replace(BARE, value=2_100, recall=0.988, settings={**BARE.settings, "match": "equal"})

    found = [
        one
        for one in verdicts(Findings([better, replace(BARE, value=9_000), equal], ROWS))
        if one.found != "not measured"
    ]
    bare = [one for one in found if "bare read path" in one.case]

    assert [one.met for one in bare] == [True, None]


def test_a_peer_counts_only_at_the_recall_that_is_compared() -> None:
    found = judged(OURS, CHROMA, POOR)["glove, 8 clients, to chroma"]

    assert found.met is True
    assert found.found.startswith("8.00x")


def test_measurements_of_another_size_are_not_mixed_in() -> None:
    assert judged(OURS, replace(CHROMA, rows=ROWS * 10))["glove, 8 clients, to chroma"].met is None


def test_the_worst_filter_decides() -> None:
    worse = replace(FILTERED, filter="near 1 %", recall=0.9, settings={"recall": "default", "to unfiltered": 0.5})

    found = judged(FILTERED, worse)

    assert found["glove, 12 filters"].met is False
    assert found["glove, 1 %, to our unfiltered rate"].found.startswith("0.50x")


@pytest.mark.parametrize(("p50_ms", "met"), [(2.9, True), (3.1, False)], ids=["below three times", "above it"])
def test_growth_is_judged_from_the_fewest_vectors_to_the_most(p50_ms: float, met: bool) -> None:
    few = replace(OURS, what="growth.query", rows=10_000, clients=1, p50_ms=1.0)
    between = replace(few, rows=100_000, p50_ms=9.0)
    many = replace(few, rows=1_000_000, p50_ms=p50_ms)

    assert judged(few, between, many)["query p50 with 1 client, of 1,000,000 to 10,000"].met is met


def test_hashing_is_not_counted_as_starting() -> None:
    grown = replace(OURS, what="growth.query", rows=1_000_000, clients=1)
    start = replace(grown, what="growth.start", value=4.0, unit="s")

    found = judged(grown, start, replace(start, what="growth.hashing", value=1.5))

    assert found["start to the first answer with 1,000,000, without hashing"].found == "2.50 s"


def test_small_indexes_are_judged_where_there_are_most_of_them() -> None:
    few = replace(OURS, set="50 indexes", rows=100, what="visible, random indexes, get_by_ids", p50_ms=1.0, p99_ms=2.0)
    many = replace(few, set="5000 indexes", p50_ms=11.0, p99_ms=49.0)
    idle = replace(many, what="idle descriptors, worker", value=999, unit="")

    found = judged(few, many, idle)

    assert found["5000 indexes, write to any, p50 by get_by_ids"].met is False
    assert found["5000 indexes, write to any, p99 by get_by_ids"].met is True
    assert found["5000 indexes, idle, descriptors of the worker"].met is True


def test_too_little_recall_is_a_problem_and_slowness_is_none() -> None:
    slow = replace(OURS, value=1.0, p99_ms=1_000.0)
    wrong = replace(OURS, recall=0.90)

    assert problems([slow, FILTERED, POOR], rows=ROWS) == []
    assert len(problems([wrong], rows=ROWS)) == 1


def test_a_peer_that_broke_off_is_a_problem_and_one_that_is_missing_is_none() -> None:
    missing = replace(CHROMA, what="missing", note="not installed")
    failed = replace(CHROMA, what="failed", note="visible: no such collection")

    assert problems([missing, failed], rows=ROWS) == ["glove chroma: visible: no such collection"]


def test_a_part_measured_again_takes_the_place_of_its_older_self(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out" / "results.json")
    journal.add("query", "glove", ROWS, [OURS, BARE])
    journal.add("filtered", "glove", ROWS, [FILTERED])
    journal.add("query", "glove", ROWS, [replace(OURS, value=1.0)])

    again = Journal(journal.path)

    assert sorted(one.value for one in again.measurements) == [1.0, FILTERED.value]
    assert again.machine["cores"] >= 1


def test_a_measurement_survives_json() -> None:
    assert from_dicts([OURS.as_dict()]) == [OURS]
    assert from_dicts([replace(OURS, unit="").as_dict()]) == [replace(OURS, unit="")]


def test_the_report_shows_every_subject_and_escapes_what_peers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "results.json")
    journal.add("query", "glove", ROWS, [OURS, BARE, replace(CHROMA, note="<b>over HTTP & slow</b>")])

    report.write(journal, tmp_path, rows=ROWS, plots=False)

    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;over HTTP &amp; slow" in page
    assert "limit: bare read path" in page
    shown = capsys.readouterr().out
    assert "chroma" in shown
    assert shown.index("Targets") > shown.index("queries")


def test_growth_has_a_line_for_each_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = replace(OURS, what="growth.query", rows=10_000, clients=1, settings={"expansion": 96})
    journal = Journal(tmp_path / "results.json")
    journal.add("growth", "", 0, [few, replace(few, rows=1_000_000, p50_ms=2.5)])

    report.write(journal, tmp_path, rows=ROWS, plots=False)

    shown = capsys.readouterr().out
    assert "glove: growth" in shown
    assert "1,000,000" in shown


def test_the_table_for_the_readme_has_a_line_for_each_subject() -> None:
    journal = Journal(Path("nowhere.json"))
    journal.parts = [{"measurements": [OURS.as_dict(), CHROMA.as_dict()]}]

    lines = report.markdown(journal, rows=ROWS).splitlines()

    assert sum(line.startswith("| headrace |") for line in lines) == 1
    assert sum(line.startswith("| chroma |") for line in lines) == 1


def test_the_table_for_the_readme_sets_the_bare_paths_in_one_line_and_names_the_versions_of_peers() -> None:
    ingest = replace(BARE, subject="limit: bare ingest", what="load.acknowledged", clients=1, value=30_000)
    chroma = replace(CHROMA, settings={"effort": 96, "version": "chromadb 1.2.3"})
    journal = Journal(Path("nowhere.json"))
    journal.parts = [{"measurements": [one.as_dict() for one in (OURS, BARE, ingest, chroma)]}]

    shown = report.markdown(journal, rows=ROWS)

    [line] = [line for line in shown.splitlines() if line.startswith("| bare paths")]
    assert "2,500 (1.00 / 2.00)" in line
    assert "30,000" in line
    assert "Peers: chromadb 1.2.3." in shown


def test_what_is_shown_of_a_filter_is_the_fastest_that_finds_enough() -> None:
    poor = replace(CHROMA, what="filtered", filter="random 1 %", clients=1, recall=0.7, value=900)
    raised = replace(poor, what="filtered.raised", recall=0.993, value=70)
    journal = Journal(Path("nowhere.json"))
    journal.parts = [{"measurements": [one.as_dict() for one in (CHROMA, poor, raised)]}]

    assert "| 70 @ 0.99 |" in report.markdown(journal, rows=ROWS)


def test_targets_in_short_count_what_is_met_and_name_the_worst() -> None:
    near = Verdict("1 query", "one", "at least 2x", "3x", True, 1.5)
    far = Verdict("1 query", "other", "at least 2x", "1x", False, 0.5)
    unknown = Verdict("1 query", "third", "at least 2x", "not measured", None)

    assert target_table([near, far, unknown]).rows == [("1 query", "at least 2x", "1x: other", "1 of 2")]
