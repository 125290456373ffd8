"""The data sets of the benchmark: vectors, held-out queries, metadata, filters, and the truth about them.

* `glove`: real word vectors (100-d, 341,479 words in a random order, local intrinsic dimension about 32: hard for a
  graph). Beyond the words there are, further rows are words once more with noise of a fifth of their length added: a
  stand-in for more data of the same shape, and called what it is wherever it is shown.
* `syn768`: 768-d, drawn from 2,000 Gaussian clusters with weights falling as rank^-0.6, centres in one 64-d subspace,
  each cluster spread in one of 32 shared 24-d subspaces, with noise of length 0.25 in all directions: local intrinsic
  dimension about 10 (15 among the 20 nearest, 6 among 100), as embeddings of text have.

All vectors have length one. A set is made once and kept in `.cache/bench/data`, seeded, so that two machines measure
the same numbers. Queries are never among the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from scripts.words import CACHE, load_words

QUERIES = 1_000
FILTERED_QUERIES = 200
NEAREST = 100
FILTERED_NEAREST = 10
SELECTIVITIES = (2, 10, 100, 1_000)
"""A filter on `random_10` or `region_10` leaves a tenth of the rows; and so on: 50 %, 10 %, 1 %, 0.1 %."""
FIELDS = tuple(f"{kind}_{number}" for kind in ("random", "region") for number in SELECTIVITIES)
FILTERS = tuple(f"{kind}_{number}" for kind in ("random", "near", "far") for number in SELECTIVITIES)
"""`random`: independent of the vectors. `near`: the region the query itself lies in. `far`: the region opposite."""
FOLDER = CACHE / "bench" / "data"

_BLOCK = 10_000
_CLUSTERS, _CENTRE_DIMENSIONS, _LOCAL_DIMENSIONS, _SUBSPACES = 2_000, 64, 24, 32
_SPREAD, _NOISE = 0.5, 0.25

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FilterCase:
    """One filter, asked with the first `FILTERED_QUERIES` queries: `values[i]` of `field`, and the rows it must find.

    A line of `truth` is filled up with -1 where fewer rows match.
    """

    name: str
    field: str
    percent: float
    values: Ints
    truth: NDArray[np.int32]


@dataclass(frozen=True)
class DataSet:
    """A data set on disk. The id of a vector is the text of its row number."""

    name: str
    rows: int
    folder: Path

    @cached_property
    def vectors(self) -> Floats:
        """float32[rows, dimensions], of length one."""
        return np.load(self.folder / "vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def queries(self) -> Floats:
        """float32[1000, dimensions]."""
        return np.load(self.folder / "queries.npy")  # type: ignore[no-any-return]

    @cached_property
    def truth(self) -> NDArray[np.int32]:
        """int32[1000, 100]: the nearest rows of each query by cosine, best first."""
        return np.load(self.folder / "truth.npy")  # type: ignore[no-any-return]

    @cached_property
    def fields(self) -> dict[str, Ints]:
        """The value of each metadata field for every row."""
        with np.load(self.folder / "metadata.npz") as stored:
            return {name: stored[name] for name in FIELDS}

    @cached_property
    def filters(self) -> dict[str, FilterCase]:
        """The filters by name."""
        with np.load(self.folder / "filters.npz") as stored:
            return {
                name: FilterCase(
                    name=name,
                    field=name.replace("near", "region").replace("far", "region"),
                    percent=100 / int(name.partition("_")[2]),
                    values=stored[f"{name}_value"],
                    truth=stored[f"{name}_truth"],
                )
                for name in FILTERS
            }

    @property
    def dimensions(self) -> int:
        """Of every vector."""
        return int(self.vectors.shape[1])

    def metadata(self, row: int) -> dict[str, str]:
        """What is stored beside one vector."""
        return {name: str(values[row]) for name, values in self.fields.items()}

    def ndjson(self, start: int, end: int) -> bytes:
        """Rows as the body of an upsert: a JSON object a line, numbers as the shortest text of the float32."""
        columns = [self.fields[name][start:end].tolist() for name in FIELDS]
        lines = []
        for row, vector, *values in zip(range(start, end), self.vectors[start:end], *columns, strict=True):
            metadata = dict(zip(FIELDS, map(str, values), strict=True))
            record = {"id": str(row), "values": np.ascontiguousarray(vector), "metadata": metadata}
            lines.append(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY))
        return b"\n".join(lines) + b"\n"


def data_set(name: str, rows: int) -> DataSet:
    """The data set of that name with that many rows, made if it is not there yet."""
    folder = FOLDER / f"{name}-{rows}"
    if not (folder / "filters.npz").exists():
        print(f"making {name} with {rows:,} rows ...", flush=True)
        _make(name, rows, folder)
    return DataSet(name=name, rows=rows, folder=folder)


def recall(found: list[list[int]], truth: NDArray[np.int32], count: int = 10) -> float:
    """The share of the `count` nearest (or of as many as there are) that was found, in the mean."""
    shares = []
    for rows, nearest in zip(found, truth, strict=False):
        wanted = {int(row) for row in nearest[:count] if row >= 0}
        if wanted:
            shares.append(len(wanted & set(rows)) / len(wanted))
    return float(np.mean(shares))


def _make(name: str, rows: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(20_261_121)
    vectors, queries = _glove(rows) if name == "glove" else _clustered(rows)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    direction = _unit(dice.standard_normal((1, vectors.shape[1])))[0]
    along = np.sort(vectors @ direction)
    fields: dict[str, Ints] = {}
    for number in SELECTIVITIES:
        fields[f"random_{number}"] = dice.integers(0, number, rows)
        fields[f"region_{number}"] = _bucket(vectors @ direction, along, number)
    np.savez(folder / "metadata.npz", **fields)  # type: ignore[arg-type]
    np.save(folder / "truth.npy", _nearest(vectors, queries, NEAREST))
    filters = {}
    asked = queries[:FILTERED_QUERIES]
    for number in SELECTIVITIES:
        near = _bucket(asked @ direction, along, number)
        values = {"random": dice.integers(0, number, len(asked)), "near": near, "far": number - 1 - near}
        for kind, value in values.items():
            column = fields[f"{'random' if kind == 'random' else 'region'}_{number}"]
            filters[f"{kind}_{number}_value"] = value
            filters[f"{kind}_{number}_truth"] = _nearest_where(vectors, asked, column, value)
    np.savez(folder / "filters.npz", **filters)


def _glove(rows: int) -> tuple[Floats, Floats]:
    words = _unit(load_words(None)[1])
    dice = np.random.default_rng(100)
    order = dice.permutation(len(words))
    kept = words[order[:-QUERIES]]
    copies = [kept]
    while sum(map(len, copies)) < rows:
        copies.append(_unit(kept + _unit(dice.standard_normal(kept.shape)) / 5))
    return np.concatenate(copies)[:rows], words[order[-QUERIES:]]


def _clustered(rows: int) -> tuple[Floats, Floats]:
    dice = np.random.default_rng(768)
    weights = np.arange(1, _CLUSTERS + 1) ** -0.6
    weights /= weights.sum()
    centres = _unit(dice.standard_normal((_CLUSTERS, _CENTRE_DIMENSIONS))) @ _directions(dice, _CENTRE_DIMENSIONS)
    subspaces = [_directions(dice, _LOCAL_DIMENSIONS) for _ in range(_SUBSPACES)]
    queries = _draw(np.random.default_rng((768, 0)), QUERIES, weights, centres, subspaces)
    blocks = [
        _draw(np.random.default_rng((768, number + 1)), min(_BLOCK, rows - start), weights, centres, subspaces)
        for number, start in enumerate(range(0, rows, _BLOCK))
    ]
    return np.concatenate(blocks), queries


def _draw(
    dice: np.random.Generator, rows: int, weights: NDArray[np.float64], centres: Floats, subspaces: list[Floats]
) -> Floats:
    clusters = dice.choice(_CLUSTERS, rows, p=weights)
    local = (dice.standard_normal((rows, _LOCAL_DIMENSIONS)) * _SPREAD / np.sqrt(_LOCAL_DIMENSIONS)).astype(np.float32)
    dimensions = centres.shape[1]
    drawn = centres[clusters] + dice.standard_normal((rows, dimensions), dtype=np.float32) * (_NOISE / dimensions**0.5)
    for number, subspace in enumerate(subspaces):
        members = np.flatnonzero(clusters % _SUBSPACES == number)
        drawn[members] += local[members] @ subspace
    return _unit(drawn)


def _directions(dice: np.random.Generator, count: int) -> Floats:
    """Orthonormal directions in 768 dimensions."""
    columns, _ = np.linalg.qr(dice.standard_normal((768, count)))
    return np.ascontiguousarray(columns.T, dtype=np.float32)


def _unit(vectors: NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _bucket(along: Floats, sorted_along: Floats, number: int) -> Ints:
    """In which of `number` equally full slices of all rows a projection lies."""
    ranks = np.searchsorted(sorted_along, along)
    return np.minimum(ranks * number // len(sorted_along), number - 1)


def _nearest(vectors: Floats, queries: Floats, count: int) -> NDArray[np.int32]:
    found = np.empty((len(queries), min(count, len(vectors))), dtype=np.int32)
    for start, scores in _scores(vectors, queries):
        for place, line in enumerate(scores):
            found[start + place] = _best(line, found.shape[1])
    return found


def _nearest_where(vectors: Floats, queries: Floats, column: Ints, values: Ints) -> NDArray[np.int32]:
    found = np.full((len(queries), FILTERED_NEAREST), -1, dtype=np.int32)
    for value in np.unique(values):  # The rows of a value are gathered once: of a million that is most of the work.
        rows = np.flatnonzero(column == value)
        matching = vectors[rows]
        for place in np.flatnonzero(values == value):
            best = _best(matching @ queries[place], FILTERED_NEAREST)
            found[place, : len(best)] = rows[best]
    return found


def _scores(vectors: Floats, queries: Floats) -> Iterator[tuple[int, Floats]]:
    for start in range(0, len(queries), 50):
        yield start, queries[start : start + 50] @ vectors.T


def _best(scores: Floats, count: int) -> Ints:
    count = min(count, len(scores))
    near = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")]
