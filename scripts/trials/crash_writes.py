"""The writes that crash trials do, and the model: what an index must be after some of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import orjson

IDS = 400
ANCHORS = 40
GROUPS = 40
DIMENSIONS = 8
BATCH_MAX = 12
PROPERTIES = {"group": "number", "shade": "string"}
COUNTS = ("inserted", "replaced", "ignored", "deleted", "missing")
WEIGHTS = {"upsert": 6, "insert": 3, "delete_by_ids": 2, "delete_by_filter": 1}
PATHS = {"create_metadata_index": "metadata_index/create", "delete_metadata_index": "metadata_index/delete"}

Row = tuple[tuple[float, ...], int, str]
"""What the model keeps of a vector: its values, its group, its namespace."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write as a writer meant it. `rows` are (id, number) pairs; the number makes the rest of the row."""

    action: str
    rows: tuple[tuple[str, int], ...] = ()
    group: int = -1
    indexed: str = ""

    @classmethod
    def at_random(cls, dice: random.Random, number: int) -> Write:
        """Some write of vectors; ids come up again and again, within one batch as well."""
        ids = [f"v{dice.randrange(IDS):03}" for _ in range(dice.randint(1, BATCH_MAX))]
        action = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if action == "delete_by_filter":
            return cls(action, group=dice.randrange(GROUPS))
        if action == "insert":
            ids = list(dict.fromkeys(ids))  # An insert that names an id twice is refused.
        if action == "upsert" and dice.random() < 0.3:
            ids.append(f"a{dice.randrange(ANCHORS):02}")
        return cls(action, tuple((id, number * (BATCH_MAX + 1) + place) for place, id in enumerate(ids)))

    @classmethod
    def anchors(cls, number: int) -> Write:
        """The vectors that are never deleted: every walk of the list must show each of them."""
        return cls("upsert", tuple((f"a{place:02}", number + place) for place in range(ANCHORS)))

    @property
    def path(self) -> str:
        """Where it goes, below the index."""
        return PATHS.get(self.action, self.action)

    def body(self) -> bytes:
        """The request."""
        match self.action:
            case "delete_by_ids":
                return orjson.dumps({"ids": [id for id, _ in self.rows]})
            case "delete_by_filter":
                return orjson.dumps({"filter": {"group": self.group}})
            case "create_metadata_index":
                return orjson.dumps({"propertyName": self.indexed, "indexType": PROPERTIES[self.indexed]})
            case "delete_metadata_index":
                return orjson.dumps({"propertyName": self.indexed})
            case _:
                return b"\n".join(orjson.dumps(_vector(id, number)) for id, number in self.rows)


def row_of(id: str, number: int) -> Row:
    """Values that tell the number again, exactly in float32, and the group and namespace it is in.

    No delete_by_filter asks for a group of an anchor.
    """
    values = (1.0, float(number % 4096), float(number // 4096), *[0.5] * (DIMENSIONS - 3))
    group = GROUPS + number % 5 if id.startswith("a") else number % GROUPS
    return values, group, "night" if number % 3 == 0 else ""


def _vector(id: str, number: int) -> dict[str, object]:
    values, group, namespace = row_of(id, number)
    vector: dict[str, object] = {"id": id, "values": values, "metadata": {"group": group, "shade": f"s{group % 4}"}}
    return vector | ({"namespace": namespace} if namespace else {})


@dataclass
class Model:
    """What an index is after some writes: dictionaries."""

    rows: dict[str, Row] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)
    """Metadata indexes: the type by the property."""

    def apply(self, write: Write) -> dict[str, int]:
        """Do a write; returns the counts the service must have found."""
        counts = dict.fromkeys(COUNTS, 0)
        match write.action:
            case "insert" | "upsert":
                self._put(write, counts)
            case "delete_by_ids":
                for id in dict(write.rows):
                    counts["missing" if self.rows.pop(id, None) is None else "deleted"] += 1
            case "delete_by_filter":
                left = {id: row for id, row in self.rows.items() if row[1] != write.group}
                counts["deleted"] = len(self.rows) - len(left)
                self.rows = left
            case "create_metadata_index":
                self.indexes[write.indexed] = PROPERTIES[write.indexed]
            case "delete_metadata_index":
                del self.indexes[write.indexed]
        return counts

    def _put(self, write: Write, counts: dict[str, int]) -> None:
        last = dict(write.rows)
        counts["ignored"] = len(write.rows) - len(last)
        for id, number in last.items():
            if id in self.rows:
                counts["ignored" if write.action == "insert" else "replaced"] += 1
                if write.action == "insert":
                    continue
            else:
                counts["inserted"] += 1
            self.rows[id] = row_of(id, number)
