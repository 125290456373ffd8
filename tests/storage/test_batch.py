"""The packed body of a mutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.batch import (
    Batch,
    pack_ids,
    pack_json,
    pack_vectors,
    unpack_ids,
    unpack_json,
    unpack_namespaces,
    unpack_vectors,
)
from storage.errors import BatchDamaged

TEXT = st.text(max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT, st.binary(max_size=30), st.integers(-1000, 1000)), min_size=1, max_size=12)


def made(rows) -> Batch:
    ids, namespaces, metadata, numbers = zip(*rows, strict=True)
    return Batch(ids, namespaces, metadata, np.array([[number, 0.5] for number in numbers], dtype=np.float32))


@given(rows=ROWS)
def test_vectors_come_back_as_they_were_packed(rows):
    batch = made(rows)

    body = pack_vectors(batch)
    back = unpack_vectors(body)

    assert (back.ids, back.namespaces, back.metadata) == (batch.ids, batch.namespaces, batch.metadata)
    assert np.array_equal(back.values, batch.values)
    assert unpack_ids(body) == batch.ids
    assert unpack_namespaces(body) == batch.namespaces


@given(ids=st.lists(TEXT, max_size=10))
def test_ids_come_back_as_they_were_packed(ids):
    assert unpack_ids(pack_ids(ids)) == tuple(ids)


def test_parameters_come_back_as_they_were_packed():
    assert unpack_json(pack_json({"filter": {"a": 1}})) == {"filter": {"a": 1}}


def test_any_flipped_bit_is_found():
    body = pack_vectors(made([("a", "n", b"{}", 1), ("b", "", b"", 2)]))
    for place in range(len(body)):
        damaged = bytearray(body)
        damaged[place] ^= 0x10
        with pytest.raises(BatchDamaged):
            unpack_vectors(bytes(damaged))


def test_a_body_that_is_cut_short_is_found():
    body = pack_vectors(made([("a", "n", b"{}", 1)]))
    for length in range(0, len(body), 11):
        with pytest.raises(BatchDamaged):
            unpack_vectors(body[:length])


def test_a_body_of_another_kind_is_refused_by_name():
    with pytest.raises(BatchDamaged, match="lacks or contradicts"):
        unpack_vectors(pack_ids(["a"]))


def test_values_begin_on_a_boundary_that_a_matrix_can_be_read_from_in_place():
    back = unpack_vectors(pack_vectors(made([("a", "", b"", 1), ("bcd", "n", b"{}", 2)])))

    assert not back.values.flags.owndata
    assert back.values.flags.c_contiguous
