"""Builds that memory ends: what is noted, what is tried next, and that the index works meanwhile."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from storage.backends.sqlite.builds import FILE, read_note
from storage.records import Sequence
from storage.settings import Settings
from tests.conftest import batch, running_on, until
from worker import jobs
from worker.fitting import CUT_OFF_MAX, FORGET_S, Fitting
from worker.policy import Bounds, Merge, Seal, SegmentFacts, TailFacts, bytes_of, due

SETTINGS = Settings()
TAIL = TailFacts(
    through=Sequence(9), mutations=9, parts=[(Sequence(2), 6 << 20), (Sequence(4), 3 << 20), (Sequence(6), 2 << 20)]
)


@pytest.fixture(autouse=True)
def any_size_may_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.fitting.BYTES_MIN", 1)


def segment(name: str, rows: int, dead: int = 0) -> SegmentFacts:
    return SegmentFacts(name=name, rows=rows, dead=dead, columns=frozenset())


@pytest.mark.parametrize(
    ("seal", "through"),
    [(float("inf"), 9), (11 << 20, 9), (10 << 20, 4), (7 << 20, 2), (1, 2)],
    ids=["without a bound", "all fits", "two fit", "one fits", "none fits and one is tried"],
)
def test_a_tail_is_sealed_as_far_as_it_fits(seal, through):
    bounds = Bounds(row_bytes=4, seal=seal)
    job = due(TAIL, [segment(str(n), 1) for n in range(4)], [], idle_ms=0, settings=SETTINGS, bounds=bounds)
    assert job == Seal(Sequence(through))


@pytest.mark.parametrize(
    ("merge", "inputs"),
    [(float("inf"), ("a", "b", "c")), (1000, ("a", "b", "c")), (699, ("a", "c")), (259, None), (50, None)],
    ids=["without a bound", "all fit", "the two smallest fit", "one fits", "none fits"],
)
def test_segments_are_merged_as_many_as_fit(merge, inputs):
    segments = [segment("a", 100), segment("b", 300, 30), segment("c", 30)]
    bounds = Bounds(row_bytes=2, merge=merge)
    tail = TailFacts(through=Sequence(9), mutations=0, parts=[])
    job = due(tail, segments, [], idle_ms=10**9, settings=SETTINGS, bounds=bounds)
    assert job == (inputs and Merge(inputs))
    if job:
        assert bytes_of(job, tail, segments, bounds) <= merge


def test_a_rewrite_that_does_not_fit_does_not_hold_up_a_merge_that_does():
    segments = [segment("a", 1000, 900), segment("b", 10), segment("c", 10)]
    tail = TailFacts(through=Sequence(9), mutations=0, parts=[])
    bounds = Bounds(row_bytes=1, merge=50)
    assert due(tail, segments, [], idle_ms=10**9, settings=SETTINGS, bounds=bounds) == Merge(("b", "c"))


def test_a_build_that_was_too_much_is_halved_until_it_is_forgotten(tmp_path, monkeypatch):
    fitting = Fitting(tmp_path)
    fitting.begin("merge", 1000)
    fitting.fail("killed")
    fitting.end()
    assert (fitting.bytes_max("merge"), fitting.bytes_max("seal")) == (500, float("inf"))
    assert read_note(tmp_path).bytes_max == {"merge": 500}
    monkeypatch.setattr("worker.fitting.FORGET_S", -1.0)
    assert fitting.bytes_max("merge") == float("inf")
    assert not (tmp_path / FILE).exists()
    assert FORGET_S > 0


def test_what_is_small_is_never_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.fitting.BYTES_MIN", 2000)
    fitting = Fitting(tmp_path)
    fitting.begin("merge", 1000)
    fitting.fail("killed")
    assert fitting.bytes_max("merge") == 2000


def test_a_build_that_ended_with_its_worker_is_too_much_after_some_times(tmp_path):
    for _ in range(CUT_OFF_MAX):
        fitting = Fitting(tmp_path)
        fitting.take_up()
        assert fitting.bytes_max("seal") == float("inf")
        fitting.begin("seal", 1000)
    fitting = Fitting(tmp_path)
    fitting.take_up()
    assert fitting.bytes_max("seal") == 500


def test_a_worker_that_ended_for_another_reason_has_no_consequence(tmp_path):
    for _ in range(2 * CUT_OFF_MAX):
        fitting = Fitting(tmp_path)
        fitting.take_up()
        fitting.begin("seal", 1000)
        fitting.end()
    assert fitting.bytes_max("seal") == float("inf")
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"job":1}', b'{"bytes_max":{"merge":"x"}}'])
def test_a_note_that_is_none_of_ours_says_nothing(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read_note(tmp_path).bytes_max == {}


STINGY = """
import io, json, os, runpy, signal, sys, types

line = sys.stdin.buffer.readline()
if json.loads(line)["kind"] == "seal" and json.loads(line)["through"] > 30:
    {ends}
sys.stdin = types.SimpleNamespace(buffer=io.BytesIO(line))
runpy.run_module("worker.builder", run_name="__main__")
"""


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), signal.SIGKILL)", "raise MemoryError"], ids=["killed", "said"])
async def test_a_seal_that_does_not_fit_goes_on_in_pieces(small, tmp_path, monkeypatch, ends):
    """The builder stands for a machine that has memory for thirty mutations at a time."""
    stingy = tmp_path / "stingy.py"
    stingy.write_text(STINGY.format(ends=ends))
    real = jobs.asyncio.create_subprocess_exec

    async def instead(executable, *arguments, **named):
        return await real(sys.executable, "-P", str(stingy), **named)

    monkeypatch.setattr(jobs.asyncio, "create_subprocess_exec", instead)
    monkeypatch.setattr("worker.tending.BUILD_RETRY_S", 0.05)
    with capture_logs() as events:
        async with running_on(replace(small, seal_bytes=1 << 30, merge_idle_ms=1 << 30)) as one:
            spec = await one.index()
            for number in range(50):
                last = await one.upsert(spec, batch([f"v{number}"], np.ones((1, 4))))
            await one.applied(spec, last)
            await until(lambda: any(event["event"] == "build.published" for event in events))
            trouble = await one.store.trouble(spec)
            assert list(trouble.bounded_builds) == ["seal"]
            assert len([one for one in await one.store.records(spec, ["v0", "v49"]) if one]) == 2
    assert [event for event in events if event["event"] == "build.does_not_fit"]
