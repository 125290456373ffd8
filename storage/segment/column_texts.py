"""The distinct strings of a column, sorted by their UTF-8 bytes; a string's place is its code.

A comparison becomes spans of codes, found by bisection. So its cost hardly grows with the number of
strings, and the rows are compared as small integers.

Strings may compare by their first m bytes only, cut on a character boundary. They are kept whole, since m
is a setting. Cutting does not keep the order: with m = 2, "ab" < "aé", and yet the cut of "aé" is "a" <
"ab". A string is cut to v when it goes on after v with a character that is longer than the m - len(v)
bytes left. Longer characters have greater first bytes, so for each v these strings are one span: those
that begin with v and a byte that is at least the first one of such a character. That gives, for an operand
cut to q:

* equal to q: q itself, and the strings that are cut to q;
* below q: all that sort before q, and the strings that are cut to some v that q begins with. They sort
  after q.

m - len(v) is at most 3, so at most the last three such v matter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
Spans = tuple[tuple[int, int], ...]
"""Half-open ranges of codes, ascending and apart from each other."""

COMPARED_SPANS_MAX = 3
"""Up to this many spans are compared with each code; more are looked up in a table."""
_LONGER = (b"", b"\xc0", b"\xe0", b"\xf0")
"""By the bytes left: the least first byte of a UTF-8 character that needs more."""
_AFTER = b"\xff"
"""Greater than any byte of UTF-8: `v + _AFTER` is behind all that begins with v."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Sorted distinct strings as UTF-8: string i is `blob[offsets[i]:offsets[i + 1]]`."""

    offsets: NDArray[np.uint64]
    blob: memoryview

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Lay strings end to end; they must be sorted and distinct."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype="<u8")
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(offsets, memoryview(b"".join(encoded)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, code: int) -> bytes:
        return bytes(self.blob[int(self.offsets[code]) : int(self.offsets[code + 1])])

    def equal(self, operand: bytes, bytes_max: int) -> Spans:
        """The strings that equal a cut operand once they are cut to `bytes_max` bytes (0: whole)."""
        start = bisect_left(self, operand)
        found = start < len(self) and self[start] == operand
        return merged([(start, start + found), *self._cut_to(operand, bytes_max)])

    def below(self, operand: bytes, bytes_max: int) -> Spans:
        """The strings that sort before a cut operand once they are cut to `bytes_max` bytes (0: whole)."""
        spans = [(0, bisect_left(self, operand))]
        for length in range(max(bytes_max - 3, 0) if bytes_max else len(operand), len(operand)):
            # Strings are cut between characters only, so nothing is cut to a slice that ends inside of one.
            if operand[length] & 0xC0 != 0x80:
                spans += self._cut_to(operand[:length], bytes_max)
        return merged(spans)

    def _cut_to(self, prefix: bytes, bytes_max: int) -> Spans:
        """The strings that lose something when they are cut, and of which `prefix` is left."""
        left = bytes_max - len(prefix)
        if not bytes_max or left >= len(_LONGER):
            return ()
        return ((bisect_left(self, prefix + _LONGER[left]), bisect_left(self, prefix + _AFTER)),)


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """The same codes as spans that are not empty, ascend and do not touch."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


def complement(spans: Spans, count: int) -> Spans:
    """The codes below `count` that are in none of the spans."""
    edges = [0, *(edge for span in spans for edge in span), count]
    return merged(zip(edges[::2], edges[1::2], strict=True))


def selected(codes: Codes, spans: Spans, count: int) -> NDArray[np.bool_]:
    """Which codes lie in a span. `count` is the number of strings; codes from there on are in none."""
    if len(spans) > COMPARED_SPANS_MAX:
        table = np.zeros(count + 1, dtype=np.bool_)
        for start, end in spans:
            table[start:end] = True
        return table[codes]
    mask = np.zeros(len(codes), dtype=np.bool_)
    for start, end in spans:
        mask |= codes == start if end == start + 1 else (codes >= start) & (codes < end)
    return mask


def code_type(count: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest type of codes for this many strings and one code more, which means "no string"."""
    return np.dtype(np.min_scalar_type(count)).newbyteorder("<")
