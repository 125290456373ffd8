"""Crash trials tell of every violation, whenever it is seen: none is lost because no kill waited for a verdict."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.trials import crash
from scripts.trials.crash_load import Line
from scripts.trials.promises import Broken

NOTHING = SimpleNamespace(
    line=Line(0), port=0, count=0, walks=0, done=0, failed=[], start=lambda *_: None, fallen=list, resume=lambda: None,
    pause=lambda: None, all=lambda _: None, running=lambda _: nullcontext(), go_on=lambda *_: None, close=lambda: None,
    call=lambda *_: None,
)  # fmt: skip
"""Stands for a crew, a load and everything else: nothing happens, and nothing is wrong."""


def breaks(*_: object) -> None:
    raise Broken("what is promised")


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch):
    for name in ("Crew", "running"):
        monkeypatch.setattr(crash, name, lambda *_, **__: nullcontext(NOTHING))
    for name in ("Api", "Load", "Checker", "Backups"):
        monkeypatch.setattr(crash, name, lambda *_, **__: NOTHING)
    for name in ("_at_the_end", "_after_supervised", "_inspect", "until"):
        monkeypatch.setattr(crash, name, lambda *_: None)
    monkeypatch.setattr(crash, "_kill", lambda *_: "nobody")
    monkeypatch.setattr(crash, "_kill_below", lambda *_: "nobody")
    monkeypatch.setattr(crash.time, "sleep", lambda _: None)


def verdicts(trials: list[crash.Trial]) -> dict[int, str]:
    return {one.number: one.verdict for one in trials}


@pytest.mark.parametrize("kills", [crash._kills, crash.supervised_kills])
def test_without_a_violation_every_kill_is_kept_once(tmp_path: Path, kills):
    found = list(kills(tmp_path, 1, list(range(20))))

    assert [one.number for one in found] == list(range(20))
    assert {one.verdict for one in found} == {"kept"}
    assert {one.what for one in found} == {"killed nobody"}


@pytest.mark.parametrize(
    ("kills", "end"), [(crash._kills, "_at_the_end"), (crash.supervised_kills, "_after_supervised")]
)
def test_what_breaks_at_the_very_end_is_blamed_on_the_last_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills, end: str
):
    monkeypatch.setattr(crash, end, breaks)

    found = verdicts(list(kills(tmp_path, 1, list(range(20)))))

    assert found == dict.fromkeys(range(19), "kept") | {19: "broken promise"}


def test_what_breaks_before_the_first_kill_ends_the_run_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(NOTHING, "start", breaks)

    found = verdicts(crash.run(3, 1, tmp_path, None))

    assert found == dict.fromkeys(range(3), "broken promise")


def test_what_breaks_right_after_a_comparison_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed: list[str] = []
    monkeypatch.setattr(crash, "_kill", lambda *_: killed.append("") or "nobody")
    monkeypatch.setattr(NOTHING, "fallen", lambda: ["worker"] if len(killed) == crash.CHECKED else [])

    [*before, last] = crash._kills(tmp_path, 1, list(range(20)))

    assert verdicts(before) == dict.fromkeys(range(crash.CHECKED), "kept")
    assert (last.number, last.verdict, last.what) == (crash.CHECKED, "broken promise", "before the kill")
