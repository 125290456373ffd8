"""The packed body of a mutation: self-describing, checksummed, versioned.

Layout, little-endian:

    magic "HRBT" | u16 format version | u16 section count | u32 rows
    section table: per section 16 bytes of ASCII name (NUL-padded), u64 offset, u64 length
    sections, each starting on a 64-byte boundary
    xxh3-128 of everything before it (16 bytes)

Sections of vectors: `ids.off` u32[rows + 1], `ids`, `ns.off`, `ns`, `meta.off`, `meta` (UTF-8 text laid end to end),
`slots` (JSON: `[{"name": "", "dimensions": d}]`) and per slot n the section `values.n`, float32[rows, d]. A delete
has `ids` only; every other action has `json`. An unknown section is ignored, so that a later version can add some.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from storage.errors import BatchDamaged
from storage.records import DEFAULT_SLOT

MAGIC = b"HRBT"
VERSION = 1
ALIGNMENT = 64
CHECKSUM_BYTES = 16
_HEAD = struct.Struct("<4sHHI")
_ENTRY = struct.Struct("<16sQQ")


@dataclass(frozen=True, slots=True)
class Batch:
    """Vectors as columns. `namespaces[i]` is "" and `metadata[i]` b"" when row i has none.

    `values` is float32[rows, dimensions], C-contiguous; one row per id, in the order of the request.
    """

    ids: tuple[str, ...]
    namespaces: tuple[str, ...]
    metadata: tuple[bytes, ...]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.namespaces) == len(self.metadata) == len(self.values)

    def __len__(self) -> int:
        return len(self.ids)


def pack_vectors(batch: Batch) -> bytes:
    """Pack vectors to insert or upsert."""
    values = np.ascontiguousarray(batch.values, dtype="<f4")
    slots = orjson.dumps([{"name": DEFAULT_SLOT, "dimensions": values.shape[1]}])
    return _pack(
        len(batch),
        {
            **_text_column("ids", [text.encode() for text in batch.ids]),
            **_text_column("ns", [text.encode() for text in batch.namespaces]),
            **_text_column("meta", batch.metadata),
            "slots": slots,
            "values.0": values.data.cast("B") if values.size else b"",
        },
    )


def pack_ids(ids: Sequence[str]) -> bytes:
    """Pack ids to delete."""
    return _pack(len(ids), _text_column("ids", [text.encode() for text in ids]))


def pack_json(document: object) -> bytes:
    """Pack the parameters of any other action."""
    return _pack(0, {"json": orjson.dumps(document, option=orjson.OPT_SORT_KEYS)})


def unpack_vectors(body: bytes) -> Batch:
    """Read what `pack_vectors` wrote; `values` views `body`. Raises BatchDamaged."""
    rows, sections = _sections(body)
    try:
        slots = orjson.loads(sections["slots"])
        dimensions = int(slots[0]["dimensions"])
        values = np.frombuffer(sections["values.0"], dtype="<f4").reshape(rows, dimensions)
        return Batch(
            ids=tuple(text.decode() for text in _texts("ids", rows, sections)),
            namespaces=tuple(text.decode() for text in _texts("ns", rows, sections)),
            metadata=_texts("meta", rows, sections),
            values=values,
        )
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise BatchDamaged(f"a packed body of {rows} vectors lacks or contradicts a section: {error!r}") from error


def unpack_ids(body: bytes) -> tuple[str, ...]:
    """Read the ids of any body that has them. Raises BatchDamaged."""
    rows, sections = _sections(body)
    try:
        return tuple(text.decode() for text in _texts("ids", rows, sections))
    except (KeyError, ValueError, IndexError) as error:
        raise BatchDamaged(f"a packed body of {rows} ids lacks or contradicts a section: {error!r}") from error


def unpack_namespaces(body: bytes) -> tuple[str, ...]:
    """Read the namespaces of a body of vectors, one per row. Raises BatchDamaged."""
    rows, sections = _sections(body)
    try:
        return tuple(text.decode() for text in _texts("ns", rows, sections))
    except (KeyError, ValueError, IndexError) as error:
        raise BatchDamaged(f"a packed body of {rows} vectors lacks its namespaces: {error!r}") from error


def unpack_json(body: bytes) -> object:
    """Read what `pack_json` wrote. Raises BatchDamaged."""
    _, sections = _sections(body)
    try:
        return orjson.loads(sections["json"])
    except (KeyError, ValueError) as error:
        raise BatchDamaged(f"a packed body has no readable parameters: {error!r}") from error


def _text_column(name: str, texts: Sequence[bytes]) -> dict[str, bytes]:
    ends = np.fromiter(accumulate(map(len, texts), initial=0), dtype="<u4", count=len(texts) + 1)
    return {f"{name}.off": ends.tobytes(), name: b"".join(texts)}


def _texts(name: str, rows: int, sections: Mapping[str, memoryview]) -> tuple[bytes, ...]:
    ends = np.frombuffer(sections[f"{name}.off"], dtype="<u4").tolist()
    blob = bytes(sections[name])
    if len(ends) != rows + 1 or ends[-1] != len(blob):
        raise ValueError(f"column {name!r} has {len(ends) - 1} rows and {len(blob)} bytes")
    return tuple(blob[start:end] for start, end in pairwise(ends))


def _pack(rows: int, sections: Mapping[str, bytes | memoryview]) -> bytes:
    offset = _aligned(_HEAD.size + _ENTRY.size * len(sections))
    head = bytearray(_HEAD.pack(MAGIC, VERSION, len(sections), rows))
    for name, content in sections.items():
        head += _ENTRY.pack(name.encode(), offset, len(content))
        offset = _aligned(offset + len(content))
    parts: list[bytes | memoryview] = [bytes(head)]
    length = len(head)
    for content in sections.values():
        padding = _aligned(length) - length
        parts += [bytes(padding), content]
        length += padding + len(content)
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    # Joined once: megabytes are not copied only to append sixteen bytes.
    return b"".join([*parts, digest.digest()])


def _sections(body: bytes) -> tuple[int, dict[str, memoryview]]:
    """Verify the checksum, then read the section table."""
    view = memoryview(body)
    if len(view) < _HEAD.size + CHECKSUM_BYTES or bytes(view[:4]) != MAGIC:
        raise BatchDamaged(f"{len(view)} bytes do not begin as a packed body does ({MAGIC!r})")
    if xxhash.xxh3_128_digest(view[:-CHECKSUM_BYTES]) != bytes(view[-CHECKSUM_BYTES:]):
        raise BatchDamaged(f"a packed body of {len(view)} bytes does not have the checksum it was written with")
    _, version, count, rows = _HEAD.unpack_from(view)
    if version > VERSION:
        raise BatchDamaged(f"a packed body has format {version}; this program reads up to {VERSION}")
    sections = {}
    try:
        for number in range(count):
            name, offset, length = _ENTRY.unpack_from(view, _HEAD.size + number * _ENTRY.size)
            sections[name.rstrip(b"\0").decode()] = view[offset : offset + length]
    except (struct.error, ValueError) as error:
        raise BatchDamaged(f"a packed body has no table of {count} sections: {error!r}") from error
    return rows, sections


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
