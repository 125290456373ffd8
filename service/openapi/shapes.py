"""JSON Schemas of what requests bring, exact where a schema can be: what it forbids is refused, and nothing else.

What it cannot say is in descriptions: lengths are of UTF-8, as many values as the index has dimensions.
"""

from __future__ import annotations

from service.dialects.vectorize.configs import PRESETS
from service.dialects.vectorize.filters import EQUALITIES, LISTS, RANGES
from service.dialects.vectorize.names import INDEX_NAME
from service.dialects.vectorize.values import FLOAT32_MAX
from service.openapi.results import Schema, named
from storage.limits import Limits
from storage.records import MetadataType, Metric

BYTES_MAX = "x-bytes-max"
"""A limit in bytes of UTF-8. `maxLength`, which counts characters, only says the same of ASCII."""
_KEY = r"[^$\".][^\".]*"
_PROPERTY = rf"^{_KEY}(\.{_KEY})*$"
_PATH = rf"^{_KEY}(\.[^\".]+)*$"


def nullable(schema: Schema) -> Schema:
    """The same or null, which is the same as absent."""
    return {"anyOf": [schema, {"type": "null"}]}


def text(bytes_max: int, *, least: int = 0, description: str = "") -> Schema:
    """Text of so many bytes."""
    found: Schema = {"type": "string", "maxLength": bytes_max, BYTES_MAX: bytes_max}
    if least:
        found["minLength"] = least
    if description:
        found["description"] = description
    return found


def numbers(least: int, most: int) -> Schema:
    """The values of a vector."""
    return {
        "type": "array",
        "minItems": least,
        "maxItems": most,
        "items": {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX},
        "description": "As many numbers as the index has dimensions, kept as float32.",
    }


def request_schemas(limits: Limits) -> dict[str, Schema]:
    """By the name they have under `components`."""
    id = text(limits.id_bytes_max, least=1)
    namespace = nullable(text(limits.namespace_bytes_max))
    values = numbers(limits.dimensions_min, limits.dimensions_max)
    vector = {
        "type": "object",
        "required": ["id", "values"],
        "properties": {"id": id, "values": values, "namespace": namespace, "metadata": named("Metadata")},
    }
    vectors = {"type": "array", "items": named("Vector"), "minItems": 1, "maxItems": limits.upload_vectors_max}
    return {
        "CreateIndex": _create_index(limits),
        "Vector": vector,
        "Vectors": {
            "description": "As an object its first key is `vectors`.",
            "anyOf": [vectors, {"type": "object", "required": ["vectors"], "properties": {"vectors": vectors}}],
        },
        "Metadata": {
            "description": f"At most {limits.metadata_bytes_max} bytes of compact JSON; null and {{}} are none.",
            "type": ["object", "null"],
            "propertyNames": {"pattern": f"^{_KEY}$"},
            "additionalProperties": named("MetadataValue"),
        },
        "MetadataValue": {
            "anyOf": [
                {"type": ["null", "boolean", "string", "number"]},
                {"type": "array", "items": named("MetadataValue")},
                named("Metadata"),
            ]
        },
    } | _of_questions(limits, id, namespace, values)


def _of_questions(limits: Limits, id: Schema, namespace: Schema, values: Schema) -> dict[str, Schema]:
    return {
        "GetIds": _ids(id, limits.get_ids_max),
        "DeleteIds": _ids(id, limits.delete_ids_max),
        "Query": _query(limits, id, namespace, values),
        "Filter": {
            "description": f"Shorter than {limits.filter_bytes_max} bytes of compact JSON. An empty one selects all.",
            "anyOf": [named("FilterObject"), {"type": "null"}],
        },
        "FilterObject": _filter(limits),
        "Condition": _condition(limits),
        "Select": {
            "type": "object",
            "properties": {
                "filter": named("Filter"),
                "namespace": namespace,
                "dry_run": nullable({"type": "boolean", "description": "Also spelled dryRun."}),
            },
        },
        "SelectSome": {
            "allOf": [named("Select")],
            "anyOf": [
                {"required": ["filter"], "properties": {"filter": {"type": "object", "minProperties": 1}}},
                {"required": ["namespace"], "properties": {"namespace": {"type": "string", "minLength": 1}}},
            ],
        },
        "CreateMetadataIndex": {
            "type": "object",
            "required": ["propertyName", "indexType"],
            "properties": {
                "propertyName": _property_name(limits),
                "indexType": {
                    "type": "string",
                    "pattern": "^(" + "|".join(_any_case(kind.value) for kind in MetadataType) + ")$",
                    "description": "string, number or boolean, in any case.",
                },
            },
        },
        "DeleteMetadataIndex": {
            "type": "object",
            "required": ["propertyName"],
            "properties": {"propertyName": _property_name(limits) | {"description": "Also spelled property."}},
        },
    }


def _any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


def _property_name(limits: Limits) -> Schema:
    return {"type": "string", "pattern": _PROPERTY, "maxLength": limits.filter_key_chars_max}


def _ids(id: Schema, count_max: int) -> Schema:
    ids = {"type": "array", "items": id, "minItems": 1, "maxItems": count_max}
    return {"type": "object", "required": ["ids"], "properties": {"ids": ids}}


def _create_index(limits: Limits) -> Schema:
    name = {"type": "string", "pattern": f"^{INDEX_NAME.pattern}$", "maxLength": limits.index_name_bytes_max}
    dimensions = {"type": "integer", "minimum": limits.dimensions_min, "maximum": limits.dimensions_max}
    metrics = [metric.value for metric in Metric]
    presets = list(PRESETS)
    config = {
        "type": "object",
        "properties": {
            "dimensions": {"type": ["integer", "null"]},
            "metric": {"enum": [*metrics, None]},
            "preset": {"enum": [*presets, "", None], "description": "Stands for dimensions and metric."},
        },
        "anyOf": [
            {"required": ["preset"], "properties": {"preset": {"enum": presets}}},
            {
                "required": ["dimensions", "metric"],
                "properties": {"dimensions": dimensions, "metric": {"enum": metrics}, "preset": {"enum": ["", None]}},
            },
        ],
    }
    return {
        "type": "object",
        "required": ["name", "config"],
        "properties": {"name": name, "description": nullable(text(limits.description_bytes_max)), "config": config},
    }


def _query(limits: Limits, id: Schema, namespace: Schema, values: Schema) -> Schema:
    flag = nullable({"type": "boolean"})
    top_k = nullable({"type": "integer", "minimum": 1, "maximum": limits.top_k_max, "default": limits.top_k_default})
    query: Schema = {
        "type": "object",
        "properties": {
            "vector": nullable(values),
            "vectorId": nullable(id),
            "topK": top_k,
            "returnValues": flag,
            "returnMetadata": {"enum": ["none", "indexed", "all", True, False, None], "default": "none"},
            "namespace": namespace,
            "filter": named("Filter"),
            "offset": nullable({"type": "integer", "minimum": 0, "maximum": limits.offset_max}),
            "recall": nullable({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
            "include_timing": flag | {"description": "Also spelled includeTiming."},
            "explain": flag,
        },
        "oneOf": [
            {"required": ["vector"], "properties": {"vector": {"type": "array"}, "vectorId": {"type": "null"}}},
            {"required": ["vectorId"], "properties": {"vectorId": {"type": "string"}, "vector": {"type": "null"}}},
        ],
    }
    if limits.top_k_with_payload_max < limits.top_k_max:
        query["anyOf"] = [
            {"properties": {"topK": {"anyOf": [{"maximum": limits.top_k_with_payload_max}, {"type": "null"}]}}},
            {
                "properties": {
                    "returnValues": {"enum": [False, None]},
                    "returnMetadata": {"enum": ["none", "indexed", False, None]},
                }
            },
        ]
    return query


def _filter(limits: Limits) -> Schema:
    found: Schema = {
        "type": "object",
        "patternProperties": {_PATH: named("Condition")},
        "propertyNames": {"maxLength": limits.filter_key_chars_max},
        "additionalProperties": False,
    }
    if not limits.strict:
        some = {"type": "array", "items": named("FilterObject"), "minItems": 1}
        found["properties"] = {"$and": some, "$or": some, "$not": named("FilterObject")}
    return found


def _condition(limits: Limits) -> Schema:
    scalar: Schema = {"type": ["string", "number", "boolean", "null"]}
    operands: dict[str, Schema] = dict.fromkeys(EQUALITIES, scalar)
    operands |= {name: {"type": "array", "items": scalar} for name in LISTS}
    operands |= {name: {"type": ["string", "number"]} for name in RANGES}
    if limits.strict:
        alone = [_operators({name: operands[name]}) for name in (*EQUALITIES, *LISTS)]
        ranges = _operators({name: operands[name] for name in RANGES})
        ranges["not"] = {"anyOf": [{"required": ["$lt", "$lte"]}, {"required": ["$gt", "$gte"]}]}
        return {"anyOf": [scalar, *alone, ranges]}
    operands |= {"$exists": {"type": "boolean"}, "$not": named("Condition")}
    return {"anyOf": [scalar, _operators(operands)]}


def _operators(operands: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": operands, "additionalProperties": False, "minProperties": 1}
