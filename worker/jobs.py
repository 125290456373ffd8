"""The builder: one job in a process of its own.

Usearch takes the interpreter's lock back after every vector, so beside a busy interpreter a build is tens of times
slower; and a build that crashes or is killed must not take the applying with it. A job reads what is committed, writes
one new folder or file, and says what it wrote. Nothing knows of it until the worker publishes it, so a crash anywhere
in here leaves a file that nobody names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from storage.backends.sqlite.inspection import Finding, Part
from storage.records import IndexConfig, IndexId, MetadataIndex, MetadataType, Metric, Sequence
from storage.segment.format import SegmentInfo

NO_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "can't start new thread")
"""What is in the last line of a builder that there was no memory for."""


class BuildFailed(Exception):
    """The builder ended without an answer; the message has what it printed last.

    `is_too_large` says that it was killed, or that it said it had no memory.
    """

    def __init__(self, message: str, *, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What the builder is told. `kind` is seal, merge, backfill, verify, compare or scrub.

    A seal reads the tail `after` a sequence (0: all of it) up to `through`; a merge reads `inputs`; a backfill writes
    `metadata_index` for the one segment in `inputs`; a verify re-reads the segments in `inputs` and compares every
    checksum; a compare reads all of the state; a scrub reads all of the index, no faster than `bytes_per_second`
    (0: as fast as it can). `threads` are those of a graph build, 0 for as many as there are cores; `share` builds at
    once have them between them.
    """

    kind: str
    index: IndexId
    folder: Path
    name: str
    config: IndexConfig
    after: Sequence = Sequence(0)
    through: Sequence = Sequence(0)
    inputs: tuple[str, ...] = ()
    metadata_index: MetadataIndex | None = None
    graph_rows_min: int
    threads: int
    share: int = 1
    bytes_per_second: int = 0

    def to_text(self) -> bytes:
        """The job as the builder reads it."""
        return orjson.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_text(cls, text: bytes) -> BuildJob:
        """Read a job back."""
        fields = orjson.loads(text)
        config, index = fields.pop("config"), fields.pop("metadata_index")
        return cls(
            **fields
            | {
                "folder": Path(fields["folder"]),
                "inputs": tuple(fields["inputs"]),
                "config": IndexConfig(**config | {"metric": Metric(config["metric"])}),
                "metadata_index": index and MetadataIndex(**index | {"type": MetadataType(index["type"])}),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildAnswer:
    """What the builder wrote. `segment` is None when no row was live, or when none was to be written."""

    segment: SegmentInfo | None = None
    column_file: str = ""
    column_checksum: str = ""
    findings: tuple[Finding, ...] = ()

    def to_text(self) -> bytes:
        """The answer as the worker reads it."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: bytes) -> BuildAnswer:
        """Read an answer back."""
        fields = orjson.loads(text)
        segment = fields["segment"]
        findings = tuple(
            Finding(**one | {"part": Part(one["part"]), "sequences": tuple(one["sequences"])})
            for one in fields["findings"]
        )
        return cls(**fields | {"segment": segment and SegmentInfo(**segment), "findings": findings})


async def run_builder(job: BuildJob) -> BuildAnswer:
    """Run one job to its end. Raises BuildFailed.

    The builder ends when its standard input does, so it never outlives a worker, however that died.
    """
    builder = await _start_builder(job)
    try:
        assert builder.stdin is not None
        assert builder.stdout is not None
        assert builder.stderr is not None
        builder.stdin.write(job.to_text() + b"\n")
        # To their ends: a builder whose answer does not fit the pipe waits for its reader.
        answer, errors = await asyncio.gather(builder.stdout.read(), builder.stderr.read())
        await builder.wait()
    finally:
        if builder.returncode is None:
            builder.kill()
            await builder.wait()
    if builder.returncode != 0:
        said = errors.decode(errors="replace").strip().splitlines()
        raise BuildFailed(
            f"{job.kind} of index {job.index} ended with {builder.returncode}: {said[-1:] or 'silently'}",
            is_too_large=builder.returncode == -signal.SIGKILL or any(sign in "".join(said[-1:]) for sign in NO_MEMORY),
        )
    return BuildAnswer.from_text(answer)


async def _start_builder(job: BuildJob) -> asyncio.subprocess.Process:
    root = str(Path(__file__).resolve().parents[1])
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "worker.builder",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Settings, and the token among them, are none of the builder's business.
            env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
            | {"PYTHONPATH": root},
        )
    except OSError as error:
        # No memory, processes or descriptors left for it: later there may be.
        raise BuildFailed(f"{job.kind} of index {job.index} could not be started: {error.strerror}") from error
