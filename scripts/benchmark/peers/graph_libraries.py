"""The libraries as limits: usearch, hnswlib and faiss in process, without durability, metadata or a network."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Limited, Loaded, M, Where

NOTE = "in process, no HTTP to pay; a library, a limit rather than a peer: no metadata, nothing durable"
FILE = "index"


class Usearch(Limited):
    """One writer, and a view of the saved file for each client: usearch serialises the searches of one object."""

    note = NOTE + "; no filters"
    efforts = EFFORTS

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "metric": "ip", "dtype": "bf16"}
        self.settings["views"] = "one a client"

    def create(self, data: Data) -> None:
        """An empty index."""
        from usearch.index import Index

        self._index = Index(
            ndim=data.dimensions, metric="ip", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def load(self, data: Data) -> Loaded:
        """One call, with all cores."""
        begun = time.perf_counter()
        self._index.add(np.arange(len(data)), np.ascontiguousarray(data.vectors), threads=os.cpu_count() or 1)
        seconds = time.perf_counter() - begun
        self._index.save(str(self._file))
        self._index.reset()
        self.open()
        return Loaded(searchable_s=seconds, indexed_s=seconds)

    def open(self) -> None:
        """Sessions open their own views."""

    def session(self, effort: int) -> UsearchSession:
        """A view of its own."""
        from usearch.index import Index

        view = Index.restore(str(self._file), view=True)
        view.expansion_search = effort
        return UsearchSession(view)

    def close(self) -> None:
        """There is nothing to stop."""


class UsearchSession:
    """A mapped view."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The numbers as they are."""
        assert where is None
        return query, count

    def ask(self, request: Any) -> Any:
        """With one thread."""
        return self._view.search(request[0], request[1], threads=1)

    def rows(self, answer: Any) -> list[int]:
        """Keys are row numbers."""
        return [int(key) for key in answer.keys]

    def close(self) -> None:
        """Unmap."""
        self._view.reset()


class Hnswlib(Limited):
    """Filters call back into Python for every node that is visited."""

    note = NOTE + "; a filter is a Python call per visited node, its table made beforehand"
    efforts = EFFORTS
    abilities = frozenset({"filters"})

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "space": "ip"}
        self._data: Data | None = None

    def create(self, data: Data) -> None:
        """An empty index of just the size."""
        import hnswlib

        self._data = data
        self._file.with_suffix(".dimensions").write_text(str(data.dimensions))
        self._index = hnswlib.Index(space="ip", dim=data.dimensions)
        self._index.init_index(max_elements=len(data), M=M, ef_construction=EF_CONSTRUCTION)

    def load(self, data: Data) -> Loaded:
        """One call, with all cores."""
        begun = time.perf_counter()
        self._index.add_items(data.vectors, np.arange(len(data)), num_threads=os.cpu_count() or 1)
        seconds = time.perf_counter() - begun
        self._index.save_index(str(self._file))
        return Loaded(searchable_s=seconds, indexed_s=seconds)

    def open(self) -> None:
        """Read the file."""
        import hnswlib

        self._index = hnswlib.Index(space="ip", dim=int(self._file.with_suffix(".dimensions").read_text()))
        self._index.load_index(str(self._file))

    def session(self, effort: int) -> HnswlibSession:
        """All clients share the index, and the effort."""
        self._index.set_ef(effort)
        return HnswlibSession(self._index, self._data)

    def close(self) -> None:
        """Drop it."""
        del self._index


class HnswlibSession:
    """Searches the shared index."""

    def __init__(self, index: Any, data: Data | None) -> None:
        self._index, self._data = index, data

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """A filter becomes a table from row to yes or no."""
        if where is None:
            return query, count, None
        assert self._data is not None
        allowed = [value == where.value for value in self._data.fields[where.field]]
        # It refuses to answer with fewer than were asked for. A lookup in a list is the cheapest call into Python.
        return query, min(count, sum(allowed)), allowed.__getitem__

    def ask(self, request: Any) -> Any:
        """With one thread."""
        query, count, allowed = request
        try:
            return self._index.knn_query(query, k=count, num_threads=1, filter=allowed)[0][0]
        except RuntimeError:
            # It found fewer than were asked for.
            return ()

    def rows(self, answer: Any) -> list[int]:
        """Labels are row numbers."""
        return [int(label) for label in answer]

    def close(self) -> None:
        """Others go on."""


class Faiss(Limited):
    """HNSW over float32, the inner product of vectors of length one."""

    note = NOTE + "; a filter is a bitmap made beforehand"
    efforts = EFFORTS
    abilities = frozenset({"filters"})

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "index": "IndexHNSWFlat", "metric": "ip"}
        self._data: Data | None = None

    def create(self, data: Data) -> None:
        """An empty index."""
        import faiss

        self._data = data
        self._index = faiss.IndexHNSWFlat(data.dimensions, M, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION

    def load(self, data: Data) -> Loaded:
        """One call, with all cores."""
        import faiss

        begun = time.perf_counter()
        self._index.add(np.ascontiguousarray(data.vectors))
        seconds = time.perf_counter() - begun
        faiss.write_index(self._index, str(self._file))
        return Loaded(searchable_s=seconds, indexed_s=seconds)

    def open(self) -> None:
        """Read the file."""
        import faiss

        self._index = faiss.read_index(str(self._file))

    def session(self, effort: int) -> FaissSession:
        """All clients share the index."""
        return FaissSession(self._index, effort, self._data)

    def close(self) -> None:
        """Drop it."""
        del self._index


class FaissSession:
    """Searches the shared index with its own effort."""

    def __init__(self, index: Any, effort: int, data: Data | None) -> None:
        import faiss

        # This counts for the calling thread alone. One query has nothing to share out.
        faiss.omp_set_num_threads(1)
        self._faiss, self._index, self._effort, self._data = faiss, index, effort, data

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The parameters of one search."""
        parameters = self._faiss.SearchParametersHNSW(efSearch=self._effort)
        if where is not None:
            assert self._data is not None
            allowed = np.array(self._data.fields[where.field]) == where.value
            parameters = self._faiss.SearchParametersHNSW(
                efSearch=self._effort, sel=self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            )
        return query[None, :], count, parameters

    def ask(self, request: Any) -> Any:
        """With one thread."""
        query, count, parameters = request
        return self._index.search(query, count, params=parameters)[1][0]

    def rows(self, answer: Any) -> list[int]:
        """Places are row numbers; -1 fills up."""
        return [int(place) for place in answer if place >= 0]

    def close(self) -> None:
        """Others go on."""
