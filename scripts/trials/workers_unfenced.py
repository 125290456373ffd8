"""A build that is broken on purpose: a worker takes the indexes of the living, and none heeds the epoch.

`HEADRACE_TORTURE_PRELOAD=workers_unfenced scripts/torture workers` must find it.
"""

from __future__ import annotations

from storage.backends.sqlite import publishing
from storage.backends.sqlite.database import Statements
from storage.backends.sqlite.state import PROGRESS_SQL, State, state_of
from storage.backends.sqlite.workshop import WorkIndex
from worker.lease import Registration


def _any_epoch(statements: Statements, _: int) -> State:
    [row] = statements.rows(PROGRESS_SQL)
    return state_of(row, publishing._index_of(statements))  # noqa: SLF001


publishing._compare = _any_epoch  # noqa: SLF001
Registration.is_dead = lambda self, worker: worker != self.id  # type: ignore[method-assign]
WorkIndex.check_held = lambda _: None  # type: ignore[method-assign]
