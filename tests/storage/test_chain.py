"""Mutation ids, the chain, and the witness."""

from __future__ import annotations

import os
import uuid

from hypothesis import given
from hypothesis import strategies as st

from storage.chain import NO_CHAIN, Head, link, next_mutation_id, read_witness, write_witness
from storage.records import Action, MutationId, Sequence


@given(clocks=st.lists(st.integers(min_value=0, max_value=2**41), min_size=1, max_size=30))
def test_ids_increase_in_text_order_whatever_the_clock_does(clocks):
    last = ""
    for now_ms in clocks:
        id, milliseconds = next_mutation_id(last, now_ms)
        assert id > last
        assert milliseconds >= now_ms
        assert uuid.UUID(id).version == 7
        assert uuid.UUID(id).variant == uuid.RFC_4122
        last = id


def test_ids_of_one_millisecond_borrow_from_the_next_when_they_run_out():
    last, ids = "", []
    for _ in range(5_000):
        last, _ = next_mutation_id(last, 1_000)
        ids.append(last)

    assert ids == sorted(set(ids))


def test_every_field_of_a_mutation_moves_its_link():
    given = {
        "sequence": 1,
        "mutation_id": "m",
        "action": Action.INSERT,
        "created_ms": 5,
        "rows": 2,
        "body_hash": b"h" * 16,
    }
    changed = {"sequence": 2, "mutation_id": "n", "action": Action.UPSERT, "created_ms": 6, "rows": 3}
    links = {link(NO_CHAIN, **given), link(b"x" * 32, **given), link(NO_CHAIN, **given | {"body_hash": b"i" * 16})}
    links |= {link(NO_CHAIN, **given | {name: value}) for name, value in changed.items()}

    assert len(links) == 3 + len(changed)


def test_a_witness_reads_back_and_a_flipped_bit_is_none(tmp_path):
    path = tmp_path / "HEAD"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    write_witness(descriptor, Head(Sequence(7), MutationId("m"), 99, b"c" * 32, 1_000))
    os.close(descriptor)

    witness = read_witness(path)
    content = path.read_bytes()

    assert (witness.sequence, witness.created_ms, witness.chain) == (7, 99, b"c" * 32)
    assert len(content) == 64
    for bit in range(0, 64 * 8, 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert read_witness(path) is None
