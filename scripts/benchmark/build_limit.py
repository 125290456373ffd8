"""The limit of an index: bare usearch building the same graph of the same vectors, and nothing else.

`python -m scripts.benchmark.build_limit vectors.npy --rows 100000 --threads 2` prints one line of JSON: how many
vectors a second one call of `add` took in, in the form that segments have (`storage.indexes.hnsw`). The vectors are in
memory and of length one before the clock starts. No recall is measured, no vector looked for, nothing saved.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from usearch.index import Index

from storage.indexes.hnsw import EXPANSION_ADD, Form


def main() -> None:
    """Build once and say how fast it went."""
    form = Form()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="the first so many; all by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--connectivity", type=int, default=form.connectivity)
    parser.add_argument("--expansion", type=int, default=EXPANSION_ADD)
    parser.add_argument("--precision", default=form.precision.value, help="bf16, f32 or i8")
    options = parser.parse_args()
    vectors = np.load(options.vectors, mmap_mode="r")
    vectors = np.array(vectors[: options.rows or len(vectors)], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype=options.precision,
        connectivity=options.connectivity,
        expansion_add=options.expansion,
        enable_key_lookups=False,
    )
    keys = np.arange(len(vectors), dtype=np.uint64)
    began = time.perf_counter()
    index.add(keys, vectors, threads=options.threads)
    took = time.perf_counter() - began
    shape = {"rows": len(vectors), "dimensions": vectors.shape[1], "threads": options.threads}
    built = {name: getattr(options, name) for name in ("connectivity", "expansion", "precision")}
    print(json.dumps({**shape, **built, "seconds": round(took, 3), "per_second": round(len(vectors) / took, 1)}))


if __name__ == "__main__":
    main()
