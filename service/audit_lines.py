"""The lines of an audit file: JSON objects that are chained, so that a change among them shows.

Whoever opens the file is a writer of its own, with a random name, and numbers its lines from 1. The last member of a
line, `chain`, is the SHA-256 of the chain before it and of the line as it is without that member. So a line that was
changed, taken out or put in between is found; what was cut off after the last line that is left of a writer is not, and
neither is a writer that is missing as a whole: for that, send the lines away as they come.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import structlog

_CHAIN = b',"chain":"'


class AuditLines:
    """Makes the lines of one writer and hands them on, whatever the level and form of the log."""

    def __init__(self, write: Callable[[bytes], bool]) -> None:
        """`write` says whether the line is in the file whole."""
        self._write = write
        self.begin()

    def begin(self) -> None:
        """Be another writer from here on: in another file, or behind a line that was not written whole."""
        self._writer = secrets.token_hex(8)
        self._number = 0
        self._chain = b""

    def info(self, event: str, *, at_s: float, **values: object) -> None:
        """Write a line. `at_s` is when it happened, in seconds since 1970."""
        moment = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {
            **values,
            **structlog.contextvars.get_contextvars(),
            "event": event,
            "level": "info",
            "timestamp": moment,
            "writer": self._writer,
            "line": self._number + 1,
        }
        try:
            text = orjson.dumps(line, default=repr)
        except TypeError:  # Half a surrogate pair: out of somebody's path.
            text = json.dumps(line, default=repr, separators=(",", ":")).encode()
        chain = _chained(self._chain, text)
        if self._write(text[:-1] + _CHAIN + chain + b'"}\n'):
            self._number += 1
            self._chain = chain
        else:
            self.begin()


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A line, counted from 1, that is not what was written there."""

    line: int
    reason: str


def suspicions(lines: Iterable[bytes]) -> Iterator[Suspicion]:
    """Everything that is wrong with the lines of an audit file."""
    seen: dict[str, tuple[int, bytes]] = {}
    for number, line in enumerate(lines, start=1):
        text, _, rest = line.rstrip(b"\n").rpartition(_CHAIN)
        try:
            found = json.loads(text + b"}")
            writer, place = str(found["writer"]), int(found["line"])
        except (ValueError, KeyError, TypeError):
            yield Suspicion(number, "it is no line of an audit, or not a whole one")
            continue
        known_place, known_chain = seen.get(writer, (0, b""))
        chain = rest.removesuffix(b'"}')
        if place != known_place + 1:
            missing = f"lines {known_place + 1} to {place - 1} of its writer are missing before it"
            yield Suspicion(number, missing if place > known_place else "its writer wrote it before lines above it")
        elif chain != _chained(known_chain, text + b"}"):
            yield Suspicion(number, "it is not what its writer wrote")
        seen[writer] = (place, chain)


def _chained(before: bytes, text: bytes) -> bytes:
    return hashlib.sha256(before + text).hexdigest().encode()
