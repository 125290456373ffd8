"""Which files of a segment are not what was written, and which rows that touches.

A derived file is simply not used. A primary file may be the only copy of what it holds, so the question is
which rows are still whole: its checksums per block tell, and the rows are named by id, or by label where the
ids themselves are damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import SegmentDamaged
from storage.files import BLOCK_BYTES, FileSum, sum_file
from storage.segment import format as layout
from storage.segment.format import SegmentDocument
from storage.segment.texts import TextColumn, mapped

_NAMED_MAX = 5  # Names in a message; the rest is counted.

Spans = tuple[tuple[int, int], ...]
"""Half-open ranges of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One file that is missing or is not what was written.

    `rows` are the rows of the segment that a primary file can no longer answer for; a derived file has none.
    """

    file: str
    reason: str
    primary: bool
    rows: Spans = ()


def find_damage(folder: Path, document: SegmentDocument) -> tuple[Damage, ...]:
    """Read every file that `segment.json` names and compare; empty when all is well."""
    found = {name: _difference(folder / name, known) for name, known in document.files.items()}
    broken = frozenset(name for name, reason in found.items() if reason)
    return tuple(
        Damage(
            file=name,
            reason=found[name],
            primary=name in layout.PRIMARY,
            rows=_rows(folder, document, name, broken) if name in layout.PRIMARY else (),
        )
        for name in sorted(broken)
    )


def damaged_ids(folder: Path, document: SegmentDocument, damage: Damage) -> tuple[str, ...]:
    """The ids of the rows a damage touches; empty when the ids cannot be read either."""
    ids = TextColumn.open(folder, layout.IDS)
    if any(_difference(folder / name, document.files[name]) for name in _texts(layout.IDS)):
        return ()
    return tuple(ids[row].decode() for start, end in damage.rows for row in range(start, end))


def refuse(folder: Path, document: SegmentDocument, damages: tuple[Damage, ...]) -> SegmentDamaged:
    """The error for damage to primary files: what is damaged, and whose vectors are in doubt."""
    sentences = [
        f"{damage.file} {damage.reason}; in doubt are {_named(folder, document, damage)}" for damage in damages
    ]
    return SegmentDamaged(
        f"segment {folder}: {'. '.join(sentences)}. Restore it from a backup, or write these vectors again"
    )


def difference(path: Path, checksum: str) -> str:
    """What is wrong with a file that only has a checksum; empty when nothing is."""
    try:
        found = sum_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found.checksum == checksum else f"has checksum {found.checksum}, not {checksum}"


def _difference(path: Path, known: FileSum) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    # The size first: a truncated file of gigabytes need not be read to know it.
    if size != known.bytes:
        return f"has {size} bytes, not {known.bytes}"
    return difference(path, known.checksum)


def _rows(folder: Path, document: SegmentDocument, name: str, broken: frozenset[str]) -> Spans:
    """The rows that lie in the damaged blocks of a primary file."""
    everything = ((0, document.rows),)
    reader = _row_readers(folder, document, broken).get(name)
    if reader is None:
        return everything
    known = document.files[name].blocks
    try:
        found = sum_file(folder / name, blocks=True).blocks
    except OSError:
        return everything
    spans: list[tuple[int, int]] = []
    for number, checksum in enumerate(known):
        if found[number : number + 1] == (checksum,):
            continue
        start, end = reader(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
        start, end = max(0, start), min(end, document.rows)
        if spans and start <= spans[-1][1]:
            start = spans.pop()[0]
        spans.append((start, end))
    # All blocks are right when bytes were only added behind the last.
    return tuple(spans)


def _row_readers(
    folder: Path, document: SegmentDocument, broken: frozenset[str]
) -> Mapping[str, Callable[[int, int], tuple[int, int]]]:
    """How a range of bytes becomes a range of rows, for the files in which rows lie in order."""
    readers = {
        layout.LABELS: _fixed(8),
        layout.NAMESPACE_CODES: _fixed(4),
        layout.VECTORS: _fixed(4 * document.dimensions),
    }
    for name in (layout.IDS, layout.METADATA):
        offsets, blob = _texts(name)
        # An offset ends one row and begins the next.
        readers[offsets] = lambda start, end: (start // 8 - 1, -(-end // 8))
        if offsets not in broken:
            readers[blob] = _variable(mapped(folder / offsets))
    return readers


def _fixed(row_bytes: int) -> Callable[[int, int], tuple[int, int]]:
    return lambda start, end: (start // row_bytes, -(-end // row_bytes))


def _variable(content: memoryview) -> Callable[[int, int], tuple[int, int]]:
    offsets = np.frombuffer(content, dtype="<u8")
    starts, ends = offsets[:-1], offsets[1:]
    return lambda start, end: (
        int(np.searchsorted(ends, start, side="right")),
        int(np.searchsorted(starts, end, side="left")),
    )


def _texts(name: str) -> tuple[str, str]:
    return name + layout.OFFSETS, name + layout.BYTES


def _named(folder: Path, document: SegmentDocument, damage: Damage) -> str:
    count = sum(end - start for start, end in damage.rows)
    try:
        names = damaged_ids(folder, document, damage)
    except (OSError, ValueError):
        names = ()
    if names:
        shown = ", ".join(repr(name) for name in names[:_NAMED_MAX])
        return f"{count} vectors: {shown}{' and others' if count > _NAMED_MAX else ''}"
    rows = ", ".join(f"{start} to {end - 1}" for start, end in damage.rows)
    return f"{count} vectors, whose ids cannot be read, in rows {rows} ({_labels(folder, document, damage)})"


def _labels(folder: Path, document: SegmentDocument, damage: Damage) -> str:
    if _difference(folder / layout.LABELS, document.files[layout.LABELS]) or not damage.rows:
        return f"labels within {document.first_label} to {document.last_label}"
    labels = np.frombuffer(mapped(folder / layout.LABELS), dtype="<u8")
    return "labels " + ", ".join(f"{labels[start]} to {labels[end - 1]}" for start, end in damage.rows)
