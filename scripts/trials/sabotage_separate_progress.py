"""A build that is broken on purpose: progress moves in one transaction, and the rows come in the next."""

from __future__ import annotations

from typing import Any

from storage.apply import Effects
from storage.backends.sqlite import publishing

_write_rows, _apply = publishing._write_rows, publishing.StateWriter.apply  # noqa: SLF001


async def _apply_apart(self: publishing.StateWriter, epoch: int, expected: Any, effects: Effects, to: Any) -> None:
    publishing._write_rows = lambda *_: None  # noqa: SLF001
    try:
        await _apply(self, epoch, expected, effects, to)
    finally:
        publishing._write_rows = _write_rows  # noqa: SLF001
    now_ms = publishing.time.time_ns() // 1_000_000

    def work(statements: publishing.Statements) -> None:
        change = publishing.Change()
        _write_rows(statements, effects, now_ms, change)
        publishing._settle(statements, change)  # noqa: SLF001

    await self.database.at_once(work)


publishing.StateWriter.apply = _apply_apart  # type: ignore[method-assign]
