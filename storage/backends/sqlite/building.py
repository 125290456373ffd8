"""What a builder reads: one manifest, the rows of its tail, and its segments."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.log import LogReader
from storage.backends.sqlite.state import Manifest, StateReader
from storage.batch import unpack_vectors
from storage.errors import LogDamaged
from storage.records import IndexConfig, Label, Sequence
from storage.segment.read import OpenSegment, open_segment
from storage.snapshot import Mask, Part
from storage.tail import Tail

_START = Sequence(0)


class BuildSource:
    """One index at one moment, for a process that builds from it."""

    def __init__(self, folder: Path, config: IndexConfig) -> None:
        self._folder = IndexFolder(folder)
        self._config = config

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once: everything that is built is as of it.

        What is built lasts, and the log gives up what it came from, so every row of the state is compared first.
        """
        reader = StateReader(Reader(self._folder.state))
        try:
            return reader.verified_manifest()
        finally:
            reader.close()

    def tail(self, through: Sequence, *, after: Sequence = _START) -> tuple[Part, Mask]:
        """The rows of the tail after a sequence and up to another, and which of them are live."""
        wanted = [part for part in self.manifest.parts if after < part.sequence <= through]
        log = LogReader(self._folder)
        try:
            bodies = log.bodies([part.sequence for part in wanted])
        finally:
            log.close()
        tail = Tail(self._config.dimensions)
        for part in wanted:
            if part.sequence not in bodies:
                raise LogDamaged(f"the body of mutation {part.sequence} is not sealed and not in the log")
            tail.append(part.sequence, Label(part.first_label), unpack_vectors(bodies[part.sequence]))
        return tail.part(), self.live(tail.part())

    def segment(self, name: str) -> OpenSegment:
        """A segment of the manifest, every checksum compared. Raises SegmentDamaged."""
        [row] = [row for row in self.manifest.segments if row.name == name]
        return open_segment(self._folder.segments / name, self._config, checksum=row.checksum)

    def killed(self, inputs: tuple[str, ...]) -> tuple[tuple[Label, Sequence], ...]:
        """The dead rows of the segments that will be there beside the one that is built, and what killed them."""
        manifest = self.manifest
        last = max((row.last_label for row in manifest.segments if row.name not in inputs), default=0)
        pairs = zip(manifest.tombstones, manifest.killed_by, strict=True)
        return tuple((Label(label), sequence) for label, sequence in pairs if label <= last)

    def live(self, part: Part) -> Mask:
        """Which rows of a part are live."""
        dead = np.array(self.manifest.tombstones, dtype=np.uint64)
        mask: Mask = ~np.isin(part.labels, dead)
        return mask
