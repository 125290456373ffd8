"""The hash chain of a log, its mutation ids, and the witness that lies beside it.

SQLite drops a damaged tail of its WAL without a word. So each mutation carries the hash of the one before it, and
after each commit the newest is written to a small file of its own, the witness. A log that ends before its witness
has lost something, and says so.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from storage.records import Action, MutationId, Sequence

CHAIN_BYTES = 32
NO_CHAIN = bytes(CHAIN_BYTES)
_WITNESS = struct.Struct("<8sQQ32s")
_MAGIC = b"HRHEAD\x01\x00"
_COUNTER_BITS = 12
_RANDOM_BITS = 62


@dataclass(frozen=True, slots=True)
class Head:
    """The newest mutation of a log. `bytes_through` counts every body ever appended."""

    sequence: Sequence
    mutation_id: MutationId
    created_ms: int
    chain: bytes
    bytes_through: int


@dataclass(frozen=True, slots=True)
class Witness:
    """What the file beside a log remembers of its head."""

    sequence: Sequence
    created_ms: int
    chain: bytes


def hash_body(body: bytes) -> bytes:
    """The hash of a body that goes into the chain: a body can be pruned and the chain still verifies."""
    return xxhash.xxh3_128_digest(body)


def hash_request(action: Action, body_hash: bytes) -> bytes:
    """What a second use of an idempotency key must equal: the body and what is to be done with it."""
    return xxhash.xxh3_128_digest(action.encode() + body_hash)


def link(
    previous: bytes,
    *,
    sequence: int,
    mutation_id: str,
    action: Action,
    created_ms: int,
    rows: int,
    body_hash: bytes,
) -> bytes:
    """The chain hash of a mutation: sha256 over the one before it, its header and the hash of its body."""
    header = f"{sequence}\n{mutation_id}\n{action}\n{created_ms}\n{rows}\n".encode()
    return hashlib.sha256(previous + header + body_hash).digest()


def next_mutation_id(last: str, now_ms: int) -> tuple[MutationId, int]:
    """A UUIDv7 (RFC 9562) above `last` in text order whatever the clock does, and the milliseconds in it.

    The twelve bits after the version count the ids within a millisecond; when they run out the next millisecond is
    used early.
    """
    last_ms, counter = (int(last[:8] + last[9:13], 16), int(last[15:18], 16)) if last else (0, 0)
    if now_ms > last_ms:
        milliseconds, counter = now_ms, 0
    elif counter + 1 < 1 << _COUNTER_BITS:
        milliseconds, counter = last_ms, counter + 1
    else:
        milliseconds, counter = last_ms + 1, 0
    number = milliseconds << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(_RANDOM_BITS)
    digits = f"{number:032x}"
    text = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return MutationId(text), milliseconds


def write_witness(descriptor: int, head: Head) -> None:
    """Overwrite the witness in place: 64 bytes lie within one sector, so it is the old one or the new one.

    It is not synced here: it can only be behind the log, never ahead of it.
    """
    content = _WITNESS.pack(_MAGIC, head.sequence, head.created_ms, head.chain)
    os.pwrite(descriptor, content + xxhash.xxh3_64_digest(content), 0)


def read_witness(path: Path) -> Witness | None:
    """The witness, or None when there is none that can be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != _WITNESS.size + 8 or xxhash.xxh3_64_digest(content[:-8]) != content[-8:]:
        return None
    magic, sequence, created_ms, chain = _WITNESS.unpack(content[:-8])
    return Witness(Sequence(sequence), created_ms, chain) if magic == _MAGIC else None
