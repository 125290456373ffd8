"""What a query asks, read from its body and its query string and held to the limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import simdjson
from aiohttp import web
from numpy.typing import NDArray

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import QueryBody, ReturnMetadata, parse_json, unreadable, validate
from service.dialects.vectorize.parameters import flag_parameter
from service.dialects.vectorize.values import ValueInvalid, float64_values, kind_of, to_float32
from storage.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query as it was sent: `vector` is empty when `vector_id` names the vector to compare with."""

    vector: NDArray[np.float64]
    body: QueryBody
    top_k: int
    offset: int
    recall: float
    timing: bool
    explain: bool


def read_question(request: web.Request, body: bytes, limits: Limits, *, recall: float) -> Question:
    """Parse a query; `recall` is what it is planned for when it names none. Raises Refusal."""
    vector, document = _split(body)
    model = validate(QueryBody, document)
    if (vector is None) == (model.vector_id is None):
        found = "both" if model.vector_id is not None else "neither"
        raise unreadable(f"expected exactly one of `vector` and `vectorId`, and got {found}")
    return Question(
        vector=np.empty(0) if vector is None else vector,
        body=model,
        top_k=_top_k(model, limits),
        offset=_offset(request, model, limits),
        recall=_recall(request, model, recall),
        timing=model.include_timing or flag_parameter(request, "include_timing"),
        explain=model.explain or flag_parameter(request, "explain"),
    )


def query_vector(values: NDArray[np.float64], dimensions: int) -> NDArray[np.float32]:
    """The numbers to compare with, as stored ones are. Raises Refusal."""
    if len(values) != dimensions:
        raise _invalid_vector(f"{dimensions} dimensions, and got {len(values)} dimensions")
    try:
        return to_float32(values)
    except ValueInvalid as error:
        raise _invalid_vector(f"finite numbers, and got {error}") from error


def _split(body: bytes) -> tuple[NDArray[np.float64] | None, object]:
    """The vector and the rest of the body, apart. Raises Refusal."""
    quick = _split_quickly(body)
    if quick is not None:
        return quick
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


def _split_quickly(body: bytes) -> tuple[NDArray[np.float64], dict[str, object]] | None:
    """The same for a body as it should be, without a Python object per number; None for every other."""
    try:
        document: Any = simdjson.Parser().parse(body)
        keys = set(document.keys())
        numbers = document["vector"]
        if len(keys) != len(document) or body.count(b"[") != 1:
            return None
        vector = np.frombuffer(numbers.as_buffer(of_type="d"), dtype=np.float64)
        return vector, {key: _plain(document[key]) for key in keys if key != "vector"}
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        # As in `vectors`: the plain reader finds out what it was and explains.
        return None


def _plain(value: object) -> object:
    return value.as_dict() if isinstance(value, simdjson.Object) else value


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
