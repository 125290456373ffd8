"""What each handler takes and answers. `document` puts it together with the paths, which it takes from the router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp.typedefs import Handler

from service import health, metrics
from service.dialects.account import routes as account
from service.dialects.vectorize import routes_indexes, routes_metadata, routes_mutations, routes_query, routes_vectors
from service.dialects.vectorize.parameters import IDEMPOTENCY_KEY_MAX
from service.dialects.vectorize.routes_mutations import PAGE_DEFAULT, PAGE_MAX
from service.openapi import results
from service.openapi.results import COUNTED, Schema, listed, named
from service.openapi.shapes import text
from storage.limits import Limits

ENVELOPE, JSON, PLAIN = "envelope", "json", "text"
WRITES = (422, 507)
"""What only writes are answered with, beside what everything may be."""
READS = (504,)
"""And what reads vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One handler's description: what is said first is its docstring."""

    tag: str
    result: Schema
    form: str = ENVELOPE
    body: str = ""
    """The name of the schema of its body."""
    lines: bool = False
    """Whether the body may be lines of JSON, or a file of them in a form."""
    parameters: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    ours: bool = False
    """Whether the live service does not have it."""
    is_open: bool = False
    """Whether it needs no token."""


WRITTEN = ("wait", "timeout", "Idempotency-Key")
"""The parameters of every write."""


def operations() -> dict[Handler, Operation]:
    """By handler."""
    return {**_of_indexes(), **_of_vectors(), **_around()}


def _write(tag: str, body: str, *more: str, result: Schema = results.ACKNOWLEDGED, **rest: Any) -> Operation:
    statuses = (*WRITES, *READS) if "dry_run" in more else WRITES
    return Operation(tag=tag, result=result, body=body, parameters=(*more, *WRITTEN), statuses=statuses, **rest)


def _of_indexes() -> dict[Handler, Operation]:
    index = named("Index")
    mutations, indexed = "mutations", "metadata indexes"
    progress = ("latest", "wait_for", "timeout")
    return {
        routes_indexes.create_index: Operation(tag="indexes", result=index, body="CreateIndex", statuses=(507,)),
        routes_indexes.list_indexes: Operation(tag="indexes", result=listed(index)),
        routes_indexes.get_index: Operation(tag="indexes", result=index),
        routes_indexes.delete_index: Operation(tag="indexes", result=results.NOTHING, statuses=(507,)),
        routes_indexes.info: Operation(tag="indexes", result=results.PROGRESS, parameters=progress),
        routes_metadata.create_metadata_index: _write(indexed, "CreateMetadataIndex"),
        routes_metadata.delete_metadata_index: _write(indexed, "DeleteMetadataIndex"),
        routes_metadata.list_metadata_indexes: Operation(tag=indexed, result=results.METADATA_INDEXES),
        routes_mutations.list_mutations: Operation(
            tag=mutations, result=results.MUTATIONS, parameters=("page", "before"), ours=True
        ),
        routes_mutations.get_mutation: Operation(tag=mutations, result=named("Mutation"), ours=True),
    }


def _of_vectors() -> dict[Handler, Operation]:
    upload = _write("vectors", "Vectors", "unparsable-behavior", lines=True)
    either: Schema = {"anyOf": [results.ACKNOWLEDGED, COUNTED]}
    return {
        routes_vectors.insert: upload,
        routes_vectors.upsert: upload,
        routes_vectors.get_by_ids: Operation(
            tag="vectors", result=listed(named("StoredVector")), body="GetIds", statuses=READS
        ),
        routes_vectors.delete_by_ids: _write("vectors", "DeleteIds"),
        routes_vectors.delete_by_filter: _write("vectors", "SelectSome", "dry_run", result=either, ours=True),
        routes_vectors.count: Operation(tag="vectors", result=COUNTED, body="Select", statuses=READS, ours=True),
        routes_vectors.list_vectors: Operation(
            tag="vectors",
            result=results.PAGE,
            parameters=("count", "cursor", "prefix", "namespace", "filter", "include"),
            statuses=READS,
        ),
        routes_query.query: Operation(
            tag="queries",
            result=results.MATCHES,
            body="Query",
            parameters=("offset", "recall", "include_timing", "explain"),
            statuses=READS,
        ),
    }


def _around() -> dict[Handler, Operation]:
    state = Operation(tag="service", result=results.HEALTH, form=JSON, ours=True, is_open=True)
    return {
        account.user: Operation(tag="account", result=results.USER),
        account.verify_token: Operation(tag="account", result=results.VERIFIED),
        account.accounts: Operation(tag="account", result=listed(results.ACCOUNT)),
        account.account: Operation(tag="account", result=results.ACCOUNT),
        account.memberships: Operation(tag="account", result=listed(results.MEMBERSHIP)),
        health.livez: state,
        health.healthz: state,
        health.readyz: state,
        metrics.metrics: Operation(tag="service", result=results.TEXT, form=PLAIN, ours=True),
    }


def parameters(limits: Limits) -> dict[str, dict[str, Any]]:
    """By the name that operations give them."""
    flag: Schema = {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["1", "0", ""]}]}
    words: Schema = {"type": "array", "items": {"enum": sorted(routes_vectors.INCLUDABLE)}}
    return {
        "wait": _query("wait", flag, "Answer when it is applied."),
        "timeout": _query("timeout", {"type": "number", "minimum": 0}, "How many seconds to wait at most."),
        "Idempotency-Key": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A repeat under the same key answers the first mutation and writes nothing.",
            "schema": {"type": "string", "pattern": "^[ -~]*$", "maxLength": IDEMPOTENCY_KEY_MAX},
        },
        "unparsable-behavior": _query(
            "unparsable-behavior", {"enum": ["error", "discard"]}, "What to do with lines that are no JSON objects."
        ),
        "dry_run": _query("dry_run", flag, "Only count."),
        "latest": _query("latest", flag, "Name the newest applied mutation to everybody."),
        "wait_for": _query("wait_for", {"type": "string"}, "Answer when this mutation is applied."),
        "count": _query(
            "count",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": limits.list_count_max,
                "default": limits.list_count_default,
            },
            "How many at most.",
        ),
        "page": _query(
            "count",
            {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
            "How many at most.",
        ),
        "before": _query("before", {"type": "string"}, "`nextBefore` of the page before."),
        "cursor": _query("cursor", {"type": "string"}, "`nextCursor` of the page before."),
        "prefix": _query("prefix", {"type": "string"}, "Only ids that begin so."),
        "namespace": _query("namespace", text(limits.namespace_bytes_max), "Only of this namespace."),
        "filter": {
            "name": "filter",
            "in": "query",
            "description": "Only what a filter selects.",
            "content": {"application/json": {"schema": named("Filter")}},
        },
        "include": _query("include", words, "What to show of each.") | {"style": "form", "explode": False},
        "offset": _query(
            "offset", {"type": "integer", "minimum": 0, "maximum": limits.offset_max}, "How many matches to skip."
        ),
        "recall": _query("recall", {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "What to plan for."),
        "include_timing": _query("include_timing", flag, "Say how long each stage took."),
        "explain": _query("explain", flag, "Say how each segment was searched."),
    }


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}
