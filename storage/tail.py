"""The tail: vectors that are applied and in no segment yet, laid out to be scanned.

The log bodies are the durable copy; this is the one in memory. It only grows. Values go into one matrix,
so a scan is one matrix product, and everything else into append-only columns. A `TailPart` is the tail as
it was at one moment and costs nothing to take: it looks at the first rows of the same memory, which later
appends never touch. When the memory is full it is copied to twice as much, and parts taken before keep the
old.

One thread appends, and takes parts; any thread may use a part.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.batch import Batch
from storage.filters import path_of
from storage.indexes.flat import Gathered, norms
from storage.records import Label, MetadataIndex, Record, Sequence
from storage.segment.columns import BoundColumn, FactorColumn
from storage.snapshot import Mask

ROWS_MIN = 256
"""The rows there is room for at first."""
COLUMNS_MAX = 64
"""The columns a tail keeps; the one unused for longest makes place."""
FLOAT_BYTES = 4
COPIED_BYTES_MAX = 2 * 1024 * 1024
"""A tail with more is not moved again until it has outgrown ROOM_BYTES."""
ROOM_BYTES = 128 * 1024 * 1024
"""Twice what a tail is meant to grow to."""

Number = TypeVar("Number", bound=np.generic)


class Tail:
    """The bodies of the mutations after the newest segment, in order."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.rows = 0
        self.last_sequence = Sequence(0)
        """The newest mutation that is in here, or in a segment that `after` was told of."""
        self._sequences: list[Sequence] = []
        self._first_rows: list[int] = []
        self._labels = np.empty(ROWS_MIN, dtype=np.uint64)
        self._vectors = np.empty((ROWS_MIN, dimensions), dtype=np.float32)
        self._norms = np.empty(ROWS_MIN, dtype=np.float64)
        self._namespace_codes = np.empty(ROWS_MIN, dtype=np.uint32)
        self._texts = _Texts()

    @property
    def bytes(self) -> int:
        """The float32 bytes of all rows, dead ones included."""
        return self.rows * self.dimensions * FLOAT_BYTES

    @property
    def mutations(self) -> int:
        """How many mutations there are."""
        return len(self._sequences)

    def append(self, sequence: Sequence, first_label: Label, batch: Batch) -> None:
        """Add the vectors of a mutation; row i of the batch has the label `first_label` + i.

        The values are copied: the body need not be kept.
        """
        assert sequence > self.last_sequence
        assert batch.values.shape == (len(batch), self.dimensions)
        assert not self.rows or not len(batch) or first_label > self._labels[self.rows - 1]
        start, end = self.rows, self.rows + len(batch)
        self._make_room(end)
        self._labels[start:end] = np.arange(first_label, first_label + len(batch), dtype=np.uint64)
        self._vectors[start:end] = batch.values
        self._norms[start:end] = norms(self._vectors[start:end])
        self._namespace_codes[start:end] = self._texts.append(batch)
        self._sequences.append(sequence)
        self._first_rows.append(start)
        self.last_sequence = sequence
        self.rows = end

    def part(self) -> TailPart:
        """The rows so far, fixed."""
        return TailPart(
            labels=_fixed(self._labels[: self.rows]),
            vectors=_fixed(self._vectors[: self.rows]),
            norms=_fixed(self._norms[: self.rows]),
            namespace_codes=_fixed(self._namespace_codes[: self.rows]),
            texts=self._texts,
        )

    def fixed(self) -> FixedTail:
        """The tail as it is now, for another thread: nobody may append while this is taken, and anybody later."""
        return FixedTail(self.part(), tuple(self._sequences), tuple(self._first_rows))

    def after(self, sequence: Sequence) -> Tail:
        """A tail of its own with the mutations after `sequence`, for when a segment has the others."""
        return self.rest_of(self.fixed(), sequence)

    @classmethod
    def rest_of(cls, fixed: FixedTail, sequence: Sequence) -> Tail:
        """As `after`, of what a tail was.

        Everything is copied at once: row by row, a long tail would keep the interpreter from others for a tenth of a
        second.
        """
        kept = bisect_right(fixed.sequences, sequence)
        first_rows, part = fixed.first_rows[kept:], fixed.part
        start = first_rows[0] if first_rows else part.rows
        rest = cls(part.vectors.shape[1])
        rest._make_room(part.rows - start)
        rest.rows = part.rows - start
        rest._labels[: rest.rows] = part.labels[start:]
        rest._vectors[: rest.rows] = part.vectors[start:]
        rest._norms[: rest.rows] = part.norms[start:]
        rest._namespace_codes[: rest.rows] = part.namespace_codes[start:]
        rest._texts = part.texts.between(start, part.rows)
        rest._sequences = list(fixed.sequences[kept:])
        rest._first_rows = [row - start for row in first_rows]
        rest.last_sequence = rest._sequences[-1] if rest._sequences else sequence
        return rest

    def _make_room(self, rows: int) -> None:
        capacity = len(self._labels)
        if rows <= capacity:
            return
        capacity = max(rows, 2 * capacity)
        row_bytes = self.dimensions * FLOAT_BYTES
        if capacity * row_bytes > COPIED_BYTES_MAX:
            # Memory is taken when it is written to, so room costs nothing; copying 50 MB held up queries for 0.2 s.
            capacity = max(capacity, ROOM_BYTES // row_bytes)
        self._labels = _grown(self._labels, self.rows, capacity)
        self._vectors = _grown(self._vectors, self.rows, capacity)
        self._norms = _grown(self._norms, self.rows, capacity)
        self._namespace_codes = _grown(self._namespace_codes, self.rows, capacity)


@dataclass(frozen=True, slots=True, eq=False)
class FixedTail:
    """What a tail had at one moment, mutation by mutation."""

    part: TailPart
    sequences: tuple[Sequence, ...]
    first_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TailPart:
    """The first rows of a tail, as `storage.snapshot.Part` promises."""

    labels: NDArray[np.uint64]
    vectors: NDArray[np.float32]
    norms: NDArray[np.float64]
    namespace_codes: NDArray[np.uint32]
    texts: _Texts

    @property
    def name(self) -> str:
        """What `explain` calls it."""
        return "tail"

    @property
    def rows(self) -> int:
        """How many rows there are, dead ones included."""
        return len(self.labels)

    @property
    def codes(self) -> None:
        """None: codes pay where a scan is long."""
        return

    @property
    def graph(self) -> None:
        """None: a tail is short enough to be scanned."""
        return

    @property
    def side(self) -> Gathered:
        """Nothing: there is no graph to miss a row."""
        return Gathered.of(self.vectors, self.norms, np.zeros(0, np.int64))

    def id_of(self, row: int) -> str:
        """The id of one row."""
        assert 0 <= row < self.rows
        return self.texts.ids[row]

    def ids_of(self, rows: Items[int]) -> list[str]:
        """The ids of some rows."""
        ids = self.texts.ids
        return [ids[row] for row in rows]

    def namespace_of(self, row: int) -> str:
        """The namespace of one row; empty when it has none."""
        return self.texts.namespaces[int(self.namespace_codes[row])]

    def record(self, row: int) -> Record:
        """One row as it is answered."""
        return Record(
            id=self.id_of(row),
            namespace=self.namespace_of(row),
            values=self.vectors[row].astype("<f4", copy=False).tobytes(),
            metadata=self.texts.metadata[row],
        )

    def metadata(self, row: int) -> bytes:
        """The metadata of one row: JSON text, empty when it has none."""
        assert 0 <= row < self.rows
        return self.texts.metadata[row]

    def namespace_mask(self, namespace: str) -> Mask:
        """Which rows are in this namespace."""
        code = self.texts.codes.get(namespace)
        if code is None:
            return np.zeros(self.rows, dtype=np.bool_)
        mask: Mask = self.namespace_codes == np.uint32(code)
        return mask

    def column(self, index: MetadataIndex) -> BoundColumn:
        """The column of a metadata index; a tail always has it."""
        return self.texts.column(path_of(index.property), self.rows).bound(index.type)

    def property_column(self, path: tuple[str, ...]) -> FactorColumn:
        """Any property, read from the metadata itself."""
        return self.texts.column(path, self.rows)


class _Texts:
    """What is not numbers: append-only lists, shared by a tail and its parts, and columns of them."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.metadata: list[bytes] = []
        self.namespaces: list[str] = []
        """Each name once, by its code."""
        self.codes: dict[str, int] = {}
        self._columns: dict[tuple[str, ...], FactorColumn] = {}
        self._columns_lock = threading.Lock()

    def append(self, batch: Batch) -> list[int]:
        """Add the texts of a batch and return the codes of its namespaces."""
        self.ids.extend(batch.ids)
        self.metadata.extend(batch.metadata)
        return [self._code(namespace) for namespace in batch.namespaces]

    def between(self, start: int, end: int) -> _Texts:
        """A copy of the texts of some rows. The codes of namespaces stay what they are."""
        texts = _Texts()
        texts.ids, texts.metadata = self.ids[start:end], self.metadata[start:end]
        if end > start:
            texts.namespaces = self.namespaces.copy()
            texts.codes = {name: code for code, name in enumerate(texts.namespaces)}
        return texts

    def column(self, path: tuple[str, ...], rows: int) -> FactorColumn:
        """A property in the first `rows` rows. Rows are read once, however often the tail has grown since."""
        with self._columns_lock:
            column = self._columns.pop(path, None)
            if column is None:
                column = FactorColumn.of(path, self.metadata[:rows])
            elif column.rows < rows:
                column = column.extended(self.metadata[column.rows : rows])
            self._columns[path] = column  # As the newest; the first of the dict is the longest unused.
            if len(self._columns) > COLUMNS_MAX:
                del self._columns[next(iter(self._columns))]
        return replace(column, rows=rows, codes=column.codes[:rows])

    def _code(self, namespace: str) -> int:
        code = self.codes.setdefault(namespace, len(self.namespaces))
        if code == len(self.namespaces):
            self.namespaces.append(namespace)
        return code


def _grown(array: NDArray[Number], rows: int, capacity: int) -> NDArray[Number]:
    """The first rows of an array in a new one with more room."""
    grown = np.empty((capacity, *array.shape[1:]), dtype=array.dtype)
    grown[:rows] = array[:rows]
    return grown


def _fixed(array: NDArray[Number]) -> NDArray[Number]:
    """A view that nobody can write through."""
    view = array.view()
    view.flags.writeable = False
    return view
