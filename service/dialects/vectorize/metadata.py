"""The metadata of a vector: what may be in it, and the compact JSON it is kept as.

An empty object is the same as none: langchain-cloudflare sends one with every vector, and answers leave the
key out for both. A key given twice keeps its last value. Integers of 64 bits and less stay as they are;
larger ones are refused, because most readers of JSON would hand back another number.
"""

from __future__ import annotations

import math
from functools import lru_cache

import orjson

from service.dialects.vectorize.errors import Code, Refusal
from storage.limits import Limits

DEPTH_MAX = 128
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1
_PLAIN = frozenset({str, bool, type(None)})
"""What can be wrong neither by itself nor by what lies in it."""


def compact_metadata(document: object, *, vector_id: str, limits: Limits) -> bytes:
    """The text to keep, empty when there is none. Raises Refusal naming the vector."""
    if document is None or document == {}:
        return b""
    if not isinstance(document, dict):
        raise _refusal(vector_id, f"expected an object, and got {document!r:.40}")
    # Nearly all metadata is flat and has the keys of the vector before.
    if not (_PLAIN.issuperset(map(type, document.values())) and _are_plain_keys(tuple(document))):
        _check(document, vector_id)
    try:
        text = orjson.dumps(document)
    except TypeError as error:
        raise _refusal(vector_id, f"it has text that is not Unicode: {error}") from error
    if len(text) > limits.metadata_bytes_max:
        raise Refusal(
            Code.BATCH_UNPARSABLE,
            f'metadata too large for id="{vector_id}"; max is {limits.metadata_bytes_max} bytes of compact '
            f"JSON, got {len(text)} bytes",
        )
    return text


def _check(document: dict[str, object], vector_id: str) -> None:
    """Look at every key and number, level by level: recursion would let a deep document end the process."""
    level: list[object] = [document]
    for _ in range(DEPTH_MAX):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                _check_keys(value, vector_id)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            else:
                _check_number(value, vector_id)
        if not below:
            return
        level = below
    raise _refusal(vector_id, f"it is nested deeper than {DEPTH_MAX} levels")


@lru_cache(maxsize=256)
def _are_plain_keys(keys: tuple[str, ...]) -> bool:
    return all(map(_is_key, keys))


def _is_key(key: str) -> bool:
    return bool(key) and "." not in key and '"' not in key and not key.startswith("$")


def _check_keys(document: dict[str, object], vector_id: str) -> None:
    for key in document:
        if not _is_key(key):
            raise Refusal(
                Code.METADATA_KEY_INVALID,
                f'invalid metadata key {key!r:.80} for id="{vector_id}"; a key must not be empty, contain '
                "a dot or a double quote, or start with $",
            )


def _check_number(value: object, vector_id: str) -> None:
    if isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX:
        raise _refusal(vector_id, "an integer in it has more than 64 bits; send it as a string")
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(vector_id, f"it holds {value}, which JSON does not know")


def _refusal(vector_id: str, reason: str) -> Refusal:
    return Refusal(Code.METADATA_INVALID, f'invalid metadata for id="{vector_id}": {reason}')
