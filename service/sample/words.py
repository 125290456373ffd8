"""The sample: 5,000 frequent English words with real vectors, so that a wrong neighbour shows at a glance.

Each word carries what a first look at filters needs: a number (`length`, `rank`) and a string (`letter`). The
namespace is a band of frequency, because asking for the same neighbours among everyday words only gives an
answer that a reader can judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

DIMENSIONS = 100
COUNT = 5_000
EVERYDAY_RANK_MAX = 1_000
FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word; `rank` 1 is the most frequent."""

    text: str
    rank: int
    values: np.ndarray[tuple[int], np.dtype[np.float32]]

    @property
    def namespace(self) -> str:
        """Its band of frequency."""
        return "everyday" if self.rank <= EVERYDAY_RANK_MAX else "wider"

    def line(self) -> bytes:
        """The word as one line of NDJSON, with its line end."""
        metadata = {"length": len(self.text), "letter": self.text[0], "rank": self.rank}
        vector = {"id": self.text, "values": self.values, "namespace": self.namespace, "metadata": metadata}
        return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def sample_words() -> tuple[Word, ...]:
    """All of them, most frequent first."""
    vectors = np.load(FOLDER / "words.npy")
    texts = (FOLDER / "words.txt").read_text(encoding="utf-8").split()
    assert vectors.shape == (COUNT, DIMENSIONS)
    assert len(texts) == COUNT
    return tuple(
        Word(text=text, rank=rank, values=values)
        for rank, (text, values) in enumerate(zip(texts, vectors, strict=True), start=1)
    )


def ndjson(words: Iterable[Word]) -> Iterator[bytes]:
    """The lines of these words."""
    return (word.line() for word in words)
