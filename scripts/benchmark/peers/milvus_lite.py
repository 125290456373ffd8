"""Milvus Lite: a local database in our own process, asked by pymilvus over gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Limited, Loaded, M, Where

NAME = "vectors"
BATCH = 5_000
INDEX_S = 900.0


class MilvusLite(Limited):
    """One collection with an inverted index for each metadata field and an HNSW graph for each of its segments."""

    package = "pymilvus"
    note = "a local gRPC server in our process, no HTTP to pay; ids and distances in the answers"
    efforts = EFFORTS
    abilities = frozenset({"filters", "get", "scan", "write"})

    def __init__(self, folder: Path) -> None:
        self._file = folder / "milvus.db"
        self.settings: dict[str, object] = {"index": "HNSW", "M": M, "efConstruction": EF_CONSTRUCTION, "metric": "IP"}
        self.settings |= {"scalar indexes": "INVERTED", "load": f"batches of {BATCH}, flush, index"}

    def create(self, data: Data) -> None:
        """An empty collection."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=data.dimensions)
        for name in data.fields:
            schema.add_field(name, DataType.VARCHAR, max_length=16)
        self._client = MilvusClient(str(self._file))
        self._client.create_collection(NAME, schema=schema)

    def load(self, data: Data) -> Loaded:
        """What is written is found at once, by an exact scan; the indexes are made after it."""
        client = self._client
        columns = data.fields
        begun = time.perf_counter()
        for start, end in data.batches(BATCH):
            texts = zip(*(column[start:end] for column in columns.values()), strict=True)
            rows = [
                {"id": row, "vector": vector, **dict(zip(columns, values, strict=True))}
                for row, vector, values in zip(range(start, end), data.vectors[start:end], texts, strict=True)
            ]
            client.insert(NAME, rows)
        client.flush(NAME)
        searchable = time.perf_counter() - begun
        indexes = client.prepare_index_params()
        graph = {"M": M, "efConstruction": EF_CONSTRUCTION}
        indexes.add_index("vector", index_type="HNSW", metric_type="IP", params=graph)
        for name in columns:
            indexes.add_index(name, index_type="INVERTED")
        client.create_index(NAME, indexes)
        client.load_collection(NAME)
        # Until the graph is there, searches are exact scans.
        ends = time.monotonic() + INDEX_S
        while (found := client.describe_index(NAME, "vector")) and int(found.get("pending_index_rows") or 0):
            if time.monotonic() > ends:
                raise TimeoutError(f"not indexed after {INDEX_S:.0f} s: {found}")
            time.sleep(0.05)
        return Loaded(searchable_s=searchable, indexed_s=time.perf_counter() - begun)

    def open(self) -> None:
        """Start with the file."""
        from pymilvus import MilvusClient

        self._client = MilvusClient(str(self._file))
        self._client.load_collection(NAME)

    def session(self, effort: int) -> MilvusLiteSession:
        """All clients share the connection."""
        return MilvusLiteSession(self._client, effort)

    def close(self) -> None:
        """Stop the server, which outlives its clients and locks the file."""
        from milvus_lite.server_manager import server_manager_instance

        self._client.close()
        server_manager_instance.release_server(str(self._file))

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        return len(self._client.get(NAME, ids=sorted(set(rows)), output_fields=["*"]))

    def scan(self) -> Iterator[int]:
        """Its query iterator, ids alone."""
        pages = self._client.query_iterator(NAME, batch_size=1_000, output_fields=["id"])
        while page := pages.next():
            yield len(page)
        pages.close()

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """An upsert of one."""
        self._client.upsert(NAME, [{"id": row, "vector": vector, **metadata}])


class MilvusLiteSession:
    """Searches by the shared client, with its own effort."""

    def __init__(self, client: Any, effort: int) -> None:
        self._client, self._effort = client, effort

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The arguments of one search; it refuses less effort than answers."""
        condition = {} if where is None else {"filter": f'{where.field} == "{where.value}"'}
        parameters = {"metric_type": "IP", "params": {"ef": max(self._effort, count)}}
        return {"data": [query], "limit": count, "search_params": parameters, "anns_field": "vector", **condition}

    def ask(self, request: Any) -> Any:
        """One search."""
        return self._client.search(NAME, **request)

    def rows(self, answer: Any) -> list[int]:
        """Ids are row numbers."""
        return [int(hit["id"]) for hit in answer[0]]

    def close(self) -> None:
        """Others go on."""
