"""qdrant-edge: the engine of Qdrant in our own process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Limited, Loaded, M, Where

BATCH = 1_000
FULL_SCAN_THRESHOLD_KB = 10_000
OVERSAMPLING = 2.0
QUANTIZATION = f"int8, {OVERSAMPLING:g} x the answers scored again"


class QdrantEdge(Limited):
    """One shard, merged to one segment, with a keyword index for each metadata field."""

    package = "qdrant_edge"
    note = (
        "in process, no HTTP to pay; ids, scores and metadata in the answers; "
        "its binding holds the interpreter's lock while it searches, so clients take turns"
    )
    efforts = EFFORTS
    abilities = frozenset({"filters", "get", "scan", "write"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "shard"
        self.settings = {"m": M, "ef_construct": EF_CONSTRUCTION, "full_scan_threshold": FULL_SCAN_THRESHOLD_KB}
        self.settings |= {
            "segments": 1,
            "memory": "pinned",
            "quantization": QUANTIZATION,
            "load": f"batches of {BATCH}, then optimize()",
        }

    def create(self, data: Data) -> None:
        """An empty shard. The keyword indexes come first, so that the graph gets links for filters, as its guide says.

        One segment is the fastest to search, vectors and graph are held in memory, and eight bits a number with the
        best scored again was measured here to answer nearly twice as many queries at the same recall.
        """
        import qdrant_edge as qdrant

        self._folder.mkdir()
        graph = qdrant.HnswIndexConfig(
            m=M,
            ef_construct=EF_CONSTRUCTION,
            full_scan_threshold=FULL_SCAN_THRESHOLD_KB,
            memory=qdrant.Memory.Pinned,
        )
        vectors = qdrant.EdgeVectorParams(
            size=data.dimensions, distance=qdrant.Distance.Cosine, memory=qdrant.Memory.Pinned
        )
        optimizers = qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000)
        quantization = qdrant.ScalarQuantizationConfig(
            type=qdrant.ScalarType.Int8, quantile=0.99, memory=qdrant.Memory.Pinned
        )
        config = qdrant.EdgeConfig(
            vectors=vectors,
            hnsw_config=graph,
            quantization_config=quantization,
            optimizers=optimizers,
            payload_memory=qdrant.Memory.Cached,
        )
        self._shard = qdrant.EdgeShard.create(str(self._folder), config)
        for field in data.fields:
            self._shard.update(qdrant.UpdateOperation.create_field_index(field, qdrant.PayloadSchemaType.Keyword))

    def load(self, data: Data) -> Loaded:
        """What is written is found at once, by an exact scan until it is optimized."""
        import qdrant_edge as qdrant

        names = list(data.fields)
        columns = [data.fields[name] for name in names]
        begun = time.perf_counter()
        for start, end in data.batches(BATCH):
            texts = zip(*(column[start:end] for column in columns), strict=True)
            points = [
                qdrant.Point(row, vector, dict(zip(names, values, strict=True)))
                for row, vector, values in zip(range(start, end), data.vectors[start:end].tolist(), texts, strict=True)
            ]
            self._shard.update(qdrant.UpdateOperation.upsert_points(points))
        self._shard.flush()
        searchable = time.perf_counter() - begun
        self._shard.optimize()
        indexed = time.perf_counter() - begun
        self._shard.flush()
        info = self._shard.info()
        self.settings["segments found"] = info.segments_count
        self.settings["indexed vectors"] = info.indexed_vectors_count
        return Loaded(searchable_s=searchable, indexed_s=indexed)

    def open(self) -> None:
        """Load the shard."""
        import qdrant_edge as qdrant

        self._shard = qdrant.EdgeShard.load(str(self._folder))

    def session(self, effort: int) -> QdrantEdgeSession:
        """All clients share the shard."""
        return QdrantEdgeSession(self._shard, effort)

    def close(self) -> None:
        """Flush, and let go of the folder."""
        self._shard.flush()
        self._shard.close()

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        return len(self._shard.retrieve(sorted(set(rows)), with_payload=True, with_vector=True))

    def scan(self) -> Iterator[int]:
        """By scrolling, ids alone."""
        import qdrant_edge as qdrant

        after = None
        while True:
            request = qdrant.ScrollRequest(offset=after, limit=1_000, with_payload=False, with_vector=False)
            page, after = self._shard.scroll(request)
            yield len(page)
            if after is None:
                return

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """An upsert of one, in its log."""
        import qdrant_edge as qdrant

        point = qdrant.Point(row, vector.tolist(), metadata)
        self._shard.update(qdrant.UpdateOperation.upsert_points([point]))


class QdrantEdgeSession:
    """Searches the shared shard with its own effort."""

    def __init__(self, shard: Any, effort: int) -> None:
        import qdrant_edge

        self._qdrant, self._shard = qdrant_edge, shard
        quantization = qdrant_edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        self._parameters = qdrant_edge.SearchParams(hnsw_ef=effort, quantization=quantization)

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The request object, with a list of Python floats inside."""
        qdrant = self._qdrant
        filters = None
        if where is not None:
            filters = qdrant.Filter(must=[qdrant.FieldCondition(key=where.field, match=qdrant.MatchValue(where.value))])
        return qdrant.QueryRequest(
            limit=count,
            query=qdrant.Query.Nearest(query.tolist()),
            filter=filters,
            params=self._parameters,
            with_payload=True,
        )

    def ask(self, request: Any) -> Any:
        """One query."""
        return self._shard.query(request)

    def rows(self, answer: Any) -> list[int]:
        """Ids are row numbers."""
        return [point.id for point in answer]

    def close(self) -> None:
        """Others go on."""
