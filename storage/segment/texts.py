"""Texts end to end in one file, where each begins in another: how ids and metadata lie in a segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from storage import pages
from storage.segment.format import BYTES, OFFSETS
from storage.segment.pinning import is_pinning

SMALL_BYTES = 256 * 1024
"""Files up to this size are read instead of mapped: Python keeps a descriptor open for every mapping."""


def mapped(path: Path) -> memoryview:
    """The bytes of a file, read-only. They stay readable after it is unlinked. Raises OSError."""
    if path.stat().st_size <= SMALL_BYTES or is_pinning():
        return memoryview(path.read_bytes())
    return pages.mapped(path)


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn(Sequence[bytes]):
    """One text per row: row r is `content[offsets[r]:offsets[r + 1]]`."""

    offsets: memoryview
    content: memoryview

    @classmethod
    def open(cls, folder: Path, name: str) -> TextColumn:
        """Map the two files of a column. Raises OSError, and ValueError for a cut-off offset."""
        try:
            offsets = mapped(folder / (name + OFFSETS)).cast("Q")
        except TypeError as error:
            raise ValueError(f"{folder / (name + OFFSETS)} is not a whole number of offsets") from error
        return cls(offsets, mapped(folder / (name + BYTES)))

    def text(self, row: int) -> str:
        """One text, decoded."""
        return str(self.content[self.offsets[row] : self.offsets[row + 1]], "utf-8")

    def texts(self, rows: Sequence[int]) -> list[str]:
        """Some texts, decoded, for rows that are known to be some."""
        offsets, content = self.offsets, self.content
        return [str(content[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]

    def at(self, row: int) -> bytes:
        """One text as it is kept; for a row that is known to be one."""
        return self.content[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> bytes: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[bytes]: ...

    def __getitem__(self, row: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return bytes(self.content[self.offsets[row] : self.offsets[row + 1]])
