"""A build that is broken on purpose: a segment is named after what is in it, so two workers may give one name."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

from worker.jobs import BuildJob
from worker.policy import Job
from worker.tending import Tending

_order = Tending._order  # noqa: SLF001


def _named_after_its_content(self: Tending, job: Job) -> BuildJob:
    order = _order(self, job)
    return replace(order, name=f"1-{order.kind}-{order.through}-{crc32(repr(order.inputs).encode()):x}")


Tending._order = _named_after_its_content  # type: ignore[method-assign]  # noqa: SLF001
