"""What to build next for one index: pure.

Sealing turns the tail into a segment when scanning it costs more than walking a graph would. Back-filling gives old
segments the columns they lack. Merging keeps the number of segments small, because a query's cost grows with it, and
gives back the space of dead rows. One job at a time, in that order of urgency; a large one of sealing is done in
halves, side by side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

from storage.records import MetadataIndex, Sequence
from storage.settings import MIB, Settings

IDLE_SEAL_BYTES = MIB
"""An idle index seals a tail larger than this: its log should not stay large for ever."""
HALVES_SHARE = 3
"""How many times the segments of an index at rest a load may leave by sealing in halves."""
HALF_BYTES_MIN = 16 * MIB
"""What is sealed in halves has at least this in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFacts:
    """The tail as it is: mutations of every kind `through` a sequence, and of those with rows, in order, each with the
    bytes of its body, dead rows included."""

    through: Sequence
    mutations: int
    parts: Items[tuple[Sequence, int]]

    @property
    def bytes(self) -> int:
        """Of all bodies."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """One segment as it is. `columns` are the ids of the metadata indexes it has columns for.

    `is_damaged` says that a derived file was not what was written: the segment answers without it, slower.
    """

    name: str
    rows: int
    dead: int
    columns: frozenset[int]
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Seal:
    """Turn the tail `after` a sequence and up to another into a segment."""

    through: Sequence
    after: Sequence = Sequence(0)


@dataclass(frozen=True, slots=True)
class Merge:
    """Write the live rows of segments into one."""

    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Backfill:
    """Write the column of one metadata index for one segment."""

    segment: str
    metadata_index: MetadataIndex


Job = Seal | Merge | Backfill


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may be built at once, in bytes of vectors; `row_bytes` are those of one."""

    row_bytes: int = 0
    seal: float = math.inf
    merge: float = math.inf
    backfill: float = math.inf


UNBOUNDED = Bounds()


def due(
    tail: TailFacts,
    segments: Items[SegmentFacts],
    metadata_indexes: Items[MetadataIndex],
    *,
    idle_ms: int,
    settings: Settings,
    bounds: Bounds = UNBOUNDED,
) -> Job | None:
    """The most urgent job, or None when the index is as it should be, or as near to it as `bounds` allow."""
    if _seal_is_due(tail, idle_ms, settings):
        return Seal(_fitting(tail, _piece(tail, len(segments), settings), bounds))
    for segment in segments:
        for index in metadata_indexes:
            if index.id not in segment.columns and segment.rows * bounds.row_bytes <= bounds.backfill:
                return Backfill(segment.name, index)
    for inputs in _merges(segments, idle_ms, settings):
        if fitting := _fitting_inputs(inputs, bounds):
            return Merge(tuple(segment.name for segment in fitting))
    return None


def bytes_of(job: Job, tail: TailFacts, segments: Items[SegmentFacts], bounds: Bounds) -> int:
    """The bytes of vectors that go into a job."""
    match job:
        case Seal(through):
            return sum(size for sequence, size in tail.parts if sequence <= through)
        case Merge(inputs):
            return sum(_live(segment) for segment in segments if segment.name in inputs) * bounds.row_bytes
        case Backfill(name, _):
            return sum(segment.rows for segment in segments if segment.name == name) * bounds.row_bytes


def halves(job: Job, tail: TailFacts, segments: int, settings: Settings) -> tuple[Job, ...]:
    """A large seal as two that are built at once, to be published in this order; anything else as it is.

    Two threads that build one graph keep 1.6 cores busy, and what is done before and after it one. Two graphs of half
    the vectors, with a thread each, keep two busy, and smaller graphs take less work. Queries pay for each until they
    are merged, so an index that has many segments gets no more of them than it must.
    """
    has_many = segments + 2 > HALVES_SHARE * settings.segments_max
    if not isinstance(job, Seal) or settings.builder_threads == 1 or has_many:
        return (job,)
    parts = [(sequence, size) for sequence, size in tail.parts if sequence <= job.through]
    whole = sum(size for _, size in parts)
    ends = accumulate(size for _, size in parts)
    half = [sequence for (sequence, _), end in zip(parts, ends, strict=True) if HALF_BYTES_MIN <= end <= whole / 2]
    if whole < 2 * HALF_BYTES_MIN or not half:
        return (job,)
    return Seal(half[-1]), Seal(job.through, after=half[-1])


def due_after_ms(tail: TailFacts, segments: Items[SegmentFacts], *, settings: Settings) -> tuple[int, ...]:
    """The times without writes after which `due` may have another answer."""
    seal = (settings.seal_idle_ms,) if tail.mutations and tail.bytes > IDLE_SEAL_BYTES else ()
    return (*seal, settings.merge_idle_ms) if len(segments) > 1 else seal


def tail_is_over(tail_bytes: int, settings: Settings) -> bool:
    """Whether applying has to wait for a seal: queries stay fast and `/info` says the truth."""
    return tail_bytes >= settings.tail_bytes_max


def _seal_is_due(tail: TailFacts, idle_ms: int, settings: Settings) -> bool:
    if not tail.mutations:
        return False
    if tail.bytes >= settings.seal_bytes or tail.mutations >= settings.seal_mutations:
        return True
    return idle_ms >= settings.seal_idle_ms and tail.bytes > IDLE_SEAL_BYTES


def _piece(tail: TailFacts, segments: int, settings: Settings) -> Sequence:
    """How far to seal: what a bulk load left behind becomes about as many equal segments as an index has at rest.

    Four graphs of 25,000 vectors take a third less time to build than one of 100,000, their first vectors leave the
    tail in a quarter of it, and beside the small ones at the start of a load the last need not be large.
    """
    pieces = min(settings.segments_max - segments, tail.bytes // max(settings.seal_bytes, 1))
    if pieces < 2:
        return tail.through
    ends = accumulate(size for _, size in tail.parts)
    enough = tail.bytes / pieces
    return next(sequence for (sequence, _), end in zip(tail.parts, ends, strict=True) if end >= enough)


def _fitting(tail: TailFacts, through: Sequence, bounds: Bounds) -> Sequence:
    """As far as that, or no further than fits; at least one mutation, which cannot be divided."""
    ends = accumulate(size for _, size in tail.parts)
    fitting = [sequence for (sequence, _), end in zip(tail.parts, ends, strict=True) if end <= bounds.seal]
    if len(fitting) == len(tail.parts):
        return through
    return min(through, fitting[-1] if fitting else tail.parts[0][0])


def _merges(segments: Items[SegmentFacts], idle_ms: int, settings: Settings) -> Iterator[Items[SegmentFacts]]:
    """What should be merged, the most urgent first."""
    for segment in segments:
        if segment.is_damaged or segment.dead > segment.rows * settings.dead_share_max:
            yield [segment]
    if len(segments) > 1 and idle_ms >= settings.merge_idle_ms:
        yield segments
    if len(segments) > settings.segments_max:
        yield _smallest_tier(segments, settings.merge_ratio)


def _fitting_inputs(inputs: Items[SegmentFacts], bounds: Bounds) -> Items[SegmentFacts]:
    """The smallest of them, as many as fit together; none where what is left would change nothing."""
    by_size = sorted(inputs, key=_live)
    ends = accumulate(_live(segment) * bounds.row_bytes for segment in by_size)
    fitting = {segment.name for segment, end in zip(by_size, ends, strict=True) if end <= bounds.merge}
    if len(fitting) < min(len(inputs), 2):
        return ()
    return [segment for segment in inputs if segment.name in fitting]


def _live(segment: SegmentFacts) -> int:
    return segment.rows - segment.dead


def _smallest_tier(segments: Items[SegmentFacts], ratio: int) -> Items[SegmentFacts]:
    """The smallest segments of about one size, or the two smallest when no two are: rows are rewritten rarely."""
    tiers: defaultdict[int, list[SegmentFacts]] = defaultdict(list)
    for segment in segments:
        tiers[int(math.log(max(segment.rows, 1), ratio))].append(segment)
    for _, tier in sorted(tiers.items()):
        if len(tier) > 1:
            return tier
    return sorted(segments, key=lambda segment: segment.rows)[:2]
