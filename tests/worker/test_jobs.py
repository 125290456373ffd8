"""What passes between the worker and a builder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import worker.jobs
from storage.backends.sqlite.inspection import Finding, Part
from storage.records import IndexConfig, IndexId, Metric
from tests.conftest import WAIT_S
from worker.builder import FINDINGS_MAX
from worker.jobs import BuildAnswer, BuildJob, run_builder


def test_an_answer_is_read_back_as_it_was_given() -> None:
    finding = Finding(Part.DERIVED, "it is not there", (1, 2), "segment", is_certain=False, is_unbuilt=True)
    answer = BuildAnswer(column_file="a", column_checksum="b", findings=(finding,))

    assert BuildAnswer.from_text(answer.to_text()) == answer


async def test_an_answer_longer_than_a_pipe_holds_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrub of an index that is damaged all over finds as much as it may."""
    finding = Finding(Part.SEGMENT, "x" * 10_000, tuple(range(1_000))).shortened()
    answer = BuildAnswer(findings=(finding,) * FINDINGS_MAX)
    given = tmp_path / "answer"
    given.write_bytes(answer.to_text())

    async def answering(_: BuildJob) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec("cat", str(given), stdin=pipe, stdout=pipe, stderr=pipe)

    monkeypatch.setattr(worker.jobs, "_start_builder", answering)
    job = BuildJob(
        kind="scrub",
        index=IndexId("id"),
        folder=Path("folder"),
        name="",
        config=IndexConfig(dimensions=4, metric=Metric.COSINE),
        graph_rows_min=0,
        threads=1,
    )

    assert await asyncio.wait_for(run_builder(job), WAIT_S) == answer
