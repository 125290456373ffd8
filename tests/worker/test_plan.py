"""What mutations do to ids, against a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.apply import row_digest
from storage.records import Counts, Sequence
from worker.plan import Planner

CASES = {
    "insert of a new id adds it": ({}, [("insert", "a")], {"a": 10}, [Counts(inserted=1)]),
    "insert of a live id is ignored": ({"a": 1}, [("insert", "a")], {"a": 1}, [Counts(ignored=1)]),
    "insert keeps the first of two": ({}, [("insert", "aa")], {"a": 10}, [Counts(inserted=1, ignored=1)]),
    "upsert of a live id replaces it": ({"a": 1}, [("upsert", "a")], {"a": 10}, [Counts(replaced=1)]),
    "upsert keeps the last of two": ({}, [("upsert", "aa")], {"a": 11}, [Counts(inserted=1, ignored=1)]),
    "delete removes": ({"a": 1}, [("delete", "ab")], {}, [Counts(deleted=1, missing=1)]),
    "insert after a delete adds": ({"a": 1}, [("delete", "a"), ("insert", "a")], {"a": 10}, None),
    "delete after an insert leaves nothing": ({}, [("insert", "a"), ("delete", "a")], {}, None),
    "two upserts leave the later": ({"a": 1}, [("upsert", "a"), ("upsert", "a")], {"a": 11}, None),
}


def fold(live, steps):
    planner = Planner(live, next_label=10)
    for number, (action, ids) in enumerate(steps, start=1):
        if action == "delete":
            planner.delete(Sequence(number), list(ids))
        else:
            getattr(planner, action)(Sequence(number), list(ids), [""] * len(ids), body_bytes=1)
    return planner.effects


def after(live, effects):
    left = {id: label for id, label in live.items() if id not in {one.id for one in effects.removed}}
    return left | {one.id: one.label for one in effects.added.values()}


@pytest.mark.parametrize(("live", "steps", "expected", "counts"), CASES.values(), ids=CASES.keys())
def test_mutations_leave_these_labels(live, steps, expected, counts):
    effects = fold(live, steps)

    assert after(live, effects) == expected
    assert counts is None or [one.counts for one in effects.outcomes] == counts


STEPS = st.lists(
    st.tuples(st.sampled_from(["insert", "upsert", "delete"]), st.text("abcd", min_size=1, max_size=5)), max_size=8
)


@given(live=st.sets(st.sampled_from("abcd")), steps=STEPS)
def test_any_mutations_come_to_what_a_dictionary_says(live, steps):
    live = {id: number for number, id in enumerate(sorted(live), start=1)}
    model, label, labels = dict(live), 10, set(live.values())
    for action, ids in steps:
        if action == "delete":
            for id in ids:
                model.pop(id, None)
            continue
        for row, id in enumerate(ids):
            labels.add(label + row)
            if action == "upsert" or id not in model:
                model[id] = label + row
        label += len(ids)

    effects = fold(live, steps)

    assert after(live, effects) == model
    assert effects.vectors == len(model) - len(live)
    dead = {one.label for one in effects.removed} | {one.label for one, _ in effects.passing}
    dead |= {one for _, one in effects.stillborn}
    assert dead == labels - set(model.values())
    before = sum(row_digest(id, one) for id, one in live.items())
    assert (before + effects.digest) % 2**64 == sum(row_digest(id, one) for id, one in model.items()) % 2**64
    assert effects.next_label == label
