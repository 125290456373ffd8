"""LanceDB: a columnar store in our own process, by its asynchronous client, which is its faster one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Limited, Loaded, M, Where

TABLE = "vectors"
BATCH = 10_000

# It warns of deprecations at every search otherwise, which takes longer than the search.
os.environ.setdefault("LANCE_LOG", "error")


class LanceDB(Limited):
    """A table with a bitmap for each metadata field, a b-tree for ids and one HNSW graph over plain vectors."""

    package = "lancedb"
    note = "in process, no HTTP to pay; ids and distances in the answers"
    efforts = EFFORTS
    abilities = frozenset({"filters", "get", "scan", "write"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The quantised form of the index needed more effort for the same recall, and was slower.
        self.settings: dict[str, object] = {"index": "IVF_HNSW_FLAT", "partitions": 1, "m": M, "distance": "dot"}
        self.settings |= {"ef_construction": EF_CONSTRUCTION, "client": "asynchronous", "prewarmed": True}
        self._loop = asyncio.new_event_loop()

    def create(self, data: Data) -> None:
        """An empty table."""
        self._loop.run_until_complete(self._create(data))

    def load(self, data: Data) -> Loaded:
        """One append in batches, searchable by an exact scan when it is committed, and then the indexes."""
        from lancedb.index import Bitmap, BTree, HnswFlat

        async def load() -> Loaded:
            begun = time.perf_counter()
            await self._table.add(_batches(data, self._schema))
            await self._table.query().nearest_to(data.vectors[-1]).column("vector").limit(1).to_arrow()
            searchable = time.perf_counter() - begun
            graph = HnswFlat(distance_type="dot", num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION)
            await self._table.create_index("vector", config=graph)
            await self._table.create_index("id", config=BTree())
            for field in data.fields:
                await self._table.create_index(field, config=Bitmap())
            await self._table.optimize()
            indexed = time.perf_counter() - begun
            await self._prewarm()
            return Loaded(searchable_s=searchable, indexed_s=indexed)

        return self._loop.run_until_complete(load())

    def open(self) -> None:
        """The table, with its indexes read into memory."""
        self._table = self._loop.run_until_complete(_table(self._folder))
        self._loop.run_until_complete(self._prewarm())

    def session(self, effort: int) -> LanceDBSession:
        """An event loop of its own, and the table opened once for all of them, so that they share its cache."""
        return LanceDBSession(self._table, effort)

    def close(self) -> None:
        """There is nothing to stop."""
        self._table.close()

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        wanted = f"id IN ({', '.join(map(str, sorted(set(rows))))})"
        return int(self._loop.run_until_complete(self._table.query().where(wanted).to_arrow()).num_rows)

    def scan(self) -> Iterator[int]:
        """One pass over the column of ids."""
        batches = self._loop.run_until_complete(self._table.query().select(["id"]).to_batches(max_batch_length=1_000))
        while True:
            try:
                yield self._loop.run_until_complete(anext(batches)).num_rows
            except StopAsyncIteration:
                return

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """An upsert of one."""
        import pyarrow as pa

        values = [pa.array([row]), *(pa.array([text]) for text in metadata.values())]
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(vector), len(vector))
        one = pa.table([*values, numbers], names=["id", *metadata, "vector"])
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        self._loop.run_until_complete(merge.execute(one))

    async def _create(self, data: Data) -> None:
        import lancedb
        import pyarrow as pa

        vector = pa.list_(pa.float32(), data.dimensions)
        fields = [("id", pa.int64()), *((name, pa.string()) for name in data.fields), ("vector", vector)]
        self._schema = pa.schema(fields)
        database = await lancedb.connect_async(str(self._folder))
        self._table = await database.create_table(TABLE, schema=self._schema)

    async def _prewarm(self) -> None:
        for index in await self._table.list_indices():
            await self._table.prewarm_index(index.name)


async def _table(folder: Path) -> Any:
    import lancedb

    return await (await lancedb.connect_async(str(folder))).open_table(TABLE)


def _batches(data: Data, schema: Any) -> Any:
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        for start, end in data.batches(BATCH):
            numbers = pa.array(np.ascontiguousarray(data.vectors[start:end]).ravel())
            vectors = pa.FixedSizeListArray.from_arrays(numbers, data.dimensions)
            texts = [pa.array(column[start:end]) for column in data.fields.values()]
            yield pa.record_batch([pa.array(range(start, end)), *texts, vectors], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


class LanceDBSession:
    """Searches the shared table with its own effort."""

    def __init__(self, table: Any, effort: int) -> None:
        self._table, self._effort = table, effort
        self._loop = asyncio.new_event_loop()

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """The query object."""
        request = self._table.query().nearest_to(query).column("vector").distance_type("dot")
        request = request.ef(self._effort).nprobes(1).limit(count).select(["id", "_distance"])
        return request if where is None else request.where(f"{where.field} = '{where.value}'")

    def ask(self, request: Any) -> Any:
        """One query."""
        return self._loop.run_until_complete(request.to_arrow())

    def rows(self, answer: Any) -> list[int]:
        """Ids are row numbers."""
        return answer["id"].to_pylist()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Others go on."""
        self._loop.close()
