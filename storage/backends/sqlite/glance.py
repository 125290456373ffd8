"""How an index is, asked without keeping it open: for whoever has thousands of them and needs few."""

from __future__ import annotations

import operator
from contextlib import closing
from dataclasses import dataclass

from storage.backends.sqlite.database import Reader
from storage.backends.sqlite.folder import IndexFolder
from storage.errors import StateDamaged
from storage.records import Sequence

STATE_SQL = (
    "SELECT applied, sealed_through, "
    "(SELECT coalesce(sum(bytes), 0) FROM parts WHERE sequence > sealed_through), "
    "(sealed_through = 0 OR layout = collected_layout) AND NOT EXISTS (SELECT 1 FROM garbage) "
    "AND (SELECT count(*) FROM segments) <= 1 AND NOT EXISTS (SELECT 1 FROM segments, metadata_indexes) "
    "FROM progress"
)
LOG_SQL = "SELECT sequence, NOT EXISTS (SELECT 1 FROM bodies WHERE sequence <= ?) FROM head"


@dataclass(frozen=True, slots=True)
class Glance:
    """What is known of an index from outside.

    `is_settled` says that nothing is left to merge, to back-fill or to collect; False where that is not certain.
    """

    head: Sequence
    applied: Sequence
    tail_bytes: int
    is_settled: bool


def glance(folder: IndexFolder) -> Glance:
    """Look at an index. The log after the state, so that what was appended in between is seen.

    Raises StateDamaged, where a damaged row holds something else than numbers as well.
    """
    with closing(Reader(folder.state)) as state, closing(Reader(folder.log)) as log:
        try:
            [(applied, sealed_through, tail_bytes, is_settled)] = state.rows(STATE_SQL)
            [(head, is_pruned)] = log.rows(LOG_SQL, (sealed_through,))
            return Glance(
                Sequence(operator.index(head)),
                Sequence(operator.index(applied)),
                operator.index(tail_bytes),
                bool(is_settled and is_pruned),
            )
        except (TypeError, ValueError) as error:
            raise StateDamaged(f"state.db or log.db is damaged: how far it is cannot be read ({error})") from error
