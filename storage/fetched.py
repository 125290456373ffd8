"""Scattered rows that filters select again and again, fetched once and kept side by side.

To fetch the codes of ten thousand scattered rows took five times as long as to scan them. So what a selection is asked
for a second time, as that of a tenant is, stays in memory of this process, within a bound for all indexes together.
What was not asked for longest goes first, and what a snapshot selected goes with the snapshot.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.indexes.codes import Codes
from storage.indexes.flat import Question

FETCHED_BYTES_MAX = 96 * 1024 * 1024
"""What one process keeps of all selections: 12 of 10,000 rows of 768 dimensions."""
ONE_SHARE = 4
"""One selection takes no more than this part of it."""

RowNumbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """Some rows of a part, ascending, with codes and lengths side by side."""

    rows: RowNumbers
    codes: Codes
    lengths: NDArray[np.float64]

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.rows.nbytes + self.codes.bytes + self.lengths.nbytes

    def candidates(self, question: Question, *, count: int) -> RowNumbers:
        """Those that could be among the best `count`, as `Codes.candidates` has them."""
        near = self.codes.candidates(question, self.lengths, mask=None, count=count)
        return self.rows[near]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Slot:
    """The place of one selection: how often its rows were asked for, and what was fetched of them."""

    asked: int = 0
    fetched: Fetched | None = None


class Memory:
    """All that a process has fetched, the one not asked for longest first. Any thread may ask."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        # By identity, which a later slot may have again; so every entry is told from its slot by the reference.
        self._kept: OrderedDict[int, tuple[weakref.ref[Slot], int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What is kept, with what went with its snapshot and was not counted off yet."""
        return self._bytes

    def of(
        self, slot: Slot, codes: Codes, lengths: NDArray[np.float64], rows: Callable[[], RowNumbers]
    ) -> Fetched | None:
        """What is kept for a slot, from its second use on; None where the rows have to be fetched by who needs them."""
        with self._lock:
            slot.asked += 1
            if slot.fetched is not None:
                self._kept.move_to_end(id(slot))
                return slot.fetched
            if slot.asked == 1:
                return None
        wanted = rows()
        if len(wanted) * (codes.row_bytes + lengths.itemsize + wanted.itemsize) > self._bytes_max // ONE_SHARE:
            return None
        made = Fetched(wanted, codes.among(wanted), lengths[wanted])
        with self._lock:
            self._keep(slot, made)
        return made

    def _keep(self, slot: Slot, made: Fetched) -> None:
        self._drop(id(slot))
        self._kept[id(slot)] = weakref.ref(slot), made.bytes
        self._bytes += made.bytes
        slot.fetched = made
        if self._bytes <= self._bytes_max:
            return
        for key, (kept, _) in list(self._kept.items()):
            if kept() is None:
                self._drop(key)
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: int) -> None:
        kept, size = self._kept.pop(key, (None, 0))
        self._bytes -= size
        slot = None if kept is None else kept()
        if slot is not None:
            slot.fetched = None


MEMORY = Memory(FETCHED_BYTES_MAX)
"""That of this process."""
