"""Listing: pages of ids as of the first page, whatever happens meanwhile.

Ids and `prefix` are as of the snapshot. `namespace`, `filter` and `include` are evaluated when the page is: a row that
was deleted since carries only its id, and matches no filter. Finding out which rows match can take as long as there
are rows, so it is done in a thread, on a connection of its own.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from storage import cursors
from storage.backends.sqlite.reader import IndexReader
from storage.backends.sqlite.state import StateReader
from storage.cursors import Cursor
from storage.deadlines import check, checked, in_thread
from storage.errors import StateDamaged
from storage.filters import to_json
from storage.interfaces import ListPage, ListRequest
from storage.masks import matching
from storage.records import IndexId, Record, Sequence
from storage.snapshot import Snapshot

SCANNED_MAX = 50_000
"""Ids looked at for one page under a filter; a page that finds too few ends early, with a cursor."""
CHUNK = 1_000
"""Ids read at a time where not all of them will be on the page."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Makes pages for one process."""

    secret: bytes
    ttl_ms: int

    async def page(
        self, reader: IndexReader, snapshot: Snapshot, request: ListRequest, *, now_ms: int, until_s: float
    ) -> ListPage:
        """One page. Raises CursorInvalid, CursorExpired, DeadlinePassed."""
        if request.prefix or request.namespace or request.filter is not None:
            return await in_thread(until_s, self._page_apart, reader, snapshot, request, now_ms)
        return self._page(reader.state_reader, snapshot, request, now_ms)

    def _page_apart(self, reader: IndexReader, snapshot: Snapshot, request: ListRequest, now_ms: int) -> ListPage:
        with closing(reader.another_state_reader()) as state_reader:
            return self._page(state_reader, snapshot, request, now_ms)

    def _page(self, reader: StateReader, snapshot: Snapshot, request: ListRequest, now_ms: int) -> ListPage:
        walk = self._walk(reader, snapshot, request, now_ms)
        ids, more = _ids(reader, snapshot, request, walk)
        records: tuple[Record | None, ...] = ()
        if request.include_records:
            records = tuple(find_records(reader, snapshot, ids))
        if not more:
            return ListPage(ids=tuple(ids), records=records, total=walk.total, next_cursor="", expires_ms=0)
        after = Cursor(
            index=walk.index,
            at=walk.at,
            last_id=more,
            total=walk.total,
            expires_ms=walk.expires_ms,
            about=walk.about,
        )
        return ListPage(
            ids=tuple(ids),
            records=records,
            total=walk.total,
            next_cursor=cursors.seal(after, self.secret),
            expires_ms=walk.expires_ms,
        )

    def _walk(self, reader: StateReader, snapshot: Snapshot, request: ListRequest, now_ms: int) -> Cursor:
        about = cursors.digest(
            request.prefix, request.namespace, None if request.filter is None else to_json(request.filter)
        )
        if request.cursor:
            return cursors.unseal(
                request.cursor,
                self.secret,
                index=snapshot.spec.id,
                about=about,
                now_ms=now_ms,
                horizon=reader.state().list_horizon,
            )
        return Cursor(
            index=IndexId(snapshot.spec.id),
            at=snapshot.applied,
            last_id="",
            total=_total(reader, snapshot, request),
            expires_ms=now_ms + self.ttl_ms,
            about=about,
        )


def _total(reader: StateReader, snapshot: Snapshot, request: ListRequest) -> int:
    if request.namespace or request.filter is not None:
        masks = matching(snapshot, request.namespace, request.filter, request.rules)
        if not request.prefix:
            return sum(int(np.count_nonzero(mask)) for mask in masks)
        return sum(
            part.part.id_of(row).startswith(request.prefix)
            for part, mask in zip(snapshot.parts, masks, strict=True)
            for row in checked(np.flatnonzero(mask).tolist())
        )
    if not request.prefix:
        return snapshot.vectors
    low, high = _range(request.prefix)
    [(count,)] = reader.rows(
        "SELECT count(*) FROM vectors WHERE id >= ? AND (? = '' OR id < ?) AND added <= ? "
        "AND (removed = 0 OR removed > ?)",
        (low, high, high, snapshot.applied, snapshot.applied),
    )
    return int(count)


def _ids(reader: StateReader, snapshot: Snapshot, request: ListRequest, walk: Cursor) -> tuple[list[str], str]:
    """The ids of a page, and the id to go on after ("" when nothing is left)."""
    wanted = _Wanted(snapshot, request)
    found: list[str] = []
    last_id, scanned = walk.last_id, 0
    size = request.count if wanted.is_open else max(request.count, CHUNK)
    while True:
        check()
        # One more than is looked at tells whether there are any behind.
        chunk = _chunk(reader, request.prefix, walk.at, last_id, size + 1)
        let_through = wanted.among(reader, chunk[:size])
        for id in chunk[:size]:
            if len(found) == request.count:
                return found, last_id
            last_id = id
            if id in let_through:
                found.append(id)
        scanned += len(chunk)
        if len(chunk) <= size:
            return found, ""
        if len(found) == request.count or scanned >= SCANNED_MAX:
            return found, last_id


def _chunk(reader: StateReader, prefix: str, at: Sequence, after: str, count: int) -> list[str]:
    low, high = _range(prefix)
    rows = reader.rows(
        "SELECT id FROM vectors WHERE id > ? AND id >= ? AND (? = '' OR id < ?) AND added <= ? "
        "AND (removed = 0 OR removed > ?) ORDER BY id LIMIT ?",
        (after, low, high, high, at, at, count),
    )
    if not all(type(id) is str for (id,) in rows):
        raise StateDamaged("state.db is damaged: a vector has an id that was never written")
    return [id for (id,) in rows]


def _range(prefix: str) -> tuple[str, str]:
    """The ids with a prefix lie from the first text to below the second; "" means no upper end."""
    for place in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[place]) + 1
        if code == 0xD800:  # Surrogates are not text.
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix, prefix[:place] + chr(code)
    return prefix, ""


class _Wanted:
    """Which ids a namespace and a filter let through now."""

    def __init__(self, snapshot: Snapshot, request: ListRequest) -> None:
        self._snapshot = snapshot
        self.is_open = not request.namespace and request.filter is None
        self._masks = () if self.is_open else matching(snapshot, request.namespace, request.filter, request.rules)

    def among(self, reader: StateReader, ids: list[str]) -> set[str]:
        """Those of the ids that are let through."""
        if self.is_open:
            return set(ids)
        return {id for id, label in reader.labels(ids, self._snapshot.applied).items() if self._has(label)}

    def _has(self, label: int) -> bool:
        for live_part, mask in zip(self._snapshot.parts, self._masks, strict=True):
            labels = live_part.part.labels
            row = int(np.searchsorted(labels, np.uint64(label)))
            if row < len(labels) and int(labels[row]) == label:
                return bool(mask[row])
        return False


def find_records(reader: StateReader, snapshot: Snapshot, ids: list[str]) -> list[Record | None]:
    """The vectors with these ids in a snapshot, one per id."""
    labels = reader.labels(ids, snapshot.applied)
    records: list[Record | None] = []
    for id in ids:
        place = snapshot.find(labels[id]) if id in labels else None
        record = place[0].record(place[1]) if place is not None else None
        if id in labels and (record is None or record.id != id):
            found = "nothing" if record is None else f"vector {record.id!r}"
            raise StateDamaged(f"index {snapshot.spec.name!r}: label {labels[id]} of vector {id!r} holds {found}")
        records.append(record)
    return records
