"""What trials hold the log of an index to: each way in which it may be wrong is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.trials.promises import Broken
from scripts.trials.writes import Model, Write, model_of, row_of

WRITERS = [
    [("m1", Write("upsert", (("a", 1), ("b", 2)))), ("m3", Write("delete_by_ids", (("a", 0), ("c", 0))))],
    [("m2", Write("insert", (("b", 3), ("d", 4))))],
]


def logged() -> list[dict[str, Any]]:
    """The log that these writes make."""
    model = Model()
    writes = sorted((one for writes in WRITERS for one in writes), key=lambda one: one[0])
    return [{"mutationId": id, "state": "applied", "counts": model.apply(write)} for id, write in writes]


def test_a_log_that_has_every_write_once_gives_the_model():
    assert model_of("docs", logged(), WRITERS).rows == {"b": row_of(2), "d": row_of(4)}


def lost(log: list[dict[str, Any]], _: list[Any]) -> None:
    del log[1]


def unknown(log: list[dict[str, Any]], _: list[Any]) -> None:
    log.append(log[0] | {"mutationId": "m9"})


def doubled(log: list[dict[str, Any]], _: list[Any]) -> None:
    log.insert(0, log[0])


def out_of_order(log: list[dict[str, Any]], _: list[Any]) -> None:
    log.reverse()


def not_applied(log: list[dict[str, Any]], _: list[Any]) -> None:
    log[2]["state"] = "pending"


def wrong_count(log: list[dict[str, Any]], _: list[Any]) -> None:
    log[1]["counts"]["inserted"] += 1


def writer_out_of_order(_: list[dict[str, Any]], writers: list[Any]) -> None:
    writers[0].reverse()


def one_id_for_two_writes(_: list[dict[str, Any]], writers: list[Any]) -> None:
    writers[1].append(writers[0][0])


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (lost, "1 acknowledged writes are lost"),
        (unknown, "1 mutations nobody knows of"),
        (doubled, "in the log twice"),
        (out_of_order, "ascend in the order of the log"),
        (not_applied, "every mutation is applied"),
        (wrong_count, "does what it does in the model"),
        (writer_out_of_order, "writes of one writer keep their order"),
        (one_id_for_two_writes, "a mutation of its own"),
    ],
)
def test_a_log_that_is_wrong_breaks_a_promise(change, claim: str):
    log, writers = logged(), [list(writes) for writes in WRITERS]
    change(log, writers)

    with pytest.raises(Broken, match=claim):
        model_of("docs", log, writers)
