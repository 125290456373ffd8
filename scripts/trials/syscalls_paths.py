"""The paths whose every file-changing call is a point to be killed at: what is there before, and what is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.trials.crash_writes import BATCH_MAX, Write
from scripts.trials.syscalls_site import Step
from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.driver import connect
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.migrate import migrations
from storage.backends.sqlite.restoring import restore
from storage.settings import Settings
from worker.tending import Tending

NEVER = 1 << 40
CALM = Settings(
    seal_bytes=NEVER,
    seal_mutations=NEVER,
    seal_idle_ms=NEVER,
    merge_idle_ms=NEVER,
    segments_max=100,
    dead_share_max=1.0,
    grace_ms=NEVER,
    sweep_ms=100,
    graph_rows_min=20,
    builder_threads=1,
    scrub_interval_ms=0,
    reserve_bytes=65_536,
    log_level="info",
)
"""Nothing is built or collected."""
SEALING = replace(CALM, seal_mutations=1)
MERGING = replace(CALM, segments_max=1, merge_idle_ms=0)
COLLECTING = replace(CALM, grace_ms=50)

REGISTER = "data/workers.db"

Holds = Callable[[Tending], bool]


def _anything(_: Tending) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some steps under some settings, until something holds. Without a worker nothing is applied."""

    steps: tuple[Step, ...] = ()
    settings: Settings = CALM
    with_worker: bool = True
    until: Holds = _anything
    after: Callable[[Path], None] | None = None
    """Done to the folder afterwards, when nothing runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path. `before` makes the folder; `stage` or `does` is what is killed, at every call in turn."""

    name: str
    before: tuple[Stage, ...] = ()
    stage: Stage | None = None
    does: Callable[[Path], None] | None = None
    copies: str = ""
    """Where the copy is, below the folder of the trial, that must be whole whenever it is there."""
    has_copy: bool = False
    """Whether there is a copy already, so that there must always be one."""
    counts: Callable[[str], bool] = lambda file: not file.startswith(REGISTER) and not file.endswith("-shm")
    """Whose calls are meant. The register of workers is written every second, so it is a path of its own; and what
    SQLite shares in `-shm` files is made anew by the first who opens a database."""


def _upserts(begin: int, count: int) -> tuple[Step, ...]:
    return tuple(Step(write=_rows("upsert", number)) for number in range(begin, begin + count))


def _rows(action: str, number: int) -> Write:
    ids = [f"v{(number * 7 + place * 3) % 60:03}" for place in range(6)]
    return Write(action, tuple((id, number * (BATCH_MAX + 1) + place) for place, id in enumerate(ids)))


MAKE = (Step(make="docs"), Step(write=Write.anchors(0)), *_upserts(10, 5))
EVERY_KIND = (
    Step(write=Write("create_metadata_index", indexed="group")),
    Step(write=_rows("upsert", 20)),
    Step(write=_rows("insert", 21)),
    Step(write=Write("delete_by_ids", (("v000", 0), ("v003", 0), ("nobody", 0)))),
    Step(write=Write("delete_by_filter", group=7)),
    Step(write=Write("create_metadata_index", indexed="shade")),
    Step(write=Write("delete_metadata_index", indexed="group")),
    Step(write=_rows("upsert", 22)),
)


def _sealed(tending: Tending) -> bool:
    return tending.index.state().sealed_through == tending.index.state().applied


def _merged(tending: Tending) -> bool:
    return len(tending.index.segments()) == 1


def _filled(tending: Tending) -> bool:
    return len(tending.index.backfilled()) >= len(tending.index.segments())


def _collected(tending: Tending) -> bool:
    index = tending.index
    return tending.is_at_rest and not index.garbage() and index.state().collected_layout == index.state().layout


def _three(tending: Tending) -> bool:
    return len(tending.index.segments()) == 3


_SEGMENTS = (
    Stage(steps=MAKE),
    Stage(settings=SEALING, until=_sealed),
    Stage(steps=_upserts(30, 4)),
    Stage(settings=SEALING, until=_sealed),
    Stage(steps=(*_upserts(40, 3), Step(write=Write("delete_by_filter", group=11)))),
    Stage(settings=SEALING, until=_three),
)
"""Three segments with dead rows, one after the other."""
_MERGED = (*_SEGMENTS, Stage(settings=MERGING, until=_merged))

TABLES_SQL = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'migrations'"


def _later_tables(kind: str) -> set[str]:
    """What migrations after the first have made."""
    known = []
    with contextlib.closing(connect(":memory:", isolation_level=None)) as connection:
        for step in migrations(kind):
            connection.executescript(step.sql)
            known.append({name for (name,) in connection.execute(TABLES_SQL).fetchall()})
    return known[-1] - known[0]


def as_of_old(folder: Path) -> None:
    """Make the databases what the first version of their schema wrote."""
    data = DataFolder(folder / "data")
    for kind in ("state", "control"):
        later = _later_tables(kind)
        assert later, "there is something to migrate"
        drops = "".join(f"DROP TABLE {name};" for name in sorted(later))
        for path in [data.control] if kind == "control" else data.indexes.glob("*/state.db"):
            with contextlib.closing(connect(path, isolation_level=None)) as connection:
                connection.executescript(f"BEGIN; {drops} DELETE FROM migrations WHERE number > 1; COMMIT;")


def _back_up(folder: Path) -> None:
    back_up(DataFolder(folder / "data"), folder / "backup", program="trial")


def _back_up_archive(folder: Path) -> None:
    back_up(DataFolder(folder / "data"), folder / "backup.tar", program="trial")


def _restore(folder: Path) -> None:
    restore(folder / "backup", folder / "restored")


ROUTES = (
    Route(name="ingest", before=(Stage(steps=MAKE),), stage=Stage(steps=EVERY_KIND, with_worker=False)),
    Route(
        name="create and delete",
        before=(Stage(steps=MAKE),),
        stage=Stage(
            steps=(Step(make="one"), Step(make="two"), Step(drop="one"), *_upserts(60, 1), Step(drop="two")),
            settings=COLLECTING,
        ),
    ),
    Route(
        name="apply",
        before=(Stage(steps=MAKE), Stage(steps=EVERY_KIND, with_worker=False)),
        stage=Stage(),
    ),
    Route(
        name="seal",
        before=(Stage(steps=(*MAKE, *EVERY_KIND)),),
        stage=Stage(settings=SEALING, until=_sealed),
    ),
    Route(name="merge", before=_SEGMENTS, stage=Stage(settings=MERGING, until=_merged)),
    Route(
        name="back-fill",
        before=(*_SEGMENTS, Stage(steps=EVERY_KIND[5:6], with_worker=False)),
        stage=Stage(until=_filled),
    ),
    Route(
        name="heartbeat",
        before=(Stage(steps=MAKE),),
        stage=Stage(steps=_upserts(60, 1)),
        counts=lambda file: file.startswith(REGISTER),
    ),
    Route(name="collect", before=_MERGED, stage=Stage(settings=COLLECTING, until=_collected)),
    Route(name="migrate", before=(*_SEGMENTS, Stage(steps=EVERY_KIND, after=as_of_old)), stage=Stage()),
    Route(name="backup", before=(*_SEGMENTS, Stage(steps=EVERY_KIND)), does=_back_up, copies="backup"),
    Route(
        name="backup brought up to date",
        before=(*_SEGMENTS, Stage(after=_back_up), Stage(steps=EVERY_KIND), Stage(settings=MERGING, until=_merged)),
        does=_back_up,
        copies="backup",
        has_copy=True,
    ),
    Route(name="backup to an archive", before=(*_SEGMENTS,), does=_back_up_archive, copies="backup.tar"),
    Route(
        name="restore",
        before=(*_SEGMENTS, Stage(steps=EVERY_KIND, after=_back_up)),
        does=_restore,
        copies="restored",
    ),
)
