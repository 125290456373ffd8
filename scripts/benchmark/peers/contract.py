"""What a peer must be able to do to be measured, and the few values that pass between it and the measuring.

A question goes in three steps, so that the clock runs over what a user would wait for and no more: `prepare` makes the
request out of numbers, `ask` is timed, `rows` reads the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""How many candidates a graph search keeps, the widely used `ef`: the first that reaches the recall asked is taken."""
M, EF_CONSTRUCTION = 16, 128
"""Of every graph, where they can be set."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """A data set on disk, as `scripts/benchmark/data.py` left it; of that module nothing is imported here."""

    folder: Path

    @cached_property
    def vectors(self) -> Floats:
        """float32[rows, dimensions], of length one."""
        return np.load(self.folder / "vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def queries(self) -> Floats:
        """float32[1000, dimensions], of length one."""
        return np.load(self.folder / "queries.npy")  # type: ignore[no-any-return]

    @cached_property
    def truth(self) -> NDArray[np.int32]:
        """The nearest rows of each query, best first."""
        return np.load(self.folder / "truth.npy")  # type: ignore[no-any-return]

    @cached_property
    def fields(self) -> dict[str, list[str]]:
        """The text of each metadata field for every row."""
        with np.load(self.folder / "metadata.npz") as stored:
            return {name: [str(value) for value in stored[name].tolist()] for name in stored.files}

    @cached_property
    def filters(self) -> dict[str, NDArray[Any]]:
        """`NAME_value` and `NAME_truth` of every filter."""
        with np.load(self.folder / "filters.npz") as stored:
            return {name: stored[name] for name in stored.files}

    @property
    def dimensions(self) -> int:
        """Of every vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def metadata(self, row: int) -> dict[str, str]:
        """What is stored beside one vector."""
        return {name: values[row] for name, values in self.fields.items()}

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """Slices that cover all rows in order."""
        for start in range(0, len(self), size):
            yield start, min(start + size, len(self))


@dataclass(frozen=True, slots=True)
class Where:
    """A filter: the field has this value."""

    field: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Seconds from the first write until every row was found by a search, and until the index was complete."""

    searchable_s: float
    indexed_s: float


class Session(Protocol):
    """One client: made, used and closed in one thread."""

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The request, as a user's program would hold it."""

    def ask(self, request: Any) -> Any:
        """Send it and wait for the whole answer."""

    def rows(self, answer: Any) -> list[int]:
        """The row numbers found, best first."""

    def close(self) -> None:
        """Leave."""


class Peer(Protocol):
    """One peer, on a folder of its own. After `create` and `load`, or after `open`, it answers."""

    note: str
    """How it is reached, and what else a reader must know to compare fairly."""
    settings: Mapping[str, object]
    """What was set; defaults are not listed."""
    efforts: tuple[int, ...]
    """To be tried in this order until the recall is reached; one alone where search is exact."""
    abilities: frozenset[str]
    """Which of "filters", "get", "scan", "write" and "raw" it has."""

    def create(self, data: Data) -> None:
        """Start, empty, in the folder."""

    def load(self, data: Data) -> Loaded:
        """Write all rows with their metadata, in the best way that its documentation names, and index them."""

    def open(self) -> None:
        """Start with what the folder holds."""

    def session(self, effort: int) -> Session:
        """A new client whose searches use this effort."""

    def close(self) -> None:
        """Stop, with everything on disk."""

    def processes(self) -> list[int]:
        """The ids of the processes that hold the index; none where that is our own."""

    def get(self, rows: list[int]) -> int:
        """Fetch these by id, with their values and metadata; how many came."""

    def scan(self) -> Iterator[int]:
        """List all ids a page at a time; how many each page has."""

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """Upsert one; on return it is accepted as durably as the peer accepts anything."""

    def raw(self, queries: Floats, effort: int, *, clients: int, seconds: float) -> tuple[list[float], float]:
        """Requests made beforehand, sent without its client library: latencies in ms, and the seconds they took."""


class Limited:
    """A peer in our own process; what it can do beyond searching it says and defines itself."""

    abilities: frozenset[str] = frozenset()

    def processes(self) -> list[int]:
        """None: the index is in our own process."""
        return []

    def get(self, rows: list[int]) -> int:
        """Never asked for."""
        raise NotImplementedError

    def scan(self) -> Iterator[int]:
        """Never asked for."""
        raise NotImplementedError

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """Never asked for."""
        raise NotImplementedError

    def raw(self, queries: Floats, effort: int, *, clients: int, seconds: float) -> tuple[list[float], float]:
        """Never asked for."""
        raise NotImplementedError
