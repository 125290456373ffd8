"""What a segment is made from: rows as columns, with the vectors coming a block at a time.

`merge_source` makes one from the live rows of several parts, so a merge holds one block of vectors in memory,
however large the segments are, and reads ids and metadata as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from storage.records import Label, MetadataIndex, Sequence
from storage.segment.format import Ranges
from storage.snapshot import Mask, Part

BLOCK_BYTES = 8 * 1024 * 1024
"""The float32 bytes of one block of a merge."""

_ITERATED_ROWS = 1 << 16  # Places that are Python numbers at a time.

Floats = NDArray[np.float32]
Text = TypeVar("Text")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSource:
    """The rows of a segment to be, at least one, in order of label.

    `vectors` yields float32 blocks, as many rows in all as there are labels, and is read once. The other
    columns may be lazy and are read from front to back. Sequences from `first_sequence` to `last_sequence`
    are the mutations the rows come from; everything applied up to `as_of` is taken into account, and
    `tombstones` are the labels among the rows that were dead by then, each with the sequence that killed it;
    `killed` are those among the rows of other segments, kept so that a lost state can be made again;
    `ranges` are the sequences between first and last that are in here, where not all of them are.
    """

    labels: NDArray[np.uint64]
    ids: Items[str]
    namespaces: Items[str]
    metadata: Items[bytes]
    vectors: Iterable[Floats]
    first_sequence: Sequence
    last_sequence: Sequence
    as_of: Sequence
    metadata_indexes: tuple[MetadataIndex, ...] = ()
    tombstones: tuple[tuple[Label, Sequence], ...] = ()
    killed: tuple[tuple[Label, Sequence], ...] = ()
    ranges: Ranges = ()

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.ids) == len(self.namespaces) == len(self.metadata)
        assert len(self.labels) > 0, "a segment without rows is not written"
        assert bool((self.labels[1:] > self.labels[:-1]).all()), "labels ascend"


def merge_source(
    parts: Items[tuple[Part, Mask]],
    *,
    first_sequence: Sequence,
    last_sequence: Sequence,
    as_of: Sequence,
    metadata_indexes: tuple[MetadataIndex, ...] = (),
    tombstones: tuple[tuple[Label, Sequence], ...] = (),
    killed: tuple[tuple[Label, Sequence], ...] = (),
    ranges: Ranges = (),
    block_bytes: int = BLOCK_BYTES,
) -> SegmentSource:
    """The live rows of several parts of one index, in order of label. The parts stay open meanwhile."""
    order = _Order.of(parts)
    sources = [part for part, _ in parts]
    return SegmentSource(
        labels=order.labels,
        ids=_Merged(order, [part.id_of for part in sources]),
        namespaces=_Merged(order, [part.namespace_of for part in sources]),
        metadata=_Merged(order, [part.metadata for part in sources]),
        vectors=_merged_vectors(order, sources, block_bytes),
        first_sequence=first_sequence,
        last_sequence=last_sequence,
        as_of=as_of,
        metadata_indexes=metadata_indexes,
        tombstones=tombstones,
        killed=killed,
        ranges=ranges,
    )


@dataclass(frozen=True, slots=True)
class _Order:
    """Where each row of a merge comes from: the number of its part, and its row there."""

    labels: NDArray[np.uint64]
    parts: NDArray[np.intp]
    rows: NDArray[np.intp]

    @classmethod
    def of(cls, parts: Items[tuple[Part, Mask]]) -> _Order:
        rows = [np.flatnonzero(live) for _, live in parts]
        labels = np.concatenate([part.labels[live] for (part, _), live in zip(parts, rows, strict=True)])
        numbers = np.repeat(np.arange(len(parts)), [len(live) for live in rows])
        order = np.argsort(labels, kind="stable")
        return cls(labels[order], numbers[order], np.concatenate(rows)[order])


class _Merged(Items[Text]):
    """A column of a merge, read from the parts when it is asked for."""

    def __init__(self, order: _Order, readers: Items[Callable[[int], Text]]) -> None:
        self._order = order
        self._readers = readers

    def __len__(self) -> int:
        return len(self._order.rows)

    @overload
    def __getitem__(self, place: int) -> Text: ...

    @overload
    def __getitem__(self, place: slice) -> Items[Text]: ...

    def __getitem__(self, place: int | slice) -> Text | Items[Text]:
        if isinstance(place, slice):
            order = self._order
            part = _Order(order.labels[place], order.parts[place], order.rows[place])
            return _Merged(part, self._readers)
        reader = self._readers[int(self._order.parts[place])]
        return reader(int(self._order.rows[place]))

    def __iter__(self) -> Iterator[Text]:
        order, readers = self._order, self._readers
        for start in range(0, len(order.rows), _ITERATED_ROWS):
            block = slice(start, start + _ITERATED_ROWS)
            for part, row in zip(order.parts[block].tolist(), order.rows[block].tolist(), strict=True):
                yield readers[part](row)


def _merged_vectors(order: _Order, parts: Items[Part], block_bytes: int) -> Iterator[Floats]:
    step = _block_rows(parts[0], block_bytes)
    for start in range(0, len(order.rows), step):
        numbers = order.parts[start : start + step]
        rows = order.rows[start : start + step]
        block = np.empty((len(rows), parts[0].vectors.shape[1]), dtype=np.float32)
        for number in np.unique(numbers):
            mine = numbers == number
            block[mine] = parts[number].vectors[rows[mine]]
        yield block


def _block_rows(part: Part, block_bytes: int) -> int:
    return max(1, block_bytes // (4 * int(part.vectors.shape[1])))
