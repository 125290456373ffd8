"""Vectors to insert or upsert: from the bytes of a body to one batch, all or nothing.

Two readers give the same result. `_fields` takes what simdjson parsed and makes no Python object per number (three
times the rate of any other parser we measured). What it cannot vouch for goes to `_read_element`, which is the
definition: slower, and exact about what is wrong and where.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from service.dialects.vectorize.dress import is_plain, undress
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.metadata import compact_metadata
from service.dialects.vectorize.names import check_id, checked_namespace
from service.dialects.vectorize.values import ValueInvalid, check_float32, float64_values, kind_of
from storage.batch import Batch
from storage.limits import Limits
from storage.records import Action

KNOWN_CONTENT_TYPES = ("application/x-ndjson", "application/json", "multipart/", "application/octet-stream")
Source = TypeVar("Source")
VALUE_BYTES_MIN = 2
"""The least text one number takes, its comma included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """What a batch is held to. `discard` drops lines that are no JSON objects; else the batch is refused."""

    action: Action
    dimensions: int
    limits: Limits
    discard: bool = False


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch, and how many lines were dropped from it."""

    batch: Batch
    dropped: int


@dataclass(slots=True, kw_only=True)
class _Raw:
    """The fields of a vector, parsed and held to no rule yet but that the id is text and the values are numbers.

    There is one for every line, and a frozen one takes three times as long to make.
    """

    vector_id: str
    namespace: object
    metadata: object
    values: NDArray[np.float64]


class _NotAnObject(Exception):
    """A line or element is not a JSON object; the message says what is wrong with it."""


class _Full(Exception):
    """The batch has as many vectors as it may."""


class _Unnamed(Exception):
    """An object has no id to be named by; the message says what is there instead."""


def read_batch(body: bytes, content_type: str, rules: BatchRules) -> ReadBatch:
    """Read every vector of a body. Raises Refusal for the first one that is not acceptable."""
    undressed = undress(body, content_type)
    text = undressed.text
    elements = _elements(text) if undressed.whole else None
    if elements is not None:
        return _collect(enumerate(elements), _ElementReader(text, elements), rules, bytes_total=len(text))
    try:
        return _collect(_lines(text), _LineReader(), rules, bytes_total=len(text))
    except Refusal as refusal:
        first = next(_lines(text), None)
        if refusal.code is Code.BATCH_UNPARSABLE and first is not None and not _is_known(content_type, first[1]):
            raise Refusal(Code.UNKNOWN_CONTENT_TYPE, "vectorize.unknown_content_type") from refusal
        raise


class ArrivingBatch:
    """A body of plain lines that is read while it arrives: each line as soon as it is whole.

    Most of the time that a large body takes on its way is then not waited for, its text is parsed while it is in the
    cache, and the event loop is held up by no more than what arrived at once.
    """

    def __init__(self, rules: BatchRules, bytes_total: int) -> None:
        """`bytes_total` is how long the body is going to be, at the most."""
        self._collector = _Collector(_LineReader(), rules, bytes_total=bytes_total)
        self._unfinished: list[bytes] = []
        self._lines = 0
        self._refusal: Refusal | None = None

    @staticmethod
    def fits(start: bytes, content_type: str) -> bool:
        """Whether a body that begins so is certain to be lines and nothing else."""
        return is_plain(start, content_type)

    def feed(self, chunk: bytes) -> None:
        """Take what arrived next. What is wrong with it is told by `end`: the rest is to be read in any case."""
        start = 0
        if self._unfinished:
            start = chunk.find(b"\n") + 1
            if not start:
                self._unfinished.append(chunk)
                return
            line = b"".join([*self._unfinished, chunk[: start - 1]])
            self._take(line, 0, len(line))
            self._lines += 1
        end = chunk.rfind(b"\n") + 1
        self._take(chunk, start, end)
        self._lines += chunk.count(b"\n", start)
        self._unfinished = [chunk[end:]] if end < len(chunk) else []

    def end(self) -> ReadBatch:
        """The batch, once the last chunk was taken. Raises Refusal for the first line that is not acceptable."""
        last = b"".join(self._unfinished)
        self._take(last, 0, len(last))
        if self._refusal is not None:
            raise self._refusal
        return self._collector.batch()

    def _take(self, text: bytes, start: int, end: int) -> None:
        if self._refusal is None:
            try:
                self._collector.take(_lines(text, start, end, self._lines))
            except Refusal as refusal:
                self._refusal = refusal


def _lines(text: bytes, start: int = 0, end: int = -1, number: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number; of a part of the text, which has that many lines before it.

    One at a time: the line just read leaves its memory, still in the cache, to the next. Splitting all of a body of
    10 MB took a fifth of the time of parsing it.
    """
    end = len(text) if end < 0 else end
    while start < end:
        stop = text.find(b"\n", start, end)
        if stop < 0:
            stop = end
        line = text[start:stop]
        if line and not line.isspace():
            yield number, line
        number, start = number + 1, stop + 1


def _is_known(content_type: str, first_line: bytes) -> bool:
    label = content_type.strip().lower()
    return not label or label.startswith(KNOWN_CONTENT_TYPES) or first_line.lstrip().startswith(b"{")


def _elements(text: bytes) -> list[object] | None:
    """The vectors of a body that is one JSON document; None when it is not one after all."""
    document: Any
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError):
        # simdjson refuses what only the plain reader can explain: large integers, NaN, halves of surrogate pairs.
        try:
            document = _loads_plainly(text)
        except ValueError:
            return None
    if isinstance(document, dict | simdjson.Object):
        document = document.get("vectors")
    return list(document) if isinstance(document, list | simdjson.Array) else None


def _collect(
    sources: Iterable[tuple[int, Source]],
    read: Callable[[Source], _Raw],
    rules: BatchRules,
    *,
    bytes_total: int,
) -> ReadBatch:
    """Read every source into one batch; the number beside it is its place in the body."""
    collector = _Collector(read, rules, bytes_total=bytes_total)
    collector.take(sources)
    return collector.batch()


class _Collector(Generic[Source]):
    """Reads one source after the other into one batch."""

    def __init__(self, read: Callable[[Source], _Raw], rules: BatchRules, *, bytes_total: int) -> None:
        self._read = read
        self._rules = rules
        self._columns = _Columns(rules, bytes_total)
        self._dropped = 0
        self._beyond = 0
        """Sources after the last that had room: they are only counted."""

    def take(self, sources: Iterable[tuple[int, Source]]) -> None:
        """Read these; the number beside each is its place in the body. Raises Refusal."""
        # What float32 cannot hold becomes infinite, and is found in all rows at once.
        with np.errstate(over="ignore"):
            for number, source in sources:
                if self._beyond:
                    self._beyond += 1
                    continue
                try:
                    self._columns.add(self._read(source))
                except _Unnamed as error:
                    raise _unparsable_line(self._rules.action, number, error) from error
                except _NotAnObject as error:
                    if not self._rules.discard:
                        raise _unparsable_line(self._rules.action, number, error) from error
                    self._dropped += 1
                except _Full:
                    self._beyond = 1

    def batch(self) -> ReadBatch:
        """All that was read. Raises Refusal."""
        if self._beyond:
            count_max = self._rules.limits.upload_vectors_max
            raise _too_many(count_max, count_max + self._beyond)
        if not self._columns.ids:
            raise _unparsable(self._rules.action, "the body holds no vectors; send one JSON object per line")
        return ReadBatch(self._columns.batch(), self._dropped)


class _Columns:
    """A batch as it grows."""

    def __init__(self, rules: BatchRules, bytes_total: int) -> None:
        self._rules = rules
        # Memory that is reserved and not written to costs nothing, but lines of nothing must not reserve it without
        # end: a vector takes at least two bytes a number.
        rows_max = bytes_total // (rules.dimensions * VALUE_BYTES_MIN) + 1
        self._matrix = np.empty((min(rows_max, rules.limits.upload_vectors_max), rules.dimensions), dtype=np.float32)
        self.ids = list[str]()
        self._namespaces = list[str]()
        self._metadata = list[bytes]()

    def add(self, raw: _Raw) -> None:
        """Hold a vector to the rules that depend on the index and the limits. Raises Refusal, _Full."""
        rules, vector_id, values = self._rules, raw.vector_id, raw.values
        check_id(vector_id, rules.limits)
        if len(values) != rules.dimensions:
            raise _invalid_vector(vector_id, f"{rules.dimensions} dimensions, and got {len(values)} dimensions")
        namespace = checked_namespace(raw.namespace, rules.limits)
        metadata = compact_metadata(raw.metadata, vector_id=vector_id, limits=rules.limits)
        if len(self.ids) == rules.limits.upload_vectors_max:
            raise _Full
        self._matrix[len(self.ids)] = values
        self.ids.append(vector_id)
        self._namespaces.append(namespace)
        self._metadata.append(metadata)

    def batch(self) -> Batch:
        """All that was added. Raises Refusal."""
        values = self._matrix[: len(self.ids)]
        _check_narrowed(values, self.ids)
        return Batch(tuple(self.ids), tuple(self._namespaces), tuple(self._metadata), values)


class _LineReader:
    """Reads lines with one parser, whose memory is used again for every line."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def __call__(self, line: bytes) -> _Raw:
        """The fields of a line. Raises _NotAnObject, _Unnamed, Refusal."""
        raw = self._read_quickly(line)
        if raw is not None:
            return raw
        try:
            document = _loads_plainly(line)
        except ValueError as error:
            raise _NotAnObject(str(error)) from error
        return _read_element(document)

    def _read_quickly(self, line: bytes) -> _Raw | None:
        """No part of the parser outlives this call: it refuses its next line while one does."""
        try:
            document = self._parser.parse(line)
        except (ValueError, RuntimeError):
            return None
        return _fields(document, brackets=_brackets(line))


def _brackets(line: bytes) -> int:
    """How many arrays may begin in a line, or 0 where that cannot be told."""
    # Nearly always the only one is that of the values. Finding goes many bytes at a time, and counting one by one.
    if line.find(b"[", line.find(b"[") + 1) < 0:
        return 1
    # An escaped bracket would be counted in the metadata and not in the line.
    return 0 if b"\\" in line else line.count(b"[")


class _ElementReader:
    """Reads the elements of one document."""

    def __init__(self, text: bytes, elements: Sequence[object]) -> None:
        objects = sum(isinstance(element, simdjson.Object) for element in elements)
        # An object without values is refused, so when there is one bracket for each and one for the list, then no
        # object has another.
        self._brackets = 1 if text.count(b"[") == 1 + objects else 0

    def __call__(self, element: object) -> _Raw:
        """The fields of an element. Raises _NotAnObject, _Unnamed, Refusal."""
        return _read_element(element, brackets=self._brackets)


def _fields(document: Any, *, brackets: int) -> _Raw | None:
    """The fields of a vector that is as it should be; None for any other, and for what takes explaining.

    `brackets` is how many arrays may begin in the document, or 0 when nobody counted.
    """
    try:
        keys = set(document.keys())
        numbers = document["values"]
        vector_id = document["id"]
        metadata = document["metadata"].mini if "metadata" in keys and document["metadata"] is not None else b"null"
        # A nested array would be flattened without a word; of a key given twice the first would be taken.
        flat = brackets == 1 + metadata.count(b"[") or _is_flat(numbers)
        if len(keys) != len(document) or not flat or not isinstance(vector_id, str):
            return None
        raw = _Raw(
            vector_id=vector_id,
            namespace=document["namespace"] if "namespace" in keys else None,
            metadata=orjson.loads(metadata),
            values=np.frombuffer(numbers.as_buffer(of_type="d"), dtype=np.float64),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        # Which of these simdjson raises differs by version; the plain reader finds out what it was and explains.
        return None
    return raw if raw.namespace is None or isinstance(raw.namespace, str) else None


def _is_flat(numbers: simdjson.Array) -> bool:
    return not any(isinstance(number, list) for number in numbers.as_list())


def _read_element(document: object, *, brackets: int = 0) -> _Raw:
    """The fields of a parsed document: plain Python's is the definition of what is accepted."""
    if isinstance(document, simdjson.Object):
        raw = _fields(document, brackets=brackets)
        if raw is not None:
            return raw
        document = document.as_dict()
    if not isinstance(document, dict):
        raise _NotAnObject(f"expected an object, and got {kind_of(document)}")
    vector_id, values = document.get("id"), document.get("values")
    if not isinstance(vector_id, str):
        raise _Unnamed(f"expected a string in `id`, and got {kind_of(vector_id)}")
    if not isinstance(values, list):
        raise _invalid_vector(vector_id, f"an array of numbers in `values`, and got {kind_of(values)}")
    try:
        numbers = float64_values(values)
    except ValueInvalid as error:
        raise _invalid_vector(vector_id, f"finite numbers, and got {error}") from error
    return _Raw(
        vector_id=vector_id,
        namespace=document.get("namespace"),
        metadata=document.get("metadata"),
        values=numbers,
    )


def _check_narrowed(matrix: NDArray[np.float32], ids: Sequence[str]) -> None:
    if np.isfinite(matrix).all():
        return
    for vector_id, values in zip(ids, matrix, strict=True):
        try:
            check_float32(values)
        except ValueInvalid as error:
            raise _invalid_vector(vector_id, f"finite numbers, and got {error}") from error


def _loads_plainly(text: bytes) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _invalid_vector(vector_id: str, expectation: str) -> Refusal:
    return Refusal(Code.VECTOR_INVALID, f'invalid vector for id="{vector_id:.80}", expected {expectation}')


def _unparsable_line(action: Action, number: int, error: Exception) -> Refusal:
    return _unparsable(action, f"line Some({number}) was not expected format: {error}")


def _unparsable(action: Action, reason: str) -> Refusal:
    return Refusal(
        Code.BATCH_UNPARSABLE,
        f"vectorize.upstream_error - failed to parse {action.value} vectors request in ndjson format: {reason}",
    )


def _too_many(count_max: int, found: int) -> Refusal:
    message = f"too many vectors in payload; max vector count is {count_max}, got {found}"
    return Refusal(Code.TOO_MANY, message)
