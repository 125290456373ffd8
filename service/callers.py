"""Which of a caller's mutations `/info` has named to it.

langchain-cloudflare asks `/info` until it names exactly the mutation it wrote. When several are applied at
once, or several threads of one program write, naming only the newest would leave some of them waiting until
they give up. So a caller that wrote here hears of each of its own processed mutations: the newest it has not
heard of, and after that any of them. Each answer is true; only their order is not promised.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Sequence as Items

from storage.records import IndexId, Sequence

CALLER_BYTES = 8


def caller_hash(*, token: str, agent: str, address: str) -> bytes:
    """What stands for a caller in the log: nobody can be read back from it."""
    text = "\0".join((token, agent, address)).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=CALLER_BYTES).digest()


class CallerNames:
    """Remembers, for the callers that asked last, what was named to them. Forgetting costs them a repeat."""

    def __init__(self, *, callers_max: int = 4096, dice: random.Random | None = None) -> None:
        self._callers_max = callers_max
        self._dice = dice or random.Random()  # noqa: S311 (a choice among true answers, not a secret)
        self._named: OrderedDict[tuple[IndexId, bytes], frozenset[Sequence]] = OrderedDict()

    def choose(self, index: IndexId, caller: bytes, own: Items[Sequence]) -> Sequence:
        """One of the caller's processed mutations, oldest first in `own`, which is not empty."""
        key = (index, caller)
        named = self._named.pop(key, frozenset())
        fresh = [sequence for sequence in own if sequence not in named]
        chosen = fresh[-1] if fresh else self._dice.choice(own)
        # Only what could be named again is worth remembering: the window bounds `own`, and so this.
        self._named[key] = named.intersection(own) | {chosen}
        while len(self._named) > self._callers_max:
            self._named.popitem(last=False)
        return chosen
