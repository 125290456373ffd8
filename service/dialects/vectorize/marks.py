"""Counting the values of a JSON text as it arrives, before any of them becomes an object.

A value of two bytes becomes an object of a hundred, so the size of a text says little about what reading it takes.
Every value but the first stands behind a comma or an opening bracket that is in no string; those are counted.
"""

from __future__ import annotations

import re

_ESCAPED = re.compile(rb"\\.", re.DOTALL)


class Marks:
    """Counts marks until there are more than `most`.

    Marks in strings count as well as long as even so there are few enough: telling them apart takes ten times as long,
    and hardly any text needs it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rough = 0
        self._unread: list[bytes] = []
        self._exact = 0
        self._in_string = False
        self._cut = b""

    def feed(self, chunk: bytes) -> bool:
        """Count a chunk. False when there are too many: reading on would cost more than the text is worth."""
        self._rough += _count(chunk)
        self._unread.append(chunk)
        if self._rough <= self._most:
            return True
        for unread in self._unread:
            self._exact += self._outside_strings(unread)
        self._unread.clear()
        return self._exact <= self._most

    def _outside_strings(self, chunk: bytes) -> int:
        text = self._cut + chunk
        plain = _ESCAPED.sub(b"", text) if b"\\" in text else text
        # What is left of escapes is the first half of one that the next chunk ends.
        self._cut = b"\\" if plain.endswith(b"\\") else b""
        pieces = plain.removesuffix(b"\\").split(b'"')
        count = _count(b"".join(pieces[self._in_string :: 2]))
        self._in_string ^= len(pieces) % 2 == 0
        return count


def _count(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")
