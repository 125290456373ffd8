"""What `scripts/torture` keeps of its trials, so that a run goes on where another ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.trials.report import Trial, Trials, ended_by


def trial(number: int, verdict: str = "kept") -> Trial:
    return Trial(number=number, promise="p", what="w", verdict=verdict, seconds=0.5, note="n")


def test_a_run_goes_on_where_another_ended(tmp_path: Path):
    path = tmp_path / "results" / "part-1.jsonl"
    first = Trials(path, None)
    first.note(trial(0))
    first.note(trial(2, "wrong"))
    again = Trials(path, None)
    assert again.wanted(range(4)) == again.missing(range(4)) == [1, 3]
    again.note(trial(1))
    assert again.result(range(3)) == [trial(0), trial(1), trial(2, "wrong")]
    assert again.result(range(1)) == [trial(0)]


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path):
    path = tmp_path / "part-1.jsonl"
    first = Trials(path, None)
    first.note(trial(0))
    first.note(trial(1))
    path.write_text(path.read_text()[:-20])
    assert Trials(path, None).missing(range(2)) == [1]


def test_what_could_not_be_run_is_told_and_tried_again(tmp_path: Path):
    path = tmp_path / "part-1.jsonl"
    first = Trials(path, None)
    first.note(trial(0, "not run"))
    assert first.result(range(1)) == [trial(0, "not run")]
    assert Trials(path, None).missing(range(1)) == [0]


def test_blocks_with_any_that_is_missing_are_done_whole(tmp_path: Path):
    done = Trials(tmp_path / "part-1.jsonl", None)
    for number in (0, 1, 2, 3):
        done.note(trial(number))
    assert list(done.blocks(8, 3)) == [range(3, 6), range(6, 8)]


def test_a_replay_takes_what_came_before_it_in_its_block_and_keeps_nothing(tmp_path: Path):
    path = tmp_path / "part-1.jsonl"
    Trials(path, None).note(trial(4))
    before = path.read_bytes()
    replay = Trials(path, 4)
    assert replay.wanted(range(3)) == [4]
    assert list(replay.blocks(3, 3)) == [range(3, 5)]
    replay.note(trial(4, "wrong"))
    assert replay.result(range(3)) == [trial(4, "wrong")]
    assert path.read_bytes() == before


def test_violations_are_told_at_once_and_so_is_all_that_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Trials(tmp_path / "part-1.jsonl", None)
    run.note(trial(0))
    run.note(trial(1, "wrong"))
    assert capsys.readouterr().err == "p, trial 1: wrong: w: n\n"
    Trials(tmp_path / "part-1.jsonl", 0).note(trial(0))
    assert capsys.readouterr().err == "p, trial 0: kept: w: n\n"


@pytest.mark.parametrize(("count", "blamed"), [(0, 7), (2, 9), (3, 9)], ids=["first", "under way", "all were done"])
def test_what_ends_a_session_is_blamed_on_the_trial_under_way_or_the_last(count: int, blamed: int):
    done = [trial(number) for number in range(7, 7 + count)]

    done.append(ended_by(ValueError("no"), range(7, 10), done, promise="p", seconds=10.0))

    assert [one.number for one in done] == list(range(7, blamed + 1))
    assert (done[-1].verdict, done[-1].seconds) == ("valueerror", 10.0 - 0.5 * (len(done) - 1))
