"""What is being built of an index, and how much of it can be built at once: a note in its folder.

The worker that holds the index writes it; services read it, to say so. It is no part of the index: without it nothing
is known and nothing is lost.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import orjson

FILE = "building.json"


@dataclass(slots=True)
class Note:
    """What the file says. Sizes are the bytes of the vectors that go into a build."""

    job: str = ""
    """What is being built; empty for nothing."""
    bytes: int = 0
    cut_off: int = 0
    """How often a build of this kind was begun, and nobody lived to see its end."""
    bytes_max: dict[str, int] = field(default_factory=dict)
    """What was learnt to be too much, halved, by the kind of the job."""
    bounded_s: float = 0.0
    """When that was, in seconds since 1970."""


def read_note(folder: Path) -> Note:
    """What is noted in the folder of an index; nothing where there is no file, or none of ours."""
    try:
        found = orjson.loads((folder / FILE).read_bytes())
        bytes_max = {str(job): int(most) for job, most in found["bytes_max"].items()}
        return Note(str(found["job"]), int(found["bytes"]), int(found["cut_off"]), bytes_max, float(found["bounded_s"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Note()


def write_note(folder: Path, note: Note) -> None:
    """Whole or not at all; where the disk is full or fails, not at all: no build is held up for a note of it."""
    file = folder / FILE
    with contextlib.suppress(OSError):
        if not note.job and not note.bytes_max:
            file.unlink(missing_ok=True)
            return
        draft = file.with_suffix(".tmp")
        draft.write_bytes(orjson.dumps(note))
        draft.replace(file)
