"""What mutations do to the ids of an index: pure, oldest first.

Insert keeps the vector that is there, and the first of two with one id; upsert replaces, and the last of two wins;
delete removes what is there. `Planner` folds any number of mutations into the effects of one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items

from storage.apply import Added, Effects, Outcome, Removed, TailPart
from storage.records import Counts, MetadataIndex, MutationState, Sequence


class Planner:
    """Folds mutations into effects. `live` is the labels of the live versions before the first of them.

    `live` must answer for every id that any of the mutations names; it is not changed.
    """

    def __init__(self, live: Mapping[str, int], next_label: int) -> None:
        self._before = dict(live)
        self.effects = Effects(next_label=next_label)
        self._gone: set[str] = set()

    def know(self, live: Mapping[str, int]) -> None:
        """Learn the labels of more live versions, from before the first mutation."""
        self._before.update(live)

    def insert(self, sequence: Sequence, ids: Items[str], namespaces: Iterable[str], *, body_bytes: int) -> None:
        """Add the ids that are not live."""
        first_label = self._part(sequence, len(ids), body_bytes)
        inserted = 0
        for row, id in enumerate(ids):
            if self._is_live(id):
                self.effects.stillborn.append((sequence, first_label + row))
            else:
                self._add(id, first_label + row, sequence)
                inserted += 1
        self.effects.namespaces.update(name for name in namespaces if name)
        self._done(sequence, Counts(inserted=inserted, ignored=len(ids) - inserted))

    def upsert(self, sequence: Sequence, ids: Items[str], namespaces: Iterable[str], *, body_bytes: int) -> None:
        """Put every id, the last of several with one id; the others of them are ignored."""
        first_label = self._part(sequence, len(ids), body_bytes)
        last_row = {id: row for row, id in enumerate(ids)}
        replaced = 0
        for row, id in enumerate(ids):
            if last_row[id] != row:
                self.effects.stillborn.append((sequence, first_label + row))
                continue
            if self._is_live(id):
                self._remove(id, sequence)
                replaced += 1
            self._add(id, first_label + row, sequence)
        self.effects.namespaces.update(name for name in namespaces if name)
        self._done(
            sequence,
            Counts(inserted=len(last_row) - replaced, replaced=replaced, ignored=len(ids) - len(last_row)),
        )

    def delete(self, sequence: Sequence, ids: Iterable[str]) -> None:
        """Remove the ids that are live; the same id twice counts once."""
        deleted = missing = 0
        for id in dict.fromkeys(ids):
            if self._is_live(id):
                self._remove(id, sequence)
                deleted += 1
            else:
                missing += 1
        self._done(sequence, Counts(deleted=deleted, missing=missing))

    def create_metadata_index(self, sequence: Sequence, created: MetadataIndex | None) -> None:
        """Add a processed metadata index; None when an equal one was there."""
        if created is not None:
            self.effects.created.append(created)
        self._done(sequence, Counts())

    def delete_metadata_index(self, sequence: Sequence, dropped: int) -> None:
        """Drop a processed metadata index, which may have been created in the same transaction."""
        earlier = [index for index in self.effects.created if index.id == dropped]
        for index in earlier:
            self.effects.created.remove(index)
        if not earlier and dropped:
            self.effects.dropped.append(dropped)
        self._done(sequence, Counts())

    def fail(self, sequence: Sequence, error: str) -> None:
        """Pass a mutation that cannot be applied; it has no effect."""
        self.effects.outcomes.append(Outcome(sequence, MutationState.FAILED, Counts(), error))

    def _part(self, sequence: Sequence, rows: int, body_bytes: int) -> int:
        first_label = self.effects.next_label
        self.effects.next_label += rows
        self.effects.parts.append(TailPart(sequence, first_label, rows, body_bytes, f"log:{sequence}"))
        return first_label

    def _is_live(self, id: str) -> bool:
        return id in self.effects.added or (id in self._before and id not in self._gone)

    def _add(self, id: str, label: int, sequence: Sequence) -> None:
        assert id not in self.effects.added
        self.effects.added[id] = Added(id, label, sequence)

    def _remove(self, id: str, sequence: Sequence) -> None:
        if id in self.effects.added:
            self.effects.passing.append((self.effects.added.pop(id), sequence))
        else:
            assert id in self._before
            assert id not in self._gone
            self._gone.add(id)
            self.effects.removed.append(Removed(id, self._before[id], sequence))

    def _done(self, sequence: Sequence, counts: Counts) -> None:
        self.effects.outcomes.append(Outcome(sequence, MutationState.APPLIED, counts))
