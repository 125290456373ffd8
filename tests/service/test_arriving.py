"""A batch that is read while it arrives comes to what it comes to when it is read whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.vectors import ArrivingBatch, BatchRules, read_batch
from storage.limits import CLOUDFLARE
from storage.records import Action
from tests.service.conftest import Service
from tests.service.test_vectors import DRESSES, FORM_DATA, LINES

LIMITS = replace(CLOUDFLARE, upload_vectors_max=4)
FIRST = b'{"id":"first","values":[1,2],"metadata":{"text":"long enough to be certain"}}'
KINDS = [
    b'{"id":"a","values":[1,2]}',
    b'{"id":"b","values":[3,4.5],"namespace":"n","metadata":{"k":[1,{"v":"\\u00e9"}]}}\r',
    b"",
    b" \t",
    b"oops",
    b"[1]",
    b'{"id":"c","values":[1,2,3]}',
    b'{"id":"d","values":[[1],2]}',
    b'{"id":"e","values":[1e39,2]}',
    b'{"id":7,"values":[1,2]}',
    b'{"vectors":[{"id":"f","values":[1,2]}]}',
]


def in_pieces(body: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, *(cut % len(body) for cut in cuts), len(body)})
    return [body[start:end] for start, end in pairwise(places)]


def arrived(pieces: Sequence[bytes], rules: BatchRules) -> Any:
    batch = ArrivingBatch(rules, sum(map(len, pieces)))
    for piece in pieces:
        batch.feed(piece)
    return told(batch.end)


def told(read: Any) -> Any:
    """All that can be told of a batch, or of its refusal."""
    try:
        found = read()
    except Refusal as refusal:
        return refusal.code, refusal.message
    batch = found.batch
    return batch.ids, batch.namespaces, batch.metadata, batch.values.tolist(), found.dropped


@given(
    st.lists(st.sampled_from(KINDS), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_lines_in_any_pieces_are_read_as_a_whole_body_is(lines, cuts, discard, ends):
    rules = BatchRules(action=Action.UPSERT, dimensions=2, limits=LIMITS, discard=discard)
    body = b"\n".join([FIRST, *lines]) + b"\n" * ends

    whole = told(lambda: read_batch(body, "application/x-ndjson", rules))

    assert arrived(in_pieces(body, cuts), rules) == whole
    assert arrived([body[place : place + 1] for place in range(len(body))], rules) == whole


@pytest.mark.parametrize("dress", DRESSES)
def test_a_body_in_a_dress_is_not_read_as_it_arrives(dress: str):
    label, body = DRESSES[dress]
    plain = body.startswith(b'{"id"') and "boundary" not in label

    assert ArrivingBatch.fits(body, label) == plain


@pytest.mark.parametrize("start", [b"", b"{", b'{ "id"', b'{"vectors": [', b'\n{"id":"a","values":[1]}', b"--x"])
def test_a_start_that_leaves_doubt_is_waited_on(start: bytes):
    assert not ArrivingBatch.fits(start, "")


def test_a_label_with_a_boundary_leaves_doubt():
    assert ArrivingBatch.fits(LINES, "")
    assert not ArrivingBatch.fits(LINES, FORM_DATA)


async def sent_in_pieces(service: Service, body: bytes, size: int) -> Any:
    async def pieces() -> AsyncIterator[bytes]:
        for place in range(0, len(body), size):
            yield body[place : place + size]

    headers = {"Content-Type": "application/x-ndjson", "Content-Length": str(len(body))}
    return await service.ask("POST", "docs/upsert?wait=true", data=pieces(), headers=headers)


async def test_a_body_in_pieces_is_written_and_refused_as_any_other(service: Service):
    await service.create()
    line = '{"id":"v%04d","values":[%s],"metadata":{"n":%d}}\n'
    lines = [line % (number, ",".join(["0.5"] * 32), number) for number in range(1_000)]
    wrong = [line % (0, "1", 0), *lines]

    written = await sent_in_pieces(service, "".join(lines).encode(), 7_001)
    refused = await sent_in_pieces(service, "".join(wrong).encode(), 7_001)
    again = await service.post("docs/get_by_ids", {"ids": ["v0000", "v0999"]})

    assert written.status == 200
    assert refused.code == Code.VECTOR_INVALID
    assert refused.message.endswith("expected 32 dimensions, and got 1 dimensions")
    assert [one["metadata"]["n"] for one in again.result] == [0, 999]
