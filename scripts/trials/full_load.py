"""Load and questions for trials in which the disk fails and not the process: full disks, I/O errors, no memory.

Writers repeat a write under its Idempotency-Key until it is acknowledged, so nothing is uncertain at the end; whatever
else they are answered must be a refusal in the form of the dialect that says when to come back. `docs` is written to;
`still` is written once, so what it answers must be the same to the byte, whatever happens meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from scripts.trials.promises import check
from scripts.trials.writes import DIMENSIONS, GROUPS, IDS, Write, row_of
from tests.contract.program import ACCOUNT, Program

INDEXES = f"/client/v4/accounts/{ACCOUNT}/vectorize/v2/indexes"
WRITERS = 3
PATIENCE_S = 60.0
"""How long anything may take that must happen."""
PAUSE_S = 0.02
UP = {
    # Builds, merges and collecting go on all the time, so that they are killed as well.
    "HEADRACE_SEAL_BYTES": "20000",
    "HEADRACE_SEAL_MUTATIONS": "20",
    "HEADRACE_SEAL_IDLE_MS": "200",
    "HEADRACE_SEGMENTS_MAX": "2",
    "HEADRACE_MERGE_IDLE_MS": "500",
    "HEADRACE_GRACE_MS": "300",
    "HEADRACE_SWEEP_MS": "1000",
    "HEADRACE_GRAPH_ROWS_MIN": "200",
    "HEADRACE_BUILDER_THREADS": "1",
}
LATER = (429, 503, 507)
UNREADABLE = 49022
STILL_ROWS = 300
ASKED = (7, 77, 177, 277)


class Refused(Exception):
    """A read was refused for now, as it should be refused."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the service."""

    status: int
    retry_after: str
    document: dict[str, object]

    def check_refusal(self, what: str) -> None:
        """A refusal for now: in the envelope, with a number, a reason and a time to come back."""
        check(self.status in LATER, f"{what} is answered {self.status}: {self.document}")
        check(self.retry_after.isdigit() and int(self.retry_after) > 0, f"{what}: no Retry-After")
        errors = self.document.get("errors")
        check(self.document.get("success") is False and isinstance(errors, list), f"{what}: {self.document}")
        check(all(isinstance(one["code"], int) and one["message"] for one in errors), f"{what}: {errors}")  # type: ignore[attr-defined]

    @property
    def is_unreadable(self) -> bool:
        """Whether it says that what is stored could not be read, or is not what was written."""
        errors = self.document.get("errors")
        return self.status == 500 and isinstance(errors, list) and errors[0]["code"] == UNREADABLE


class Client:
    """A connection that is made anew when it breaks.

    With `may_be_unreadable`, it is a refusal like any other that what is stored could not be read: of a disk whose
    reads fail, SQLite says what it says of one that has other contents.
    """

    def __init__(self, program: Program, *, may_be_unreadable: bool = False) -> None:
        self._program = program
        self.may_be_unreadable = may_be_unreadable
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None, key: str = "") -> Answer:
        """One request, one answer. Raises OSError, HTTPException."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._program.port, timeout=PATIENCE_S)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = "application/x-ndjson" if path.endswith(("insert", "upsert")) else "application/json"
        headers = {"Content-Type": kind} | ({"Idempotency-Key": key} if key else {})
        try:
            self._connection.request(method, INDEXES + path, body, headers)
            response = self._connection.getresponse()
            return Answer(response.status, response.headers.get("Retry-After", ""), orjson.loads(response.read()))
        except BaseException:
            self._connection = None
            raise

    def call(self, method: str, path: str, body: bytes | None = None, key: str = "") -> Any:
        """The result, however often it takes."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = self.ask(method, path, body, key)
                if answer.status == 200:
                    return answer.document["result"]
                answer.check_refusal(f"{method} {path}")
            check(time.monotonic() < deadline, f"{method} {path} is not answered for {PATIENCE_S:g} s")
            time.sleep(PAUSE_S)


@dataclass
class Load:
    """Writers that go on whatever fails, and what was acknowledged to each, in its order. The last list is ours."""

    program: Program
    may_break: bool = False
    """Whether a connection may break: where a process may die."""
    may_be_unreadable: bool = False
    """As of a client, for all of the writers."""
    acknowledged: list[list[tuple[str, Write]]] = field(default_factory=lambda: [[] for _ in range(WRITERS + 1)])
    refused: dict[int, int] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)
    unfinished: list[tuple[Write, str]] = field(default_factory=list)
    """Writes of ours that were tried and not acknowledged, with their keys."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """Writers run in the block. Whatever each began is acknowledged after it."""
        self._stopping.clear()
        threads = [threading.Thread(target=self._write, args=(place, seed), daemon=True) for place in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(2 * PATIENCE_S)
        self.check_alive()

    def check_alive(self) -> None:
        """Raise what a writer met."""
        if self.failed:
            raise self.failed[0]

    def _write(self, place: int, seed: int) -> None:
        client, dice = Client(self.program), random.Random(f"{seed} {place}")
        try:
            while not self._stopping.is_set():
                self.write(client, place, lambda number: Write.at_random(dice, number))
                time.sleep(PAUSE_S / 2)
        except BaseException as error:
            self.failed.append(error)

    def write(self, client: Client, place: int, make) -> None:  # type: ignore[no-untyped-def]
        """Do one write until it is acknowledged."""
        number = next(self._numbers)
        write = make(number)
        path, body, deadline = f"/docs/{write.action}", write.body(), time.monotonic() + PATIENCE_S
        while True:
            check(time.monotonic() < deadline, f"a {write.action} is refused for {PATIENCE_S:g} s")
            if self.once(client, place, write, path, body, f"write-{number}"):
                return
            time.sleep(PAUSE_S)

    def once(self, client: Client, place: int, write: Write, path: str, body: bytes, key: str) -> bool:
        """Try a write once; whether it was acknowledged."""
        try:
            answer = client.ask("POST", path, body, key)
        except (OSError, http.client.HTTPException):
            if not self.may_break:
                raise
            return False
        if answer.status == 200:
            self.acknowledged[place].append((answer.document["result"]["mutationId"], write))  # type: ignore[index]
            return True
        if not (self.may_be_unreadable and answer.is_unreadable):
            answer.check_refusal(write.action)
        self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
        return False

    @property
    def count(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.acknowledged))

    def delete_some(self, dice: random.Random) -> Write:
        """A delete of ours."""
        return Write("delete_by_ids", tuple((f"v{dice.randrange(IDS):03}", 0) for _ in range(3)))

    def upsert_some(self, dice: random.Random, number: int) -> Write:
        """An upsert of ours."""
        return Write("upsert", ((f"v{dice.randrange(IDS):03}", number),))

    def number(self) -> int:
        """The next number of a write."""
        return next(self._numbers)


def fill_indexes(client: Client) -> None:
    """Make `docs`, and `still` with what it will always answer."""
    for name in ("docs", "still"):
        create = {"name": name, "config": {"dimensions": DIMENSIONS, "metric": "euclidean"}}
        client.call("POST", "", orjson.dumps(create))
    body = b"\n".join(
        orjson.dumps({"id": f"s{number:03}", "values": row_of(number)[0], "metadata": {"group": number % GROUPS}})
        for number in range(STILL_ROWS)
    )
    client.call("POST", "/still/upsert", body, key="still")
    _applied(client, "still", STILL_ROWS)


def _applied(client: Client, name: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while client.call("GET", f"/{name}/info")["vectorCount"] != count:  # type: ignore[index]
        check(time.monotonic() < deadline, f"{name} never has {count} vectors")
        time.sleep(PAUSE_S)


def read_all(client: Client, where: str, *, may_refuse: bool = False) -> None:
    """Every kind of read is answered, and what `still` says is what it always says.

    With `may_refuse` an answer may be a refusal instead, in the form a refusal has.
    """
    for question in (_records, _nearest, _filtered, _listed, _others):
        try:
            question(client, where)
        except Refused as refused:
            check(may_refuse, f"{where}: {refused}")


def _records(client: Client, where: str) -> None:
    found = _read(client, where, "POST", "/still/get_by_ids", {"ids": [f"s{number:03}" for number in ASKED]})
    rows = {one["id"]: (one["values"], one["metadata"]["group"]) for one in found}  # type: ignore[attr-defined]
    check(rows == {f"s{number:03}": row_of(number) for number in ASKED}, f"{where}: get_by_ids says {rows}")


def _nearest(client: Client, where: str) -> None:
    for number in ASKED:
        found = _read(client, where, "POST", "/still/query", {"vector": row_of(number)[0], "topK": 3})
        first = found["matches"][0]["id"]  # type: ignore[index]
        check(first == f"s{number:03}", f"{where}: the nearest of s{number:03} is {first}")


def _filtered(client: Client, where: str) -> None:
    group = ASKED[0]
    query = {"vector": row_of(group)[0], "topK": 50, "filter": {"group": group}}
    found = _read(client, where, "POST", "/still/query", query)
    expected = {f"s{number:03}" for number in range(group, STILL_ROWS, GROUPS)}
    check({one["id"] for one in found["matches"]} == expected, f"{where}: the filter finds {found}")  # type: ignore[index]


def _listed(client: Client, where: str) -> None:
    found = _read(client, where, "GET", "/still/list?count=1000")
    check(found["count"] == STILL_ROWS, f"{where}: {found['count']} are listed")  # type: ignore[index]


def _others(client: Client, where: str) -> None:
    _read(client, where, "GET", "/docs/info")
    _read(client, where, "GET", "/docs/list?count=100")
    _read(client, where, "GET", "")
    _read(client, where, "POST", "/docs/query", {"vector": row_of(1)[0], "topK": 5})


def _read(client: Client, where: str, method: str, path: str, document: object = None) -> object:
    answer = client.ask(method, path, orjson.dumps(document) if document is not None else None)
    said = f"{method} {path} is answered {answer.status}: {answer.document.get('errors')}"
    if client.may_be_unreadable and answer.is_unreadable:
        raise Refused(said)
    if answer.status in LATER:
        answer.check_refusal(f"{where}: {method} {path}")
        raise Refused(said)
    check(answer.status == 200, f"{where}: {said}")
    return answer.document["result"]
