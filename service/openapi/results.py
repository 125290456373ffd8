"""JSON Schemas of what answers have: every key there can be, and no other."""

from __future__ import annotations

from typing import Any

from service.dialects.vectorize.answers import TYPE_NAMES
from storage.plan import PlanKind
from storage.records import Action, Metric, MutationState

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TIME: Schema = {"type": "string", "format": "date-time"}
MUTATION_ID: Schema = {"type": "string", "format": "uuid"}
METADATA: Schema = {"type": "object"}


def shape(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these keys, and maybe those."""
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


def listed(schema: Schema) -> Schema:
    """Some of them."""
    return {"type": "array", "items": schema}


def named(name: str) -> Schema:
    """One that is under `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


VALUES = listed(NUMBER)
CONFIG = shape({"dimensions": COUNT, "metric": {"enum": [metric.value for metric in Metric]}}, {"preset": TEXT})
INDEX = shape({"created_on": TIME, "modified_on": TIME, "name": TEXT, "description": TEXT, "config": CONFIG})
STORED = shape({"id": TEXT, "values": VALUES}, {"namespace": TEXT, "metadata": METADATA})
LISTED = shape({"id": TEXT}, {"values": VALUES, "namespace": TEXT, "metadata": METADATA})
MATCH = shape({"id": TEXT, "score": NUMBER}, {"values": VALUES, "namespace": TEXT, "metadata": METADATA})
SEGMENT = shape(
    {
        "segment": TEXT,
        "rows": COUNT,
        "live": COUNT,
        "matching": COUNT,
        "plan": {"enum": [kind.value for kind in PlanKind]},
        "expansion": COUNT,
        "candidates": COUNT,
    }
)
MUTATION = shape(
    {
        "mutationId": MUTATION_ID,
        "action": {"enum": [action.value for action in Action]},
        "state": {"enum": [state.value for state in MutationState]},
        "createdOn": TIME,
        "processedOn": {"type": ["string", "null"], "format": "date-time"},
        "rows": COUNT,
        "counts": shape(dict.fromkeys(("inserted", "replaced", "ignored", "deleted", "missing"), COUNT)),
    },
    {"error": TEXT},
)
MESSAGE = shape({"code": {"type": "integer"}, "message": TEXT})
REFUSAL = shape(
    {
        "result": {"type": "null"},
        "success": {"const": False},
        "errors": listed(named("Message")) | {"minItems": 1},
        "messages": {"type": "array", "maxItems": 0},
    },
    {"result_info": {"type": "null"}},
)
SCHEMAS: dict[str, Schema] = {
    "Index": INDEX,
    "StoredVector": STORED,
    "ListedVector": LISTED,
    "Match": MATCH,
    "Mutation": MUTATION,
    "Message": MESSAGE,
    "Refusal": REFUSAL,
}

NOTHING: Schema = {"type": "null"}
ACKNOWLEDGED = shape({"mutationId": MUTATION_ID})
COUNTED = shape({"count": COUNT})
PROGRESS = shape(
    {"dimensions": COUNT, "vectorCount": COUNT},
    {
        "processedUpToDatetime": TIME,
        "processedUpToMutation": MUTATION_ID,
        "setAside": shape({"count": COUNT, "mutations": listed(shape({"mutationId": MUTATION_ID, "error": TEXT}))}),
        "boundedBuilds": {"type": "object", "additionalProperties": COUNT},
    },
)
PAGE = shape(
    {
        "count": COUNT,
        "isTruncated": {"type": "boolean"},
        "totalCount": COUNT,
        "vectors": listed(named("ListedVector")),
        "cursorExpirationTimestamp": {"type": ["string", "null"], "format": "date-time"},
        "nextCursor": {"type": ["string", "null"]},
    }
)
MATCHES = shape(
    {"count": COUNT, "matches": listed(named("Match"))},
    {
        "timing": {"type": "object", "additionalProperties": NUMBER},
        "explain": shape({"recall": NUMBER, "matching": COUNT, "segments": listed(SEGMENT)}),
    },
)
METADATA_INDEX = shape({"propertyName": TEXT, "indexType": {"enum": list(TYPE_NAMES.values())}})
METADATA_INDEXES = shape({"metadataIndexes": listed(METADATA_INDEX)})
MUTATIONS = shape({"count": COUNT, "mutations": listed(named("Mutation")), "nextBefore": {"type": ["string", "null"]}})
HEALTH = shape({"status": {"enum": ["ok", "unready"]}}, {"problems": listed(TEXT)})
ACCOUNT = shape({"id": TEXT, "name": TEXT, "type": TEXT})
USER = shape({"id": TEXT, "email": TEXT, "username": TEXT})
VERIFIED = shape({"id": TEXT, "status": {"const": "active"}})
MEMBERSHIP = shape({"id": TEXT, "status": TEXT, "account": ACCOUNT, "roles": listed(TEXT)})


def success(result: Schema) -> Schema:
    """The envelope of a result."""
    return shape(
        {
            "result": result,
            "success": {"const": True},
            "errors": {"type": "array", "maxItems": 0},
            "messages": listed(named("Message")),
        }
    )
