"""How much of an index can be built at once in the memory there is, learnt from builds that memory ended.

A builder that wants more than it may have is killed, and so may be the worker above it. The same build would be killed
again, for ever. So what is being built is noted in the folder of the index for as long as it is: a build that was
killed, or took its worker with it three times, is not tried again at that size but at half of it. What cannot be made
smaller is left as it is, which costs queries time and never an answer. After an hour the whole is tried again.
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from storage.backends.sqlite.builds import read_note, write_note

log = structlog.get_logger()

CUT_OFF_MAX = 3
"""How often a build may end with its worker before its size is taken for the reason: a worker may be killed for any."""
BYTES_MIN = 256 * 1024
"""A build of no more than this is never too large: whatever ended it will not be kinder to a smaller one."""
FORGET_S = 3600.0
"""How long a bound holds: memory that was short may be there again."""


class Fitting:
    """The note of one index, as the worker that holds it keeps it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._note = read_note(folder)

    def take_up(self) -> None:
        """Make sense of what the holder before left behind: a build that ended with it."""
        note = self._note = read_note(self._folder)
        if note.job and note.cut_off >= CUT_OFF_MAX:
            self.fail(f"it ended with its worker {note.cut_off} times")

    def bytes_max(self, job: str) -> float:
        """The most that should be built at once in a job of this kind."""
        note = self._note
        if note.bytes_max and not 0 <= time.time() - note.bounded_s <= FORGET_S:
            note.bytes_max.clear()
            write_note(self._folder, note)
        return note.bytes_max.get(job, float("inf"))

    def begin(self, job: str, size: int) -> None:
        """Note a build before it may take us with it."""
        note = self._note
        note.cut_off = note.cut_off + 1 if note.job == job else 1
        note.job, note.bytes = job, size
        write_note(self._folder, note)

    def end(self) -> None:
        """Note that no build is under way, and that we are alive."""
        self._note.job, self._note.cut_off = "", 0
        write_note(self._folder, self._note)

    def fail(self, reason: str) -> None:
        """Note that the build under way was too large."""
        note = self._note
        most = max(note.bytes // 2, BYTES_MIN)
        name = self._folder.name
        log.error("build.does_not_fit", index=name, job=note.job, bytes=note.bytes, bytes_max=most, reason=reason)
        note.bytes_max[note.job] = most
        note.bounded_s = time.time()
        self.end()
