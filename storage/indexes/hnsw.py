"""A navigable graph over vectors, built and viewed with usearch.

The graph walks a space of its own, in which near means a good score, and holds a copy of the vectors in
bfloat16. It only proposes rows: scores always come from the float32 values.

* cosine: vectors of length one, compared by inner product (27 % faster here than usearch's cosine, which
  divides by lengths that are known). The zero vector stays zero.
* euclidean: distances do not change when everything is moved and scaled alike, and bfloat16 has eight bits,
  so vectors are moved by a centre and scaled by a typical distance from it.
* dot-product: vectors are divided by the greatest length and get one component more that makes each as long
  as one; queries have zero there. Then the nearest row is the one with the greatest inner product, and
  every row is nearest to itself. Squared distance is used rather than inner product: rounding the added
  component then cancels between stored vectors (a sixth as many rows were lost on word vectors of mixed
  lengths, at equal recall).

Rows that are the same in this space are *twins*: one of them is in the graph and stands for all, since three
hundred rows alike among three thousand cut two hundred of their neighbours off the graph.

One usearch object answers one search at a time and the expansion is an attribute of the object, so a lock
holds the two together. What is being built is never searched; what is searched is a view of a finished
file, and the caller has verified the checksum of that file: usearch trusts every byte of it, and a flipped
bit kills the process.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from usearch.compiled import MetricKind, ScalarKind
from usearch.index import BatchMatches, Index, Matches

from storage.errors import SegmentDamaged, StoreFull
from storage.pages import mapped
from storage.records import Metric

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

RECALLS = (0.90, 0.95, 0.98, 0.99)
"""The recalls whose expansions are measured."""
COUNTS = (10, 100)
"""The numbers of answers at which they are measured."""
EXPANSION_ADD = 128
"""The candidates weighed when a vector is linked. Four times as many halved what was lost on the hardest
vectors and took four times as long; more links cost less."""
BLOCK_BYTES = 32 * 1024 * 1024
"""The float32 bytes of vectors that are prepared at a time."""
_CENTRE_ROWS = 4_096  # A centre of a sample is as good as one of all: it only has to save bits.
_UNIT_NUMBERS = 1 << 15  # 256 KiB of float64.
_COSINE_ERROR = np.float32(2 * (2 * 2.0**-9 + 2.0**-18) + 2.0**-11)
"""How much farther than another a row can seem at most, of vectors of length one, and be as near: each of the two
products is off by no more than the rounding of its vectors to bfloat16, half a unit of eight bits in every component;
the rest pays for float32 sums of any order. It leaves 14 rows of 30 to be scored, of words and of text embeddings."""
_LENGTH_MAX = 1e15  # Squared distances of vectors this long stay below the largest float32.


def candidate_count(count: int) -> int:
    """How many rows to ask a graph for when `count` answers are wanted: reranking repairs what rounding
    mixed up."""
    return max(2 * count, count + 20)


class Precision(StrEnum):
    """The numbers of the graph's own copy. The spellings reach disk."""

    BF16 = "bf16"
    F32 = "f32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a graph is built: links per vector (twice as many on the lowest level) and the precision of its
    copy.

    Thirty-two links held recall 0.95 at 5,956 queries a second where sixteen held it at 5,358 (100,000 word
    vectors); they cost 128 bytes more per vector.
    """

    connectivity: int = 32
    precision: Precision = Precision.BF16


FORMS = (Form(), Form(connectivity=64), Form(connectivity=64, precision=Precision.F32))
"""The forms to try, in order, until one loses few enough vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """How vectors of an index are laid into the space of one graph. `centre` is empty except for
    euclidean."""

    metric: Metric
    dimensions: int
    scale: float
    centre: NDArray[np.float64]

    @classmethod
    def of(cls, metric: Metric, vectors: Floats, norms: NDArray[np.float64]) -> Space:
        """The space for these vectors, whose Euclidean lengths are `norms`."""
        rows, dimensions = vectors.shape
        scale, centre = 1.0, np.zeros(0)
        match metric:
            case Metric.COSINE:
                pass
            case Metric.EUCLIDEAN:
                sample = vectors[:: max(1, rows // _CENTRE_ROWS)].astype(np.float64)
                # Medians: one vector of 1e38 must not decide for all others.
                centre = np.median(sample, axis=0)
                scale = float(np.median(_lengths(sample - centre)))
            case Metric.DOT_PRODUCT:
                scale = float(norms.max(initial=0.0))
        return cls(metric=metric, dimensions=dimensions, scale=scale or 1.0, centre=centre)

    @property
    def graph_dimensions(self) -> int:
        """How many components a vector has in the graph."""
        return self.dimensions + (self.metric is Metric.DOT_PRODUCT)

    @property
    def kind(self) -> MetricKind:
        """How usearch compares two vectors of this space."""
        return MetricKind.IP if self.metric is Metric.COSINE else MetricKind.L2sq

    def stored(self, vectors: Floats) -> Floats:
        """Vectors as the graph stores them; also how it is asked for them by their own values."""
        match self.metric:
            case Metric.COSINE:
                return _unit(vectors)
            case Metric.EUCLIDEAN:
                return self._moved(vectors.astype(np.float64))
            case Metric.DOT_PRODUCT:
                wide = vectors.astype(np.float64) / self.scale
                rest = np.sqrt(np.maximum(0.0, 1.0 - np.square(wide).sum(axis=1)))
                return np.concatenate([wide, rest[:, np.newaxis]], axis=1).astype(np.float32)

    def question(self, query: Floats) -> Floats:
        """One query as the graph is asked it: float32[1, graph_dimensions]."""
        if self.metric is not Metric.COSINE:
            return self.asked(query[np.newaxis])
        wide = query.astype(np.float64)
        length = math.sqrt(wide @ wide)
        if length:
            wide /= length
        return wide.astype(np.float32)[np.newaxis]

    def asked(self, queries: Floats) -> Floats:
        """Queries as the graph is asked."""
        match self.metric:
            case Metric.COSINE:
                return _unit(queries)
            case Metric.EUCLIDEAN:
                return self._moved(queries.astype(np.float64))
            case Metric.DOT_PRODUCT:
                return np.concatenate([_unit(queries), np.zeros((len(queries), 1), np.float32)], axis=1)

    def distances(self, asked: Floats, stored: Floats) -> Floats:
        """How far stored vectors are from queries of this space, smaller is nearer: float32[queries, vectors]."""
        dots: Floats = asked @ stored.T
        if self.kind is MetricKind.IP:
            return np.negative(dots, out=dots)
        dots *= -2
        dots += np.einsum("rd,rd->r", stored, stored)
        return dots

    @property
    def block_rows(self) -> int:
        """How many vectors are prepared at a time."""
        return max(1, BLOCK_BYTES // (4 * self.dimensions))

    def blocks(self, vectors: Floats) -> Iterator[tuple[slice, Floats]]:
        """All vectors as they are stored, a bounded number at a time, with where they lie."""
        for start in range(0, len(vectors), self.block_rows):
            block = slice(start, min(start + self.block_rows, len(vectors)))
            yield block, self.stored(vectors[block])

    def _moved(self, vectors: NDArray[np.float64]) -> Floats:
        moved = (vectors - self.centre) / self.scale
        lengths = _lengths(moved)
        # What lies absurdly far out is pulled in along its own direction, so that no distance becomes
        # infinite.
        far = lengths > _LENGTH_MAX
        moved[far] *= (_LENGTH_MAX / lengths[far])[:, np.newaxis]
        return moved.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Rows that are not in a graph because another row there is the same: `firsts[i]` stands for `rows[i]`.

    Both ascend, `firsts` first. The first of rows alike stands for the others.
    """

    firsts: Rows
    rows: Rows

    @classmethod
    def among(cls, space: Space, vectors: Floats) -> Twins:
        """Find the twins among vectors."""
        hashes = np.empty((len(vectors), 2), dtype=np.uint64)
        for block, stored in space.blocks(vectors):
            # Zeros of both signs are one number, so they must be the same bytes.
            lines = [xxhash.xxh3_128_digest(line.data) for line in stored + np.float32(0)]
            hashes[block] = np.frombuffer(b"".join(lines), dtype=np.uint64).reshape(-1, 2)
        _, starts, groups = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
        firsts = starts[groups.reshape(-1)]
        rows = np.flatnonzero(firsts != np.arange(len(vectors)))
        order = np.lexsort((rows, firsts[rows]))
        return cls(firsts=firsts[rows][order], rows=rows[order])

    def __len__(self) -> int:
        return len(self.rows)

    def behind(self, rows: Rows, *, count: int) -> Rows:
        """These rows, each followed by its twins; at most `count` in all."""
        if not len(self.rows):
            return rows[:count]
        starts = np.searchsorted(self.firsts, rows, side="left")
        ends = np.searchsorted(self.firsts, rows, side="right")
        if bool((starts == ends).all()):
            return rows[:count]
        pieces: list[Rows] = []
        left = count
        for row, start, end in zip(rows, starts.tolist(), ends.tolist(), strict=True):
            if left <= 0:
                break
            pieces += [np.array([row]), self.rows[start : min(end, start + left - 1)]]
            left -= 1 + len(pieces[-1])
        return np.concatenate(pieces)


class Companions:
    """Rows that a walk loses, each tied to rows near it that are found: `pairs` of an anchor and a row it brings along.

    So what the links of the graph leave out is proposed wherever its neighbourhood is, without a scan: a list of 650
    such rows of 768 dimensions cost half as much to scan as the walk itself.
    """

    def __init__(self, pairs: NDArray[np.integer[Any]]) -> None:
        """`pairs` is [pairs, 2], in any order."""
        ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self.pairs: Rows = ordered.astype(np.int64)
        self._rows = self.pairs[:, 1].tolist()
        # Those of anchor a are rows[ends[a]:ends[a + 1]]; a lookup, where a search would miss the cache at every step.
        anchors = self.pairs[:, 0]
        self._ends = np.searchsorted(anchors, np.arange(int(anchors.max(initial=-1)) + 2)).astype(np.uint32)
        self._until = self._ends[1:]

    @property
    def rows(self) -> Rows:
        """The rows that come along with others."""
        return np.unique(self.pairs[:, 1])

    def beside(self, found: Rows) -> list[int]:
        """What comes along with rows that were found, without those themselves; each once."""
        if not self._rows:
            return []
        starts, ends = self._ends.take(found, mode="clip"), self._until.take(found, mode="clip")
        [places] = (starts != ends).nonzero()
        if not len(places):
            return []
        spans = zip(starts[places].tolist(), ends[places].tolist(), strict=True)
        along = {row for start, end in spans for row in self._rows[start:end]}
        return sorted(along.difference(found.tolist()))


NO_COMPANIONS = Companions(np.zeros((0, 2), np.int64))
NO_TWINS = Twins(firsts=np.zeros(0, np.int64), rows=np.zeros(0, np.int64))


class Expansions:
    """The smallest expansions that reached each recall, by number of answers, and a floor under them all."""

    def __init__(self, measured: Mapping[int, Mapping[float, int]], *, floor: int) -> None:
        self.measured = {count: dict(by_recall) for count, by_recall in measured.items()}
        self.floor = floor

    def at(self, *, count: int, recall: float) -> int:
        """The expansion for `count` answers at `recall`; 0 where it is not known to be reached.

        Between the measured numbers of answers it is interpolated upwards, and never below that of the
        smaller; above the largest it grows with the number.
        """
        few, many = (self._reaching(recall, known) for known in COUNTS)
        if count <= COUNTS[0]:
            return max(few, self.floor) if few else 0
        if not many:
            return 0
        if count > COUNTS[1]:
            return max(-(-many * count // COUNTS[1]), self.floor)
        if not few:
            return max(many, self.floor)
        share = (count - COUNTS[0]) / (COUNTS[1] - COUNTS[0])
        return max(few, int(np.ceil(few + (many - few) * share)), self.floor)

    def _reaching(self, recall: float, count: int) -> int:
        by_recall = self.measured.get(count, {})
        return min((expansion for reached, expansion in by_recall.items() if reached >= recall), default=0)


class HnswGraph:
    """A finished graph: the `Graph` promises of `storage.snapshot`, and searches of many vectors at once."""

    def __init__(
        self,
        index: Index,
        space: Space,
        labels: NDArray[np.uint64],
        twins: Twins,
        side: Rows,
        expansions: Expansions,
        companions: Companions = NO_COMPANIONS,
        file: memoryview | None = None,
    ) -> None:
        """`file` is what `index` looks into, where it is a view: it must not go before the index does."""
        self._index = index
        self._file = file
        self._twins = twins
        self._companions = companions
        self._space = space
        self._labels = labels
        self._side = side
        self._expansions = expansions
        self._lock = threading.Lock()
        # Where no label is left out, a row is a subtraction; a binary search misses the cache at every step.
        gapless = len(labels) > 0 and int(labels[-1] - labels[0]) == len(labels) - 1
        self._gapless_from = labels[0] if gapless else None

    @property
    def side(self) -> Rows:
        """Rows the graph cannot find by their own values; every search scans them exactly."""
        return self._side

    def expansion(self, *, count: int, recall: float) -> int:
        """The smallest expansion measured to reach `recall` at `count` answers, or 0 where none was."""
        return self._expansions.at(count=count, recall=recall)

    def search(self, query: Floats, *, count: int, expansion: int, best: int = 0) -> Rows:
        """Rows of the `count` nearest that the walk found, best first, without repeats, and their companions.

        With `best`, rows that are certainly not among so many best of all rows may be left out.
        """
        assert query.shape == (self._space.dimensions,)
        asked = self._space.question(query)
        count = min(count, len(self._labels))
        with self._lock:
            self._index.expansion_search = expansion  # type: ignore[misc]
            # Not through `Index.search`, which takes 25 us to look at its arguments and to wrap the answer.
            keys, distances, found, *_ = self._index._compiled.search_many(asked, count, threads=1)  # noqa: SLF001
        rows = self._rows_of(keys[0, : found[0]])
        along = self._companions.beside(rows)
        if 0 < best < len(rows) and self._space.metric is Metric.COSINE:
            near = distances[0, : len(rows)]
            rows = rows[: near.searchsorted(near[best - 1] + _COSINE_ERROR, side="right")]
        if len(self._twins):
            rows = self._twins.behind(rows, count=count)
            along = sorted({*along}.difference(rows.tolist()))
        return np.concatenate([rows, along]) if along else rows

    def _rows_of(self, labels: NDArray[np.uint64]) -> Rows:
        if self._gapless_from is not None:
            offsets: Rows = (labels - self._gapless_from).astype(np.int64)
            return offsets
        return np.searchsorted(self._labels, labels)

    def walk(self, asked: Floats, *, count: int, expansion: int, threads: int) -> Rows:
        """What the graph itself finds for many vectors of its own space: a line of rows each, twins left out.

        A line is filled up with -1.
        """
        count = min(count, len(self._labels))
        matches = self._matches(asked, count=count, expansion=expansion, threads=threads)
        lines = np.full((len(asked), count), -1, dtype=np.int64)
        if isinstance(matches, BatchMatches):
            filled = np.arange(count) < np.asarray(matches.counts)[:, np.newaxis]
            lines[filled] = np.searchsorted(self._labels, matches.keys[filled])
        else:  # What usearch answers to a single query.
            lines[0, : len(matches.keys)] = np.searchsorted(self._labels, matches.keys)
        return lines

    def _matches(self, asked: Floats, *, count: int, expansion: int, threads: int) -> Matches | BatchMatches:
        with self._lock:
            # Its setter is written where mypy does not look for it.
            self._index.expansion_search = expansion  # type: ignore[misc]
            return self._index.search(asked, count, threads=threads)


class GraphDraft:
    """A graph in memory that grows. Asked and added to in turn, never at once."""

    def __init__(self, space: Space, labels: NDArray[np.uint64], vectors: Floats, *, form: Form, threads: int) -> None:
        """`threads` 0 takes every core; with several, two graphs of the same rows differ."""
        self._space = space
        self._labels = labels
        self._vectors = vectors
        self._threads = threads
        self._index = Index(
            ndim=space.graph_dimensions,
            metric=space.kind,
            dtype=_SCALARS[form.precision],
            connectivity=form.connectivity,
            expansion_add=EXPANSION_ADD,
            enable_key_lookups=False,
        )

    def add(self, kept: NDArray[np.bool_]) -> None:
        """Add the rows of a mask."""
        rows = np.flatnonzero(kept)
        step = self._space.block_rows
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            self._index.add(self._labels[block], self._space.stored(self._vectors[block]), threads=self._threads)

    def graph(self, twins: Twins) -> HnswGraph:
        """What has been added so far, to be asked before more is."""
        return HnswGraph(self._index, self._space, self._labels, twins, np.zeros(0, np.int64), Expansions({}, floor=0))

    def save(self, path: Path) -> None:
        """Write the graph to `path`, neither fsynced nor verified. Raises StoreFull."""
        assert not path.exists(), "usearch truncates what it saves over, and a reader of it dies"
        try:
            self._index.save(path)
        except RuntimeError as error:
            raise StoreFull(f"usearch could not write {path}: {error}") from error


def build_graph(
    path: Path,
    space: Space,
    labels: NDArray[np.uint64],
    vectors: Floats,
    *,
    twins: Twins,
    form: Form,
    threads: int,
) -> None:
    """Write a new graph of all rows but the twins to `path`. Raises StoreFull."""
    kept = np.ones(len(labels), dtype=np.bool_)
    kept[twins.rows] = False
    draft = GraphDraft(space, labels, vectors, form=form, threads=threads)
    draft.add(kept)
    draft.save(path)


def view_graph(
    path: Path,
    space: Space,
    labels: NDArray[np.uint64],
    *,
    form: Form,
    twins: Twins,
    side: Rows,
    expansions: Expansions,
    companions: Companions = NO_COMPANIONS,
) -> HnswGraph:
    """Map a finished graph. The caller has verified its checksum. Raises SegmentDamaged if it is another
    graph."""
    # Rows are found by binary search in the labels, so the hash table of keys would only cost time and
    # memory.
    try:
        file = mapped(path)
    except FileNotFoundError as error:
        raise SegmentDamaged(f"the graph {path} is missing") from error
    index = Index.restore(file, view=True, enable_key_lookups=False)
    assert index is not None
    found = (len(index), index.ndim, index.metric_kind, index.dtype)
    wanted = (len(labels) - len(twins), space.graph_dimensions, space.kind, _SCALARS[form.precision])
    if found != wanted:
        raise SegmentDamaged(f"the graph {path} has (rows, dimensions, metric, numbers) {found}, not {wanted}")
    return HnswGraph(index, space, labels, twins, side, expansions, companions, file)


_SCALARS = {Precision.BF16: ScalarKind.BF16, Precision.F32: ScalarKind.F32}


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.square(vectors).sum(axis=1))
    return lengths


def _unit(vectors: Floats) -> Floats:
    """Vectors of length one; zero stays zero. A few at a time: as float64 they fit the nearest cache, which is several
    times faster than a pass over memory for each step."""
    unit = np.empty(vectors.shape, dtype=np.float32)
    step = max(1, _UNIT_NUMBERS // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        wide = vectors[start : start + step].astype(np.float64)
        lengths = _lengths(wide)
        lengths[lengths == 0] = 1.0
        unit[start : start + step] = wide / lengths[:, np.newaxis]
    return unit
