"""List cursors: only ours, only here, only for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.cursors import Cursor, seal, unseal
from storage.errors import CursorExpired, CursorInvalid
from storage.records import IndexId, Sequence

SECRET = b"s" * 32
CURSOR = Cursor(index=IndexId("i" * 32), at=Sequence(9), last_id="väter", total=3, expires_ms=1_000, about="ab")
HERE = {"index": CURSOR.index, "about": "ab", "now_ms": 999, "horizon": Sequence(0)}


def test_a_cursor_reads_back():
    assert unseal(seal(CURSOR, SECRET), SECRET, **HERE) == CURSOR


def test_a_cursor_with_any_character_changed_is_refused():
    text = seal(CURSOR, SECRET)
    for place in range(len(text)):
        other = "A" if text[place] != "A" else "B"
        changed = text[:place] + other + text[place + 1 :]
        try:
            back = unseal(changed, SECRET, **HERE)
        except CursorInvalid:
            continue
        # The last character of base64 has bits that say nothing; then nothing was changed.
        assert (place, back) == (len(text) - 1, CURSOR)


@pytest.mark.parametrize("text", ["", "x", "nöt ascii", "AAAA", "!!!!", "a" * 5_000], ids=repr)
def test_text_that_is_no_cursor_is_refused(text):
    with pytest.raises(CursorInvalid, match="without a cursor"):
        unseal(text, SECRET, **HERE)


REFUSED = {
    "of another service": ({"secret": b"t" * 32}, CursorInvalid),
    "of another index": ({"index": IndexId("j" * 32)}, CursorInvalid),
    "of a walk with other parameters": ({"about": "other"}, CursorInvalid),
    "that is too old": ({"now_ms": 1_000}, CursorExpired),
    "whose rows are collected": ({"horizon": Sequence(10)}, CursorExpired),
}


@pytest.mark.parametrize(("changes", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_a_cursor_is_refused(changes, error):
    secret = changes.pop("secret", SECRET) if "secret" in changes else SECRET

    with pytest.raises(error):
        unseal(seal(CURSOR, SECRET), secret, **HERE | changes)


def test_a_cursor_says_nothing_that_another_secret_would_sign():
    assert seal(CURSOR, SECRET) != seal(replace(CURSOR, total=4), SECRET)
