"""`python -m worker.builder`: read one job from standard input, do it, print the answer. See `worker.jobs`."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np

from storage.backends.sqlite.building import BuildSource
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.inspection import Finding, inspect_index, inspect_state_alone
from storage.records import Sequence
from storage.segment.format import Ranges, joined
from storage.segment.source import merge_source
from storage.segment.write import SegmentOptions, write_column, write_segment
from storage.snapshot import Mask, Part
from worker.jobs import BuildAnswer, BuildJob

FINDINGS_MAX = 100
NICENESS = 5
"""Queries and applying come first on a machine that is short of cores."""


def main() -> int:
    """Do the job; the exit code is 0 when an answer was printed."""
    job = BuildJob.from_text(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_worker, daemon=True).start()
    os.nice(NICENESS)
    sys.stdout.buffer.write(_do(job).to_text())
    sys.stdout.buffer.flush()
    return 0


def _end_with_worker() -> None:
    # The descriptor, not sys.stdin: an interpreter that ends while a thread holds that object's lock aborts.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _do(job: BuildJob) -> BuildAnswer:
    source = BuildSource(job.folder, job.config)  # Reads nothing yet.
    match job.kind:
        case "seal":
            return _seal(job, source)
        case "merge":
            return _merge(job, source)
        case "backfill":
            return _backfill(job, source)
        case "verify":
            # A segment that was replaced since has nothing left to prove; its successor is verified by itself.
            for name in {row.name for row in source.manifest.segments}.intersection(job.inputs):
                source.segment(name)
            return BuildAnswer()
        case "compare":
            return _found(inspect_state_alone(IndexFolder(job.folder)))
        case "scrub":
            return _found(inspect_index(IndexFolder(job.folder), bytes_per_second=job.bytes_per_second))
        case _:
            raise AssertionError(f"no such job: {job.kind}")


def _found(findings: tuple[Finding, ...]) -> BuildAnswer:
    return BuildAnswer(findings=tuple(finding.shortened() for finding in findings[:FINDINGS_MAX]))


def _seal(job: BuildJob, source: BuildSource) -> BuildAnswer:
    part, live = source.tail(job.through, after=job.after)
    first, last = max(source.manifest.state.sealed_through, job.after) + 1, job.through
    return _write(job, source, [(part, live)], ((first, last),))


def _merge(job: BuildJob, source: BuildSource) -> BuildAnswer:
    rows = [row for row in source.manifest.segments if row.name in job.inputs]
    assert len(rows) == len(job.inputs), "the worker publishes, so nothing it named can be gone"
    segments = [source.segment(row.name) for row in rows]
    parts: list[tuple[Part, Mask]] = [(segment, source.live(segment)) for segment in segments]
    return _write(job, source, parts, joined(one for part in segments for one in part.document.covered))


def _write(job: BuildJob, source: BuildSource, parts: list[tuple[Part, Mask]], ranges: Ranges) -> BuildAnswer:
    if not any(np.any(live) for _, live in parts):
        return BuildAnswer()
    options = SegmentOptions(
        metric=job.config.metric,
        dimensions=job.config.dimensions,
        graph_rows_min=job.graph_rows_min,
        threads=max(1, (job.threads or os.cpu_count() or 1) // job.share),
    )
    rows = merge_source(
        parts,
        first_sequence=Sequence(ranges[0][0]),
        last_sequence=Sequence(ranges[-1][1]),
        as_of=source.manifest.state.applied,
        metadata_indexes=source.manifest.metadata_indexes,
        killed=source.killed(job.inputs),
        ranges=ranges,
    )
    return BuildAnswer(segment=write_segment(job.folder / "segments", job.name, rows, options))


def _backfill(job: BuildJob, source: BuildSource) -> BuildAnswer:
    assert job.metadata_index is not None
    [name] = job.inputs
    written = write_column(job.folder / "segments" / name, source.segment(name), job.metadata_index)
    return BuildAnswer(column_file=written.file, column_checksum=written.checksum)


if __name__ == "__main__":
    sys.exit(main())
