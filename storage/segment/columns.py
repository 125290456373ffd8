"""Columns: the values of one property in the rows of a part, and which rows satisfy a comparison.

`StoredColumn` is the immutable file of one metadata index in a segment. `FactorColumn` is read from the
metadata of rows and grows with them; it serves the tail, and properties whose file is not back-filled or
that have no metadata index. Both answer exactly as `storage.filters.holds` does.

A column file, little-endian:

    magic "HRCL" | u16 format version | u16 section count | u64 rows | 16 bytes of ASCII type (NUL-padded)
    section table: per section 16 bytes of ASCII name (NUL-padded), u64 offset, u64 length
    sections, each starting on a 64-byte boundary
    xxh3-128 of everything before it (16 bytes)

Sections: `states` u8[rows] (`column_values.State`), `values` one per row, and of rows that are arrays the
elements of the type as `element.rows` u32[e] and `elements`. Values are float64 numbers (NaN for none), u8
booleans (2 for none), or codes of strings in the narrowest unsigned type that holds their count, which
stands for none; `text.off` u64[count + 1] and `text` are the strings, sorted, end to end. An unknown
section is ignored.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.errors import SegmentDamaged
from storage.filters import Compare, FilterRules
from storage.records import MetadataType
from storage.segment.column_factors import BoundColumn, FactorColumn
from storage.segment.column_texts import Texts, code_type
from storage.segment.column_values import Booleans, Numbers, Strings, TypedColumn, Values
from storage.segment.pinning import is_pinning
from storage.snapshot import Mask

__all__ = ["BoundColumn", "FactorColumn", "StoredColumn", "pack_column", "pack_typed"]

MAGIC = b"HRCL"
VERSION = 1
ALIGNMENT = 64
CHECKSUM_BYTES = 16
_HEAD = struct.Struct("<4sHHQ16s")
_ENTRY = struct.Struct("<16sQQ")


def pack_column(type: MetadataType, values: Iterable[object]) -> bytes:
    """The whole file of a column: one JSON value per row, None where the row has none."""
    return pack_typed(TypedColumn.of(type, values))


def pack_typed(column: TypedColumn) -> bytes:
    """The whole file of a column."""
    sections: dict[str, NDArray[Any] | memoryview] = {
        "states": column.states,
        "values": _stored(column.values),
        "element.rows": column.element_rows,
        "elements": _stored(column.elements),
    }
    if isinstance(column.values, Strings):
        sections |= {"text.off": column.values.texts.offsets, "text": column.values.texts.blob}
    return _pack(column.type, len(column.states), {name: bytes(content) for name, content in sections.items()})


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column file, mapped. It stays readable after the file is unlinked."""

    column: TypedColumn

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> StoredColumn:
        """Map a file that `pack_column` wrote.

        `verify=False` leaves out the checksum, for a file that this process has verified before. Raises
        SegmentDamaged when the file is missing or is not what was written.
        """
        content = _mapped(path)
        if verify and xxhash.xxh3_128_digest(content[:-CHECKSUM_BYTES]) != bytes(content[-CHECKSUM_BYTES:]):
            raise SegmentDamaged(f"{path}: {len(content)} bytes do not have the checksum they were written with")
        try:
            return cls(_column(content))
        except (KeyError, ValueError, IndexError, struct.error) as error:
            raise SegmentDamaged(f"{path}: a section is missing or contradicts another: {error!r}") from error

    @property
    def type(self) -> MetadataType:
        """The type of the metadata index."""
        return self.column.type

    @property
    def rows(self) -> int:
        """How many rows the column covers."""
        return len(self.column.states)

    def mask(self, compare: Compare, rules: FilterRules) -> Mask:
        """Say for every row whether `compare` holds, by values of the column's type."""
        return self.column.mask(compare, rules)


def _stored(values: Values) -> NDArray[Any]:
    match values:
        case Strings(_, codes):
            return codes
        case Numbers(numbers):
            return numbers
        case Booleans(codes):
            return codes


def _pack(json_type: MetadataType, rows: int, sections: Mapping[str, bytes]) -> bytes:
    body = bytearray(_HEAD.pack(MAGIC, VERSION, len(sections), rows, json_type.encode()))
    offset = _aligned(_HEAD.size + _ENTRY.size * len(sections))
    for name, content in sections.items():
        body += _ENTRY.pack(name.encode(), offset, len(content))
        offset = _aligned(offset + len(content))
    for content in sections.values():
        body += bytes(_aligned(len(body)) - len(body)) + content
    return bytes(body) + xxhash.xxh3_128_digest(body)


def _mapped(path: Path) -> memoryview:
    """The bytes of a file that begins as a column file does."""
    try:
        with path.open("rb") as file:
            content = memoryview(file.read() if is_pinning() else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError) as error:  # ValueError is what mapping an empty file raises.
        raise SegmentDamaged(f"{path}: the column file is missing or empty") from error
    if len(content) < _HEAD.size + CHECKSUM_BYTES or bytes(content[:4]) != MAGIC:
        raise SegmentDamaged(f"{path}: {len(content)} bytes do not begin as a column file does ({MAGIC!r})")
    version = _HEAD.unpack_from(content)[1]
    if version > VERSION:
        raise SegmentDamaged(f"{path}: a column file of format {version}; this program reads up to {VERSION}")
    return content


def _column(content: memoryview) -> TypedColumn:
    _, _, count, rows, spelled = _HEAD.unpack_from(content)
    sections: dict[str, memoryview] = {}
    for number in range(count):
        name, offset, length = _ENTRY.unpack_from(content, _HEAD.size + number * _ENTRY.size)
        sections[name.rstrip(b"\0").decode()] = content[offset : offset + length]
    json_type = MetadataType(spelled.rstrip(b"\0").decode())
    element_rows = np.frombuffer(sections["element.rows"], dtype="<u4")
    column = TypedColumn(
        json_type,
        np.frombuffer(sections["states"], dtype="u1"),
        _values(json_type, "values", rows, sections),
        element_rows,
        _values(json_type, "elements", len(element_rows), sections),
    )
    if len(column.states) != rows:
        raise ValueError(f"{len(column.states)} states of {rows} rows")
    return column


def _values(json_type: MetadataType, name: str, count: int, sections: Mapping[str, memoryview]) -> Values:
    match json_type:
        case MetadataType.STRING:
            texts = Texts(np.frombuffer(sections["text.off"], dtype="<u8"), sections["text"])
            if texts.offsets[-1] != len(texts.blob):
                raise ValueError(f"{len(texts.blob)} bytes of strings, not {texts.offsets[-1]}")
            return Strings(texts, _array(sections[name], code_type(len(texts)), count))
        case MetadataType.NUMBER:
            return Numbers(_array(sections[name], np.dtype("<f8"), count))
        case MetadataType.BOOLEAN:
            return Booleans(_array(sections[name], np.dtype("u1"), count))


def _array(section: memoryview, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    array = np.frombuffer(section, dtype=dtype)
    if len(array) != count:
        raise ValueError(f"{len(array)} values where {count} were expected")
    return array


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
