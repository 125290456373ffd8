"""What a batch of vectors comes dressed in.

Clients label bodies wrongly more often than rightly, so the bytes decide and the Content-Type only helps:
NDJSON as it is, inside a multipart form whatever its label, or as one JSON string; and the two forms that are
one JSON document, an array of vectors and an object with `vectors`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

_BOUNDARY = re.compile(r'boundary="?([^";,\s]+)"?', re.IGNORECASE)
_PART_HEAD_END = re.compile(rb"\r?\n\r?\n")
_IS_FILE = re.compile(rb"^content-disposition:.*\bfilename\*?=", re.IGNORECASE | re.MULTILINE)
_VECTORS_OBJECT = re.compile(rb'\s*\{\s*"vectors"\s*:')
_PLAIN = re.compile(rb'\{\s*"(?!vectors").{8}', re.DOTALL)
"""The start of an object with any other key; long enough to be certain."""
_BOM = b"\xef\xbb\xbf"
PARTS_MAX = 16
"""Parts of a form that are looked at; the vectors are in the first file, so more are a mistake."""


@dataclass(frozen=True, slots=True)
class Undressed:
    """The vectors' text: one JSON document, or a JSON object on each line."""

    text: bytes
    whole: bool


def undress(body: bytes, content_type: str) -> Undressed:
    """Find the vectors in a body. Never refuses: what is no dress we know is read as lines."""
    body = _form_part(body, content_type).removeprefix(_BOM)
    head = body[:64].lstrip()[:1]
    if head == b'"':
        body = _unquoted(body)
        head = body[:64].lstrip()[:1]
    return Undressed(body, whole=head == b"[" or _VECTORS_OBJECT.match(body) is not None)


def is_plain(start: bytes, content_type: str) -> bool:
    """Whether a body that begins so wears nothing: `undress` would give it back as it is, as lines."""
    return _BOUNDARY.search(content_type) is None and _PLAIN.match(start) is not None


def _unquoted(body: bytes) -> bytes:
    try:
        text = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    return text.encode() if isinstance(text, str) else body


def _form_part(body: bytes, content_type: str) -> bytes:
    """The content of the first file of a form, or of its first part; the body itself when it is no form."""
    boundary = _boundary(body, content_type)
    if not boundary:
        return body
    first = b""
    position = body.find(boundary)
    for number in range(PARTS_MAX):
        start = position + len(boundary)
        end = body.find(b"\n" + boundary, start)
        if end < 0:
            # A form that was cut off still shows what is in it; its last line will not parse and is named.
            end = len(body)
        head = _PART_HEAD_END.search(body, start, end)
        if head is not None:
            content = body[head.end() : end].removesuffix(b"\r")
            if _IS_FILE.search(body, start, head.start() + 1):
                return content
            first = first if number else content
        position = end + 1
        if position >= len(body) or body.startswith(b"--", position + len(boundary)):
            break
    return first


def _boundary(body: bytes, content_type: str) -> bytes:
    """The line that parts a form, or nothing. What begins with "--" is one even where its label is lost."""
    named = _BOUNDARY.search(content_type)
    if named is not None:
        boundary = b"--" + named[1].encode(errors="surrogateescape")
        return boundary if boundary in body[:4096] else b""
    if body.startswith(b"--"):
        return body[:256].partition(b"\n")[0].rstrip(b"\r")
    return b""
