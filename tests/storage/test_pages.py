"""Large pages are a wish: with them or without, a file reads as it was written."""

from __future__ import annotations

import pytest

from storage.pages import LARGE_BYTES_MIN, mapped, read_in_large_pages


@pytest.mark.parametrize("size", [1, LARGE_BYTES_MIN, LARGE_BYTES_MIN + 12_345, 5 * LARGE_BYTES_MIN])
@pytest.mark.parametrize("anew", [False, True])
def test_what_is_mapped_is_what_was_written(tmp_path, size, anew):
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(content[:size])

    read_in_large_pages(tmp_path / "file", anew=anew)

    assert mapped(tmp_path / "file") == content[:size]


def test_what_is_mapped_stays_readable_when_it_is_unlinked(tmp_path):
    (tmp_path / "file").write_bytes(b"kept" * LARGE_BYTES_MIN)
    content = mapped(tmp_path / "file")

    (tmp_path / "file").unlink()

    assert bytes(content[-4:]) == b"kept"


def test_a_file_that_is_missing_is_left_to_whoever_opens_it(tmp_path):
    read_in_large_pages(tmp_path / "missing", anew=True)

    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "missing")


def test_without_large_pages_all_is_as_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.pages._HUGE", None)
    (tmp_path / "file").write_bytes(b"kept" * LARGE_BYTES_MIN)

    read_in_large_pages(tmp_path / "file", anew=True)

    assert bytes(mapped(tmp_path / "file")[:4]) == b"kept"
