"""What both ends of a transfer have to be able to do: an index on a server and a file of NDJSON are the two kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.commands.transfer_journal import Journal, Progress

Told = Callable[[int, int], None]
"""Hears how much is counted, of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a target has to be made like. An empty metric is one that the source does not tell."""

    dimensions: int
    metric: str = ""
    text: str = ""
    metadata_indexes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Vectors that go over together, a line each with its end, and where the source goes on after them."""

    lines: tuple[bytes, ...]
    gone: int
    position: int


class Source(Protocol):
    """Where vectors come from."""

    shown: str
    identity: str
    """What tells it from every other, so that a break is not mended with something else."""

    async def describe(self) -> Description:
        """What it is. Raises CommandFailed when it is not there."""
        ...

    async def count(self, progress: Progress, journal: Journal, told: Told, /) -> None:
        """Make sure that `progress.total` is known and `pieces` can begin."""
        ...

    def pieces(self, progress: Progress, journal: Journal, /) -> AsyncIterator[Piece]:
        """Everything from `progress.position` on."""
        ...


class Target(Protocol):
    """Where vectors go."""

    shown: str
    identity: str
    """What tells it from every other, so that a break is not mended with something else."""

    async def prepare(self, wanted: Description, progress: Progress, /) -> None:
        """Be ready for vectors of this description. Raises CommandFailed when that cannot be."""
        ...

    async def put(self, lines: Sequence[bytes], mark: str) -> str:
        """Keep vectors, durably; the mark after them."""
        ...

    async def settle(self, mark: str) -> int:
        """Finish; how many vectors there are."""
        ...
