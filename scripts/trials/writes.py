"""The writes of trials that need no vectors of their own, and the model: what an index must be after some of them.

Those of crash trials are in `crash_writes`: with namespaces, metadata indexes, and vectors that are always there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from scripts.trials.promises import check

IDS = 400
GROUPS = 40
DIMENSIONS = 8
BATCH_MAX = 12

Row = tuple[list[float], int]
"""What the model keeps of a vector: its values and its group."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write as a writer meant it. `rows` are (id, number) pairs; the number makes the values and the group."""

    action: str
    rows: tuple[tuple[str, int], ...] = ()
    group: int = -1

    @classmethod
    def at_random(cls, dice: random.Random, number: int) -> Write:
        """Some write; ids come up again and again, within one batch as well."""
        ids = [f"v{dice.randrange(IDS):03}" for _ in range(dice.randint(1, BATCH_MAX))]
        action = dice.choices(["upsert", "insert", "delete_by_ids", "delete_by_filter"], [6, 3, 2, 1])[0]
        if action == "delete_by_filter":
            return cls(action, group=dice.randrange(GROUPS))
        if action == "insert":
            ids = list(dict.fromkeys(ids))  # An insert that names an id twice is refused.
        return cls(action, tuple((id, number * BATCH_MAX + place) for place, id in enumerate(ids)))

    def body(self) -> bytes:
        """The request."""
        match self.action:
            case "delete_by_ids":
                return orjson.dumps({"ids": [id for id, _ in self.rows]})
            case "delete_by_filter":
                return orjson.dumps({"filter": {"group": self.group}})
            case _:
                return b"\n".join(
                    orjson.dumps({"id": id, "values": row_of(number)[0], "metadata": {"group": row_of(number)[1]}})
                    for id, number in self.rows
                )


def row_of(number: int) -> Row:
    """Values that tell the number again, exactly in float32, and the group it is in."""
    return [1.0, float(number % 4096), float(number // 4096), *[0.5] * (DIMENSIONS - 3)], number % GROUPS


class Model:
    """What an index is after some writes: a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def apply(self, write: Write) -> dict[str, int]:
        """Do a write; returns the counts the service must have found."""
        counts = dict.fromkeys(("inserted", "replaced", "ignored", "deleted", "missing"), 0)
        match write.action:
            case "insert":
                for id, number in write.rows:
                    counts["ignored" if id in self.rows else "inserted"] += 1
                    self.rows.setdefault(id, row_of(number))
            case "upsert":
                last = dict(write.rows)
                counts["ignored"] = len(write.rows) - len(last)
                for id, number in last.items():
                    counts["replaced" if id in self.rows else "inserted"] += 1
                    self.rows[id] = row_of(number)
            case "delete_by_ids":
                for id in dict(write.rows):
                    counts["missing" if self.rows.pop(id, None) is None else "deleted"] += 1
            case "delete_by_filter":
                gone = [id for id, (_, group) in self.rows.items() if group == write.group]
                counts["deleted"] = len(gone)
                for id in gone:
                    del self.rows[id]
        return counts


def model_of(index: str, logged: Sequence[dict[str, Any]], writers: Sequence[Sequence[tuple[str, Write]]]) -> Model:
    """What an index must be whose log, oldest first, has each acknowledged write once, and those of a writer in order.

    Raises Broken where it has not, and where a mutation did something else than in the model.
    """
    acknowledged = {mutation: write for writes in writers for mutation, write in writes}
    check(len(acknowledged) == sum(map(len, writers)), f"{index}: every write has a mutation of its own")
    ids = [str(one["mutationId"]) for one in logged]
    lost, more = acknowledged.keys() - set(ids), set(ids) - acknowledged.keys()
    check(not lost, f"{index}: {len(lost)} acknowledged writes are lost: {sorted(lost)[:3]}")
    check(not more, f"{index}: {len(more)} mutations nobody knows of: {sorted(more)[:3]}")
    check(len(ids) == len(acknowledged), f"{index}: a write is in the log twice")
    check(ids == sorted(ids), f"{index}: mutation ids ascend in the order of the log")
    for writes in writers:
        mine = [mutation for mutation, _ in writes]
        check(mine == sorted(mine), f"{index}: the writes of one writer keep their order")
    model = Model()
    for one in logged:
        write = acknowledged[str(one["mutationId"])]
        expected = model.apply(write)
        check(one["state"] == "applied", f"{index}: every mutation is applied: {one}")
        check(one["counts"] == expected, f"{index}: {write} does what it does in the model, {expected}: {one}")
    return model
