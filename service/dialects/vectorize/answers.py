"""The shapes of results. Keys come in the live service's order; what a vector does not have has no key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from service.dialects.vectorize.models import ReturnMetadata
from service.dialects.vectorize.values import answer_score, answer_values
from storage.filters import cut, path_of, type_of, value_at
from storage.interfaces import ListPage
from storage.records import IndexSpec, MetadataIndex, MetadataType, MutationStatus, Record
from storage.search import Hit, PartExplanation

Answer = dict[str, Any]


def index_answer(spec: IndexSpec) -> Answer:
    """An index as create, get and list show it."""
    config: Answer = {"dimensions": spec.config.dimensions, "metric": spec.config.metric}
    if spec.config.preset:
        config["preset"] = spec.config.preset
    return {
        "created_on": micros_text(spec.created_us),
        "modified_on": micros_text(spec.modified_us),
        "name": spec.name,
        "description": spec.description,
        "config": config,
    }


def vector_answer(record: Record, *, values: bool = True, metadata: bool = True) -> Answer:
    """A stored vector. Its metadata goes out as the bytes it is kept as."""
    answer: Answer = {"id": record.id}
    if values:
        answer["values"] = answer_values(record.values)
    if record.namespace:
        answer["namespace"] = record.namespace
    if metadata and record.metadata:
        answer["metadata"] = orjson.Fragment(record.metadata)
    return answer


def match_answer(
    hit: Hit, values: bool, metadata: ReturnMetadata, indexes: Sequence[MetadataIndex], string_bytes_max: int
) -> Answer:
    """One match of a query."""
    id, score, part, row = hit
    answer: Answer = {"id": id, "score": answer_score(score)}
    if values:
        answer["values"] = part.vectors[row].astype(np.float64)
    namespace = part.namespace_of(row)
    if namespace:
        answer["namespace"] = namespace
    if metadata is ReturnMetadata.ALL:
        text = part.metadata(row)
        if text:
            answer["metadata"] = orjson.Fragment(text)
    elif metadata is ReturnMetadata.INDEXED:
        projected = indexed_metadata(part.metadata(row), indexes, string_bytes_max=string_bytes_max)
        if projected:
            answer["metadata"] = projected
    return answer


def indexed_metadata(text: bytes, indexes: Sequence[MetadataIndex], *, string_bytes_max: int) -> dict[str, object]:
    """The properties that have a metadata index, nested as they were, as their index holds them."""
    if not text or not indexes:
        return {}
    metadata = orjson.loads(text)
    projected: dict[str, object] = {}
    for index in indexes:
        path = path_of(index.property)
        value = value_at(metadata, path)
        if type_of(value) is not index.type:
            continue
        if isinstance(value, str):
            value = cut(value, string_bytes_max).decode()
        place: dict[str, Any] = projected
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return projected


def explanation_answer(part: PartExplanation) -> Answer:
    """What a query did in one segment or in the tail."""
    return {
        "segment": part.name,
        "rows": part.rows,
        "live": part.live,
        "matching": part.matching,
        "plan": part.plan.value,
        "expansion": part.expansion,
        "candidates": part.candidates,
    }


def list_answer(page: ListPage, *, include: frozenset[str]) -> Answer:
    """A page of a listing; every key is always there."""
    vectors: list[Answer] = [{"id": vector_id} for vector_id in page.ids]
    if include:
        for place, record in enumerate(page.records):
            if record is not None:
                vectors[place] = vector_answer(record, values="values" in include, metadata="metadata" in include)
    return {
        "count": len(page.ids),
        "isTruncated": bool(page.next_cursor),
        "totalCount": page.total,
        "vectors": vectors,
        "cursorExpirationTimestamp": nanos_text(page.expires_ms) if page.expires_ms else None,
        "nextCursor": page.next_cursor or None,
    }


def metadata_index_answer(index: MetadataIndex) -> Answer:
    """A metadata index. The type is capitalised, as the live service answers against its own schema."""
    return {"propertyName": index.property, "indexType": TYPE_NAMES[index.type]}


TYPE_NAMES: Mapping[MetadataType, str] = {
    MetadataType.STRING: "String",
    MetadataType.NUMBER: "Number",
    MetadataType.BOOLEAN: "Boolean",
}


def mutation_answer(status: MutationStatus) -> Answer:
    """A mutation and what became of it."""
    counts = status.counts
    answer: Answer = {
        "mutationId": status.id,
        "action": status.action,
        "state": status.state,
        "createdOn": millis_text(status.created_ms),
        "processedOn": millis_text(status.applied_ms) if status.applied_ms else None,
        "rows": status.rows,
        "counts": {
            "inserted": counts.inserted,
            "replaced": counts.replaced,
            "ignored": counts.ignored,
            "deleted": counts.deleted,
            "missing": counts.missing,
        },
    }
    if status.error:
        answer["error"] = status.error
    return answer


def micros_text(time_us: int) -> str:
    """RFC 3339 with microseconds, as creation times are written."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + (
        f".{time_us % 1_000_000:06d}Z"
    )


def millis_text(time_ms: int) -> str:
    """RFC 3339 with milliseconds, as processing times are written."""
    return f"{micros_text(time_ms * 1000)[:-4]}Z"


def nanos_text(time_ms: int) -> str:
    """RFC 3339 with nanoseconds and an offset, as the expiry of a cursor is written."""
    return f"{micros_text(time_ms * 1000)[:-1]}000+00:00"
