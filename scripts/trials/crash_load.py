"""Writers and readers that go on whatever dies, and everything that was acknowledged to each, in its order.

A write that got no answer is sent again under its idempotency key until it has one, so that at a pause every write
that was ever begun is acknowledged, and none may be in the log twice.
"""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from scripts.trials.crash_writes import ANCHORS, PROPERTIES, Write
from scripts.trials.promises import Broken, check
from tests.contract.program import ACCOUNT

INDEXES = f"/client/v4/accounts/{ACCOUNT}/vectorize/v2/indexes"
WRITERS = 4
PATIENCE_S = 120.0
ANSWER_S = 20.0
PAUSE_S = 0.02
"""Between two tries of a write that was not acknowledged."""
EXTRA_MAX = 4
NAME_TAKEN = 3002
"""What a repeated creation is told when the first was done, and only its answer was lost."""


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait for something that must happen. Raises Broken."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        check(time.monotonic() < deadline, what)
        time.sleep(PAUSE_S)


@dataclass
class Line:
    """Where the service is. While `is_cut`, what it answers does not count: nobody may have heard it. When the trial
    `is_over`, nobody waits for an answer any longer."""

    port: int
    is_cut: bool = False
    is_over: bool = False


class Api:
    """One client: a connection that is made anew when it breaks."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        key: str = "",
        *,
        again: tuple[int, ...] = (),
        is_repeated: bool = False,
    ) -> Any:
        """The result, however often it takes; `again` are statuses and codes that a repeated one may have too.

        Raises Broken for an answer that is neither success nor "later".
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not self._line.is_over:
            try:
                status, answer = self._once(method, path, body, key)
            except (OSError, http.client.HTTPException):
                self._connection = None
                is_repeated = True
            else:
                codes = {status, *(error["code"] for error in answer.get("errors", ()))}
                if status == 200 or (is_repeated and codes & set(again)):
                    return answer.get("result")
                refused = status not in (408, 429, 503)
                check(not refused, f"{method} {path} answered {status}: {answer.get('errors')}")
            time.sleep(PAUSE_S)
        raise Broken(f"{method} {path} got no answer for {PATIENCE_S:g} s")

    def _once(self, method: str, path: str, body: bytes | None, key: str) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._line.port, timeout=ANSWER_S)
        kind = "application/x-ndjson" if path.endswith(("insert", "upsert")) else "application/json"
        headers = {"Content-Type": kind} | ({"Idempotency-Key": key} if key else {})
        if self._line.is_cut:
            raise ConnectionError
        self._connection.request(method, INDEXES + path, body, headers)
        response = self._connection.getresponse()
        answer = orjson.loads(response.read())
        if self._line.is_cut:
            raise ConnectionError
        return response.status, answer


@dataclass
class Load:
    """The writers, and what was acknowledged to each; `extra` has the indexes that come and go beside `docs`."""

    line: Line
    writers: int = WRITERS
    acknowledged: list[list[tuple[str, Write]]] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)
    walks: int = 0
    failed: list[BaseException] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(ANCHORS))
    _stopping: threading.Event = field(default_factory=threading.Event)
    _going: threading.Event = field(default_factory=threading.Event)
    _resting: list[threading.Event] = field(default_factory=list)

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """The writers are there in the block, at rest until `resume`."""
        self.acknowledged = [[] for _ in range(self.writers)]
        works = [*(self._writing(place, seed) for place in range(self.writers)), self._keeping(seed), self._walking()]
        self._resting = [threading.Event() for _ in works]
        threads = [
            threading.Thread(target=self._run, args=(work, rest), daemon=True)
            for work, rest in zip(works, self._resting, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._going.set()
            self.line.is_over = True
            for thread in threads:
                thread.join(ANSWER_S)

    def resume(self) -> None:
        """Go on."""
        for rest in self._resting:
            rest.clear()
        self._going.set()

    def pause(self) -> None:
        """Come to rest: whatever was begun is acknowledged then. Raises what went wrong in a writer."""
        self._going.clear()
        until("every write is answered", lambda: bool(self.failed) or all(one.is_set() for one in self._resting))
        if self.failed:
            raise self.failed[0]

    @property
    def count(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.acknowledged))

    def _run(self, work: Iterator[None], rest: threading.Event) -> None:
        try:
            while True:
                if not self._going.is_set():
                    rest.set()
                    self._going.wait()
                if self._stopping.is_set():
                    return
                next(work)
        except BaseException as error:
            if not self._stopping.is_set():
                self.failed.append(error)

    def _writing(self, place: int, seed: int) -> Iterator[None]:
        """Vectors, and of the first writer metadata indexes as well."""
        api, dice = Api(self.line), random.Random(seed * 100 + place)
        indexed: set[str] = set()
        while True:
            number = next(self._numbers)
            write = Write.at_random(dice, number)
            if place == 0 and not self.acknowledged[0]:
                write = Write.anchors(0)
            elif place == 0 and dice.random() < 0.05:
                named = dice.choice(list(PROPERTIES))
                write = Write(f"{'delete' if named in indexed else 'create'}_metadata_index", indexed=named)
                indexed ^= {named}
            answer = api.call("POST", f"/docs/{write.path}", write.body(), key=f"write-{number}")
            self.acknowledged[place].append((answer["mutationId"], write))
            yield

    def _keeping(self, seed: int) -> Iterator[None]:
        """Indexes that are made and deleted."""
        api, dice = Api(self.line), random.Random(seed * 100 + 99)
        for number in itertools.count():
            if len(self.extra) < EXTRA_MAX:
                name = f"extra-{number}"
                body = {"name": name, "config": {"dimensions": 4, "metric": "cosine"}}
                api.call("POST", "", orjson.dumps(body), again=(NAME_TAKEN,))
                self.extra.add(name)
            else:
                name = dice.choice(sorted(self.extra))
                api.call("DELETE", f"/{name}", again=(404, 410))
                self.extra.discard(name)
            yield
            time.sleep(0.2)

    def _walking(self) -> Iterator[None]:
        """Walks of the list: they go on after whatever happened in the middle of them."""
        api = Api(self.line)
        while not any(self.acknowledged[0]):
            yield
            time.sleep(PAUSE_S)
        api.call("GET", f"/docs/info?wait_for={self.acknowledged[0][0][0]}&timeout=100")
        while True:
            ids: list[str] = []
            cursor = ""
            while True:
                page = api.call("GET", f"/docs/list?count=50{cursor}")
                ids += [one["id"] for one in page["vectors"]]
                yield
                if not page["nextCursor"]:
                    break
                cursor = f"&cursor={page['nextCursor']}"
            check(ids == sorted(set(ids)), f"a walk of the list shows every id once and in order: {ids}")
            anchors = [id for id in ids if id.startswith("a")]
            check(len(anchors) == ANCHORS, f"a walk of the list shows what was there all the time: {anchors}")
            self.walks += 1
