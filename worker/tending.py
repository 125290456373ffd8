"""One index in the care of this worker: take it, apply, build, collect, let go.

A turn is everything that is due now, in order. Turns of one index never overlap; a build runs beside turns, so that
applying goes on, and its result is published by the turn that follows.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, MutableMapping
from collections.abc import Sequence as Items
from dataclasses import replace

import structlog

from storage.backends.sqlite.state import ColumnRow, LeaseLost, ManifestMoved
from storage.backends.sqlite.workshop import WorkIndex, segment_name
from storage.errors import StorageError
from storage.records import IndexId, MetadataIndex, Sequence
from storage.segment.read import OpenSegment
from storage.settings import Settings
from storage.telemetry import BUILDS_FAILED, MERGES, SEALS
from worker.apply import POISON, apply_next
from worker.collect import Collector
from worker.fitting import Fitting
from worker.jobs import BuildAnswer, BuildFailed, BuildJob, run_builder
from worker.lease import Registration
from worker.policy import (
    Backfill,
    Bounds,
    Job,
    Merge,
    Seal,
    SegmentFacts,
    TailFacts,
    bytes_of,
    due,
    due_after_ms,
    halves,
    tail_is_over,
)
from worker.scrub import Scrubber

log = structlog.get_logger()

BUILD_RETRY_S = 5.0
"""How long after a failed build the next is tried; it doubles up to the maximum."""
BUILD_RETRY_MAX_S = 300.0
RETRY_S = 0.5
"""How long after a turn that failed the next is due."""


class Tending:
    """This worker's care of one index. Call `turn` whenever something may be due."""

    def __init__(
        self,
        index: WorkIndex,
        settings: Settings,
        registration: Registration,
        builders: asyncio.Semaphore,
        published: Callable[[], None],
        wanted: Callable[[], None] = lambda: None,
        is_short: Callable[[], bool] = lambda: False,
        scrubbed_at: MutableMapping[IndexId, float] | None = None,
    ) -> None:
        """`published` is called when something became visible, `wanted` when a build's end calls for a turn.

        While `is_short` says that the disk is full, nothing is built: what room there is is for deletes.
        """
        self.index = index
        self._settings = settings
        self._registration = registration
        self._builders = builders
        self._published = published
        self._wanted = wanted
        self._is_short = is_short
        self._collector = Collector(index, settings)
        self.scrubber = Scrubber(index, settings, {} if scrubbed_at is None else scrubbed_at, wanted)
        self._build: asyncio.Task[None] | None = None
        self._build_retry_s = BUILD_RETRY_S
        self._build_not_before = 0.0
        self._wrote_at = time.monotonic()
        self._careful = False
        self._stopping = False
        self._due_at = time.monotonic()
        self._has_orphans = False
        self._fitting = Fitting(index.folder.path)
        self._is_built = False
        """Whether nothing will be due to be built until somebody writes."""

    def hear_of_room(self) -> None:
        """The disk was full and is not any more: a build that failed may be tried at once."""
        self._build_not_before, self._build_retry_s = 0.0, BUILD_RETRY_S

    def stop(self) -> None:
        """Finish the transaction under way and begin no other."""
        self._stopping = True

    @property
    def is_busy(self) -> bool:
        """Whether a build runs or waits."""
        return self._build is not None and not self._build.done()

    @property
    def due_at(self) -> float:
        """When the next turn is due though nobody rings, by the monotonic clock."""
        return self._due_at

    @property
    def wrote_at(self) -> float:
        """When mutations were last applied here, or the index was opened."""
        return self._wrote_at

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is left to do until somebody writes."""
        is_resting = self._collector.is_at_rest and not self.scrubber.is_busy
        return self._is_built and not self.is_busy and is_resting

    async def turn(self) -> bool:
        """Do everything that is due; False when the index belongs to another worker."""
        # If this turn fails, another is due soon.
        self._due_at, self._is_built = time.monotonic() + RETRY_S, False
        if not self.index.epoch and not await self._take():
            return False
        try:
            self.index.check_held()
            await self._apply_all()
            if self._stopping:
                return True
            await self._remove_orphans()
            await self.scrubber.turn()
            build_due_at = await self._plan_build()
            await self._collector.turn()
            self._due_at = min(build_due_at, self._collector.due_at(), self.scrubber.due_at())
        except LeaseLost:
            # Another worker took the index while this one was stopped; it goes on from where the state is.
            log.warning("lease.lost", index=self.index.spec.id)
            self.index.epoch = 0
            return False
        return True

    async def _take(self) -> bool:
        state = self.index.state()
        owner = state.owner
        # One of our own that could not be given back, or is being closed still, loses it to the raised epoch.
        if owner and owner != self._registration.id and not self._registration.is_dead(owner):
            return False
        try:
            found = await self.index.take(self._registration.id, state)
        except LeaseLost:
            return False
        # Whoever had the index did not let go of it: the next mutation may be what ended it.
        self._careful = bool(found.owner)
        log.info("lease.taken", index=self.index.spec.id, epoch=self.index.epoch, from_worker=found.owner)
        self._has_orphans = True
        self._fitting.take_up()
        return True

    async def _apply_all(self) -> None:
        while not self._stopping and not self._tail_is_over():
            try:
                applied = await apply_next(self.index, self._settings, alone=self._careful)
            except POISON as error:
                log.exception("mutation.failed", index=self.index.spec.id, error=str(error))
                self._careful = True
                continue
            if not applied:
                return
            self._careful = False
            self._wrote_at = time.monotonic()
            self._published()

    def _tail_is_over(self) -> bool:
        return tail_is_over(self.index.tail_bytes(self.index.state().sealed_through), self._settings)

    async def _remove_orphans(self) -> None:
        """Once for each time the index was taken, and behind what somebody waits for."""
        if self._has_orphans:
            await self.index.remove_orphans()
            self._has_orphans = False

    async def _plan_build(self) -> float:
        """Begin the build that is due; when none is, the time when one may be."""
        now = time.monotonic()
        if self.is_busy:
            return math.inf  # Its end asks for a turn.
        if now < self._build_not_before:
            return self._build_not_before
        if self._is_short():
            return now + RETRY_S
        tail, segments = self._tail(), self.index.segments()
        # A small index has no segments, and then nothing here needs its snapshot in memory.
        facts = await self._segments() if segments else []
        idle_ms = round((now - self._wrote_at) * 1000)
        indexes, bounds = self.index.metadata_indexes(), self._bounds()
        job = due(tail, facts, indexes, idle_ms=idle_ms, settings=self._settings, bounds=bounds)
        if job is not None:
            size = bytes_of(job, tail, facts, bounds)
            self._build = asyncio.create_task(
                self._run(halves(job, tail, len(segments), self._settings), size), name="build"
            )
            self._build.add_done_callback(lambda _: None if self._stopping else self._wanted())
            return math.inf
        waits_ms = due_after_ms(tail, facts, settings=self._settings)
        later = [at for ms in waits_ms if (at := self._wrote_at + ms / 1000) > now]
        self._is_built = not later
        return min(later, default=math.inf)

    def _tail(self) -> TailFacts:
        state = self.index.state()
        return TailFacts(
            through=state.applied,
            # Deletes have no rows to seal; they count all the same, for their bodies leave the log by being sealed.
            mutations=state.applied - state.sealed_through,
            parts=self.index.tail_parts(state.sealed_through),
        )

    async def _segments(self) -> list[SegmentFacts]:
        snapshot = await self.index.snapshot()
        backfilled = self.index.backfilled()
        facts = []
        for live_part in snapshot.parts:
            part = live_part.part
            if isinstance(part, OpenSegment):
                columns = {
                    index.id
                    for index in snapshot.metadata_indexes
                    if (part.name, index.id) in backfilled or part.column(index) is not None
                }
                facts.append(
                    SegmentFacts(
                        name=part.name,
                        rows=part.rows,
                        dead=part.rows - live_part.live_count,
                        columns=frozenset(columns),
                        is_damaged=bool(part.damaged),
                    )
                )
        return facts

    def _bounds(self) -> Bounds:
        fits = self._fitting.bytes_max
        row_bytes = 4 * self.index.spec.config.dimensions
        return Bounds(row_bytes=row_bytes, seal=fits("seal"), merge=fits("merge"), backfill=fits("backfill"))

    async def _run(self, jobs: Items[Job], size: int) -> None:
        """Build all at once, publish in order, ring; a failure is told and tried again later, with less where it was
        too much."""
        kind = type(jobs[0]).__name__.lower()
        try:
            async with self._builders:
                if not self.index.epoch:
                    return
                started, epoch = time.monotonic(), self.index.epoch
                orders = [replace(self._order(job), share=len(jobs)) for job in jobs]
                answers = await self._built(orders, size)
            for job, answer in zip(jobs, answers, strict=True):
                await self._publish(job, answer, epoch)
        except (BuildFailed, ManifestMoved, StorageError) as error:
            log.error("build.failed", index=self.index.spec.id, job=kind, reason=str(error))
            self._build_not_before = time.monotonic() + self._build_retry_s
            self._build_retry_s = min(2 * self._build_retry_s, BUILD_RETRY_MAX_S)
        except LeaseLost:
            self.index.epoch = 0
        else:
            self._build_retry_s = BUILD_RETRY_S
            log.info(
                "build.published",
                index=self.index.spec.id,
                job=kind,
                rows=sum(answer.segment.rows for answer in answers if answer.segment),
                builds=len(jobs),
                seconds=round(time.monotonic() - started, 3),
            )
            self._published()

    async def _built(self, orders: Items[BuildJob], size: int) -> Items[BuildAnswer]:
        self._fitting.begin(orders[0].kind, size)
        builds = [asyncio.create_task(run_builder(order), name="builder") for order in orders]
        try:
            return await asyncio.gather(*builds)
        except BuildFailed as error:
            BUILDS_FAILED.inc()
            if error.is_too_large:
                self._fitting.fail(str(error))
                self._build_retry_s = BUILD_RETRY_S
            raise
        finally:
            # One that failed, or was given up, ends the others: nothing is published of what was to follow it.
            for build in builds:
                build.cancel()
            await asyncio.gather(*builds, return_exceptions=True)
            self._fitting.end()

    def _order(self, job: Job) -> BuildJob:
        through = after = Sequence(0)
        inputs: tuple[str, ...] = ()
        metadata_index: MetadataIndex | None = None
        match job:
            case Seal(through, after):
                kind = "seal"
            case Merge(inputs):
                kind = "merge"
            case Backfill(segment, index):
                metadata_index = index
                kind, inputs = "backfill", (segment,)
        return BuildJob(
            kind=kind,
            index=self.index.spec.id,
            folder=self.index.folder.path.absolute(),
            # Names are never used twice, so a worker of an older epoch cannot write over one of ours.
            name=segment_name(self.index.epoch, uuid.uuid4().hex),
            config=self.index.spec.config,
            after=after,
            through=through,
            inputs=inputs,
            metadata_index=metadata_index,
            graph_rows_min=self._settings.graph_rows_min,
            threads=self._settings.builder_threads,
        )

    async def _publish(self, job: Job, answer: BuildAnswer, epoch: int) -> None:
        if self.index.epoch != epoch:
            # The index was another worker's meanwhile, who may have sealed or merged the very same rows.
            raise ManifestMoved(f"the build began under epoch {epoch}; the index is held under {self.index.epoch}")
        match job:
            case Seal(through):
                await self.index.publish(inputs=(), segment=answer.segment, sealed_through=through)
                SEALS.inc()
            case Merge(inputs):
                await self.index.publish(inputs=inputs, segment=answer.segment, sealed_through=None)
                MERGES.inc()
            case Backfill(segment, metadata_index):
                await self.index.publish_column(
                    ColumnRow(segment, metadata_index.id, answer.column_file, answer.column_checksum)
                )

    async def close(self) -> None:
        """Stop building and let go of the index."""
        self._stopping = True
        if self._build is not None:
            self._build.cancel()
            await asyncio.gather(self._build, return_exceptions=True)
        await self._collector.close()
        await self.scrubber.close()
        await self.index.close()
