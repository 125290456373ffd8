"""A bulk load from a process of its own, while another reads: batches of new vectors, one after the other.

    python -m scripts.benchmark.bulk_writer PORT INDEX VECTORS.npy BATCHES BATCH SECONDS

Prints a line when its requests are made, begins when it reads one, and prints what it did as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import orjson

from scripts.benchmark import load
from scripts.benchmark.headrace import answered, upsert


def bodies(vectors: np.ndarray, batches: int, batch: int) -> Iterator[bytes]:
    """Rows of the set with noise of a fifth of their length: like what is there, but none of it."""
    dice = np.random.default_rng(5)
    for number in range(batches):
        rows = vectors[dice.integers(0, len(vectors), batch)]
        noise = dice.standard_normal(rows.shape, dtype=np.float32)
        rows = rows + noise / np.linalg.norm(noise, axis=1, keepdims=True) / 5
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield b"".join(
            orjson.dumps(
                {"id": f"new-{number}-{place}", "values": row, "metadata": {"random_2": str(place % 2)}},
                option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
            )
            for place, row in enumerate(rows)
        )


def main() -> None:
    """Make, wait, write."""
    port, index, path, batches, batch, seconds = sys.argv[1:]
    vectors = np.load(path, mmap_mode="r")
    requests = [upsert(index, body) for body in bodies(vectors, int(batches), int(batch))]
    print("ready", flush=True)
    sys.stdin.readline()
    run = answered(load.closed_loop(int(port), requests, connections=1, seconds=float(seconds)))
    last = orjson.loads(load.body_of(run.bodies[(len(run.latencies) - 1) % len(requests)]))
    written = {"rate": run.rate * int(batch), "batches": len(run.latencies), "last": last["result"]["mutationId"]}
    print(json.dumps(written), flush=True)


if __name__ == "__main__":
    main()
