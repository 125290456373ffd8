"""Run Headrace on real words and hold it to its promises; see `scripts/acceptance`.

Everything goes over HTTP to a real `headrace up`, and every answer is compared with brute force over the same vectors,
computed here. Exits non-zero at the first broken promise. Times are printed, never judged: machines differ.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from scripts.words import load_words
from service.sample.words import sample_words

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "/client/v4/accounts/acceptance/vectorize/v2/indexes"
BATCH = 1_000
WAIT_S = 600.0
SAMPLE = 300
FOUND_MAX = 20_000
RECALL_MIN = 0.95
"""The default recall is 0.98 in the mean of a large sample; a small sample may fall a little short of it."""

SEAL_BYTES = 8 * 1024 * 1024
"""The default: more than this is sealed."""
SMALL = {"HEADRACE_SEAL_BYTES": "300000", "HEADRACE_SEAL_MUTATIONS": "20", "HEADRACE_SEGMENTS_MAX": "2"}
Floats = NDArray[np.float32]


@dataclass
class Words:
    """The data set, and the truth about it."""

    texts: list[str]
    vectors: Floats

    def __post_init__(self) -> None:
        exact = self.vectors.astype(np.float64)
        self.unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        self.letters = np.array([text[0] for text in self.texts])
        self.lengths = np.array([len(text) for text in self.texts])

    def line(self, row: int) -> bytes:
        """One word as NDJSON."""
        text = self.texts[row]
        metadata = {"length": len(text), "letter": text[0], "rank": row + 1}
        vector = {"id": text, "values": self.vectors[row], "metadata": metadata}
        return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)

    def nearest(self, query: Floats, mask: NDArray[np.bool_], count: int) -> list[tuple[float, str]]:
        """Brute force: (score, word) of the best rows that the mask lets through, ties by word."""
        rows = np.flatnonzero(mask)
        exact = query.astype(np.float64)
        scores = (self.unit[rows] @ (exact / np.linalg.norm(exact))).astype(np.float32)
        best = sorted(zip((-scores).tolist(), [self.texts[row].encode() for row in rows], strict=True))[:count]
        return [(-score, word.decode()) for score, word in best]


class Api:
    """One connection to the server under test."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)

    def call(self, method: str, path: str, body: object = None, *, raw: bytes | None = None) -> object:
        """The result of one request; anything but success ends the run."""
        payload = raw if raw is not None else (None if body is None else orjson.dumps(body))
        kind = "application/x-ndjson" if raw is not None else "application/json"
        self._connection.request(method, PREFIX + path, payload, {"Content-Type": kind})
        response = self._connection.getresponse()
        answer = orjson.loads(response.read())
        check(response.status == 200, f"{method} {path} answered {response.status}: {answer.get('errors')}")
        return answer["result"]

    def metrics(self) -> str:
        """The metrics page."""
        self._connection.request("GET", "/metrics")
        return self._connection.getresponse().read().decode()


def check(holds: bool, claim: str) -> None:
    """End the run when a promise does not hold."""
    if not holds:
        raise SystemExit(f"BROKEN: {claim}")


@contextmanager
def server(data: Path, environment: dict[str, str]) -> Iterator[int]:
    """A real `headrace up` on a free port; ended with SIGTERM, and it must end well."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "service", "up", "--port", "0", "--data", str(data), "--log-level", "info"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=(data.parent / "server.log").open("ab"),
        text=True,
    )
    try:
        assert process.stdout is not None
        found = next(
            (match for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:(\d+)", line))), None
        )
        check(found is not None, "the server says where it listens")
        assert found is not None
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    check(code == 0, f"the server stops cleanly (it ended with {code})")


def load(api: Api, words: Words, *, seals: int) -> None:
    """Load every word in batches over one connection; print the rates. Each of `seals` is waited for on the way."""
    bodies = [
        b"".join(words.line(row) for row in range(start, min(start + BATCH, len(words.texts))))
        for start in range(0, len(words.texts), BATCH)
    ]
    started = time.monotonic()
    last = ""
    for number, body in enumerate(bodies):
        last = api.call("POST", "/words/upsert", raw=body)["mutationId"]  # type: ignore[index]
        if (due := (number + 1) * seals // len(bodies)) > number * seals // len(bodies):
            settle(api, seals=due, merges=0)
    acknowledged = time.monotonic() - started
    info = api.call("GET", f"/words/info?wait_for={last}&timeout=300")
    searchable = time.monotonic() - started
    check(info["vectorCount"] == len(words.texts), f"/info counts {len(words.texts)} vectors: {info}")  # type: ignore[index]
    count = len(words.texts)
    if not seals:
        print(
            f"  load: {count / acknowledged:,.0f} vectors/s acknowledged, "
            f"{count / searchable:,.0f} vectors/s searchable"
        )


def find_all(api: Api, words: Words, rng: np.random.Generator) -> None:
    """Every word is found by its own vector: all of them, or a sample where there are more than FOUND_MAX."""
    rows = rng.permutation(len(words.texts))[:FOUND_MAX].tolist()
    for row in rows:
        text = words.texts[row]
        found = api.call("POST", "/words/query", {"vector": words.vectors[row].tolist(), "topK": 1})["matches"][0]  # type: ignore[index]
        check(found["id"] == text or found["score"] >= 0.999999, f"{text!r} is found by its own vector: {found}")
    print(f"  findable: {len(rows):,} of {len(words.texts):,} asked for, all by their own vectors")


def compare(api: Api, words: Words, rng: np.random.Generator) -> None:
    """Filtered and plain queries against brute force: equal at recall 1, near enough otherwise."""
    hits = {10: [], 100: []}  # type: dict[int, list[float]]
    filtered: list[float] = []
    for number in range(SAMPLE):
        query = words.vectors[rng.integers(len(words.texts))] + rng.normal(0, 0.02, 100).astype(np.float32)
        conditions, mask = _filter(words, rng) if number % 2 else ({}, np.ones(len(words.texts), dtype=np.bool_))
        request = {"vector": query.tolist(), "filter": conditions}
        truth = words.nearest(query, mask, 10)
        exact = _matches(api, request | {"topK": 10, "recall": 1})
        check(exact == truth, f"recall 1 equals brute force for {conditions}: {exact[:3]} against {truth[:3]}")
        usual = _matches(api, request | {"topK": 10})
        check(len(usual) == len(truth), f"an answer has as many rows as match: {len(usual)} of {len(truth)}")
        share = len({word for _, word in usual} & {word for _, word in truth}) / max(1, len(truth))
        (filtered if conditions else hits[10]).append(share)
        if not conditions:
            far = {word for _, word in words.nearest(query, mask, 100)}
            hits[100].append(len({word for _, word in _matches(api, request | {"topK": 100})} & far) / len(far))
    for name, shares in {"recall@10": hits[10], "recall@100": hits[100], "recall@10 filtered": filtered}.items():
        print(f"  {name}: {statistics.mean(shares):.4f} over {len(shares)} queries")
        check(statistics.mean(shares) >= RECALL_MIN, f"{name} is at least {RECALL_MIN}")


def _filter(words: Words, rng: np.random.Generator) -> tuple[dict[str, object], NDArray[np.bool_]]:
    letter, length = str(rng.choice(words.letters)), int(rng.integers(3, 9))
    match rng.integers(4):
        case 0:
            return {"letter": letter}, words.letters == letter
        case 1:
            return {"length": {"$gte": length}}, words.lengths >= length
        case 2:
            return {"letter": {"$ne": letter}, "length": length}, (words.letters != letter) & (words.lengths == length)
        case _:
            rank = int(rng.integers(1, len(words.texts)))
            return {"rank": {"$lte": rank}}, np.arange(1, len(words.texts) + 1) <= rank


def _matches(api: Api, request: dict[str, object]) -> list[tuple[float, str]]:
    found = api.call("POST", "/words/query", request)["matches"]  # type: ignore[index]
    return [(float(np.float32(match["score"])), match["id"]) for match in found]


def survive_deletes(api: Api, words: Words) -> None:
    """With the 15 % nearest neighbours of a query deleted, the answer equals brute force."""
    query = words.vectors[words.texts.index("ocean")]
    mask = np.ones(len(words.texts), dtype=np.bool_)
    gone = [word for _, word in words.nearest(query, mask, len(words.texts) * 15 // 100)]
    last = ""
    for start in range(0, len(gone), 10_000):
        last = api.call("POST", "/words/delete_by_ids", {"ids": gone[start : start + 10_000]})["mutationId"]  # type: ignore[index]
    api.call("GET", f"/words/info?wait_for={last}&timeout=300")
    mask[np.isin(np.array(words.texts), gone)] = False
    truth = words.nearest(query, mask, 50)
    check(_matches(api, {"vector": query.tolist(), "topK": 50, "recall": 1}) == truth, "recall 1 survives deletes")
    usual = _matches(api, {"vector": query.tolist(), "topK": 50})
    check(len(usual) == 50, f"an answer is never short: {len(usual)} of 50")
    print(f"  deletes: {len(gone):,} nearest neighbours gone, the answer equals brute force")


def measure_queries(api: Api, words: Words, rng: np.random.Generator) -> None:
    """The rate of one client, ids and metadata in the answer."""
    bodies = [
        {"vector": words.vectors[row].tolist(), "topK": 10, "returnMetadata": "all"}
        for row in rng.integers(len(words.texts), size=500)
    ]
    times = _times(lambda number: api.call("POST", "/words/query", bodies[number]), len(bodies))
    print(f"  queries: {1000 / statistics.mean(times):,.0f}/s with one client, {_percentiles(times)}")


def measure_visibility(api: Api, words: Words) -> None:
    """From sending one vector to finding it, under light load."""

    def round_trip(number: int) -> None:
        line = orjson.dumps({"id": f"probe-{number}", "values": words.vectors[number].tolist()})
        api.call("POST", "/words/upsert?wait=true&timeout=30", raw=line)
        found = api.call("POST", "/words/get_by_ids", {"ids": [f"probe-{number}"]})
        check(len(found) == 1, "what was waited for is there")  # type: ignore[arg-type]

    print(f"  write to visible, both requests: {_percentiles(_times(round_trip, 200))}")


def _times(act: Callable[[int], object], count: int) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for number in range(count):
        started = time.perf_counter()
        act(number)
        times.append((time.perf_counter() - started) * 1000)
    return times


def _percentiles(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms"


def settle(api: Api, *, seals: int, merges: int) -> None:
    """Wait until as many seals and merges were published, as `/metrics` tells."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        page = api.metrics()
        done = [
            int(float(re.search(rf"^{name} (\S+)$", page, re.MULTILINE)[1]))
            for name in ("headrace_seals_total", "headrace_merges_total")
        ]  # type: ignore[index]
        if done[0] >= seals and done[1] >= merges:
            print(f"  built: {done[0]} seals, {done[1]} merges")
            return
        time.sleep(0.5)
    check(False, f"{seals} seals and {merges} merges happen within {WAIT_S} s")


def run(words: Words, environment: dict[str, str], *, seals: int, merges: int) -> None:
    """One whole life of a data folder."""
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        data, environment = Path(folder) / "data", environment | {"TMPDIR": folder}
        with server(data, environment) as port:
            api = Api(port)
            api.call("POST", "", {"name": "words", "config": {"dimensions": 100, "metric": "cosine"}})
            for name, kind in (("letter", "string"), ("length", "number")):
                api.call("POST", "/words/metadata_index/create", {"propertyName": name, "indexType": kind})
            load(api, words, seals=seals)
            measure_queries(api, words, rng)
            settle(api, seals=max(seals, int(words.vectors.nbytes > SEAL_BYTES)), merges=merges)
            find_all(api, words, rng)
            compare(api, words, rng)
            measure_queries(api, words, rng)
        with server(data, environment) as port:
            print("  restarted")
            api = Api(port)
            info = api.call("GET", "/words/info")
            check(info["vectorCount"] == len(words.texts), f"a restart keeps every vector: {json.dumps(info)}")  # type: ignore[index]
            compare(api, words, rng)
            survive_deletes(api, words)
            measure_visibility(api, words)


def main() -> None:
    """Read the arguments, run, and say so at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=20_000, help="how many words (default 20000)")
    parser.add_argument("--short", action="store_true", help="the 5,000 words of the sample, small seals only")
    options = parser.parse_args()
    # Ended from outside, by `timeout` say, it cleans up as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.short:
        sample = sample_words()
        words = Words([word.text for word in sample], np.array([word.values for word in sample]))
    else:
        words = Words(*load_words(options.words))
        print(f"{len(words.texts):,} words, defaults")
        run(words, {}, seals=0, merges=0)
    print(f"{len(words.texts):,} words, a small seal size")
    run(words, SMALL, seals=3, merges=1)
    print("every promise held")


if __name__ == "__main__":
    main()
