"""One process's open, read-only view of an index at a sequence.

A snapshot is immutable and holds everything it names: files that are unlinked later stay readable through it. It is
made of parts; a part is a segment or the tail, and search knows them only by the promises written here.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.filters import Compare, FilterRules
from storage.indexes.codes import Codes
from storage.indexes.flat import Gathered
from storage.records import IndexSpec, MetadataIndex, Record, Sequence

Mask = NDArray[np.bool_]


class Column(Protocol):
    """The values of one property in one part."""

    def mask(self, compare: Compare, rules: FilterRules) -> Mask:
        """Say for every row of the part whether `compare` holds, exactly as `storage.filters.holds` does."""


class Graph(Protocol):
    """An approximate search of one part, with what is known of its quality."""

    def expansion(self, *, count: int, recall: float) -> int:
        """The smallest expansion measured to reach `recall` at `count` answers, or 0 where none was."""

    def search(self, query: NDArray[np.float32], *, count: int, expansion: int, best: int = 0) -> NDArray[np.int64]:
        """Rows of the `count` nearest that the walk found, best first, without repeats; may be fewer.

        With `best`, rows that are certainly not among so many best of all rows may be left out.
        """


class Part(Protocol):
    """Rows that are searched together. Rows are numbered from 0; labels ascend with them."""

    @property
    def name(self) -> str:
        """The segment's name, or "tail"."""

    @property
    def rows(self) -> int:
        """How many rows there are, dead ones included."""

    @property
    def labels(self) -> NDArray[np.uint64]:
        """uint64[rows], ascending."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """float32[rows, dimensions], the values as they were given."""

    @property
    def norms(self) -> NDArray[np.float64]:
        """float64[rows], the Euclidean length of each vector."""

    @property
    def codes(self) -> Codes | None:
        """The vectors in a byte for each number, where the part has them."""

    @property
    def graph(self) -> Graph | None:
        """The graph, where the part has one."""

    @property
    def side(self) -> Gathered:
        """Rows the graph cannot find by their own values; every search of it scans them exactly."""

    def id_of(self, row: int) -> str:
        """The id of one row."""

    def ids_of(self, rows: Rows[int]) -> list[str]:
        """The ids of some rows."""

    def namespace_of(self, row: int) -> str:
        """The namespace of one row; empty when it has none."""

    def record(self, row: int) -> Record:
        """One row as it is answered."""

    def metadata(self, row: int) -> bytes:
        """The metadata of one row: JSON text, empty when it has none."""

    def namespace_mask(self, namespace: str) -> Mask:
        """Which rows are in this namespace."""

    def column(self, index: MetadataIndex) -> Column | None:
        """The column of a metadata index, or None while it is not back-filled."""

    def property_column(self, path: tuple[str, ...]) -> Column:
        """Any property, read from the metadata itself: slower than `column`, never different."""


@dataclass(frozen=True, slots=True)
class LivePart:
    """A part and which of its rows are live in this snapshot."""

    part: Part
    live: Mask
    live_count: int


@dataclass(frozen=True)
class Snapshot:
    """An index as of `applied`. `layout` is the number of the manifest it was opened from."""

    spec: IndexSpec
    applied: Sequence
    layout: int
    parts: tuple[LivePart, ...]
    metadata_indexes: tuple[MetadataIndex, ...]

    @cached_property
    def vectors(self) -> int:
        """How many live vectors there are."""
        return sum(part.live_count for part in self.parts)

    @cached_property
    def prepared(self) -> dict[tuple[int, float], Any]:
        """What `storage.search` remembers: the plans of queries without a filter, by hits and recall wanted."""
        return {}

    @cached_property
    def selections(self) -> dict[str, Any]:
        """Where `storage.masks` keeps what filters selected."""
        return {}

    def find(self, label: int) -> tuple[Part, int] | None:
        """The part and row where the version with this label lies, live or not; None when it is not in here."""
        for live_part in self.parts:
            labels = live_part.part.labels
            row = int(np.searchsorted(labels, np.uint64(label)))
            if row < len(labels) and int(labels[row]) == label:
                return live_part.part, row
        return None


def rows_of(mask: Mask) -> Rows[int]:
    """The numbers of the rows that a mask selects."""
    return np.flatnonzero(mask).tolist()
