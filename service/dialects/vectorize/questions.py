"""What a query asks, read from its body and its query string and held to the limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson
from aiohttp import web
from numpy.typing import NDArray

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.filters import parse_filter, rules_for
from service.dialects.vectorize.models import QueryBody, ReturnMetadata, parse_json, unreadable, validate
from service.dialects.vectorize.names import checked_namespace
from service.dialects.vectorize.parameters import flag_parameter
from service.dialects.vectorize.values import ValueInvalid, float64_values, kind_of, to_float32
from storage.filters import Filter, FilterRules
from storage.limits import Limits

SHAPES_MAX, SHAPE_BYTES_MAX = 512, 2_048
"""How many shapes of queries a process remembers, and of what length at most."""
_VECTOR = re.compile(rb'"vector"\s*:\s*\[')
_shapes: dict[tuple[bytes, str, Limits, float], Shape] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All that a query asks but its vector. Callers ask many queries of one shape, so it is read once."""

    body: QueryBody
    top_k: int
    offset: int
    recall: float
    timing: bool
    explain: bool
    namespace: str
    filter: Filter | None
    rules: FilterRules


class Question(NamedTuple):
    """A query as it was sent: `vector` is None when the shape names the stored one to compare with."""

    vector: NDArray[np.float64] | None
    shape: Shape


def read_question(request: web.Request, body: bytes, limits: Limits, *, recall: float) -> Question:
    """Parse a query; `recall` is what it is planned for when it names none. Raises Refusal, FilterInvalid."""
    split = _split_quickly(body)
    if split is not None:
        vector, rest = split
        key = (rest, request.query_string, limits, recall)
        if key in _shapes:
            return Question(vector, _shapes[key])
        document = _rest_of(rest)
        if document is not None:
            shape = _shape(request, document, limits, recall=recall, has_vector=True)
            if len(rest) <= SHAPE_BYTES_MAX:
                if len(_shapes) >= SHAPES_MAX:
                    _shapes.clear()
                _shapes[key] = shape
            return Question(vector, shape)
    given, document = _split(body)
    return Question(given, _shape(request, document, limits, recall=recall, has_vector=given is not None))


def _shape(request: web.Request, document: object, limits: Limits, *, recall: float, has_vector: bool) -> Shape:
    model = validate(QueryBody, document)
    if has_vector == (model.vector_id is not None):
        found = "both" if has_vector else "neither"
        raise unreadable(f"expected exactly one of `vector` and `vectorId`, and got {found}")
    return Shape(
        body=model,
        top_k=_top_k(model, limits),
        offset=_offset(request, model, limits),
        recall=_recall(request, model, recall),
        timing=model.include_timing or flag_parameter(request, "include_timing"),
        explain=model.explain or flag_parameter(request, "explain"),
        namespace=checked_namespace(model.namespace, limits),
        filter=parse_filter(model.filter, limits),
        rules=rules_for(limits),
    )


def query_vector(values: NDArray[np.float64], dimensions: int) -> NDArray[np.float32]:
    """The numbers to compare with, as stored ones are. Raises Refusal."""
    if len(values) != dimensions:
        raise _invalid_vector(f"{dimensions} dimensions, and got {len(values)} dimensions")
    try:
        return to_float32(values)
    except ValueInvalid as error:
        raise _invalid_vector(f"finite numbers, and got {error}") from error


def _rest_of(rest: bytes) -> object:
    """The document that `_split_quickly` left; None when it is none, or when what it took was no key of it."""
    try:
        document = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) and document.get("vector") is True else None


def _split(body: bytes) -> tuple[NDArray[np.float64] | None, object]:
    """The vector and the document it came in. Raises Refusal."""
    document = parse_json(body)
    if not isinstance(document, dict) or document.get("vector") is None:
        return None, document
    vector = document["vector"]
    if not isinstance(vector, list):
        raise unreadable(f"vector: invalid type: {kind_of(vector)}, expected an array of numbers")
    try:
        return float64_values(vector), document
    except ValueInvalid as error:
        raise _invalid_vector(f"finite numbers, and got {error}") from error


def _split_quickly(body: bytes) -> tuple[NDArray[np.float64], bytes] | None:
    """The vector, and the rest of the body with `true` in its place; None for a body out of the ordinary.

    The rest is what the caller repeats from query to query. Ordinary is a body with an array right behind the only
    "vector" in it, and without a backslash: then no text can look like a key, and no key be spelled in two ways. So
    where the rest has a vector, it is this one.
    """
    found = _VECTOR.search(body)
    if found is None:
        return None
    start, end = found.end() - 1, body.find(b"]", found.end()) + 1
    rest = b"%btrue%b" % (body[:start], body[end:])
    if rest.count(b'"vector"') != 1 or b"\\" in rest:
        return None
    try:
        numbers: Any = simdjson.Parser().parse(body[start:end])
        vector = np.frombuffer(numbers.as_buffer(of_type="d"), dtype=np.float64)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        # As in `vectors`: the plain reader finds out what it was and explains.
        return None
    return vector, rest


def _top_k(model: QueryBody, limits: Limits) -> int:
    asked = limits.top_k_default if model.top_k is None else model.top_k
    if not math.isfinite(asked) or asked != int(asked) or asked < 1:
        raise Refusal(Code.TOP_K_INVALID, f"top K must be a whole number of at least 1, but got {asked:g}")
    heavy = model.return_values or model.return_metadata is ReturnMetadata.ALL
    if asked > limits.top_k_max and not heavy:
        raise Refusal(Code.TOP_K_INVALID, f"max top K is {limits.top_k_max}, but got {int(asked)}")
    if heavy and asked > limits.top_k_with_payload_max:
        raise Refusal(
            Code.TOP_K_INVALID,
            f"with returnValues=true or returnMetadata=all, max top K is {limits.top_k_with_payload_max}, but got "
            f"{int(asked)}; for a top K up to {limits.top_k_max}, retry with returnValues=false and "
            "returnMetadata=indexed",
        )
    return int(asked)


def _offset(request: web.Request, model: QueryBody, limits: Limits) -> int:
    text = request.query.get("offset", "0")
    offset = model.offset if model.offset is not None else int(text) if _is_short_decimal(text) else -1
    if not 0 <= offset <= limits.offset_max:
        found = text if model.offset is None else model.offset
        message = f"offset must be a whole number from 0 to {limits.offset_max}, but got {found!s:.40}"
        raise Refusal(Code.PARAMETER_INVALID, message)
    return offset


def _is_short_decimal(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < len(str(2**63))


def _recall(request: web.Request, model: QueryBody, default: float) -> float:
    text = request.query.get("recall")
    try:
        recall = model.recall if model.recall is not None else default if text is None else float(text)
    except ValueError:
        recall = math.nan
    if not 0 < recall <= 1:
        found = text if model.recall is None else model.recall
        message = f"recall must be a number above 0 and up to 1, but got {found!s:.40}"
        raise Refusal(Code.PARAMETER_INVALID, message)
    return recall


def _invalid_vector(expectation: str) -> Refusal:
    return Refusal(Code.QUERY_VECTOR_INVALID, f"invalid query vector, expected {expectation}")
