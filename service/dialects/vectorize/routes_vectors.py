"""Vectors: insert, upsert, delete, get, list and count."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import numpy as np
import orjson
from aiohttp import web

from service.bodies import BodyReader, body_of
from service.dialects.vectorize.answers import list_answer, vector_answer
from service.dialects.vectorize.envelope import Message, success
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.filters import parse_filter, rules_for
from service.dialects.vectorize.models import Ids, Select, unreadable
from service.dialects.vectorize.names import check_ids, checked_namespace
from service.dialects.vectorize.parameters import (
    choice_parameter,
    flag_parameter,
    index_of,
    whole_parameter,
    words_parameter,
)
from service.dialects.vectorize.reading import json_model
from service.dialects.vectorize.vectors import ArrivingBatch, BatchRules, ReadBatch, read_batch
from service.dialects.vectorize.writes import WriteOptions, append, write_options
from service.keys import BODY_BUDGET, SETTINGS, STORE
from storage.batch import pack_ids, pack_json, pack_vectors
from storage.deadlines import deadline_in, in_thread
from storage.filters import And, Filter, to_json
from storage.interfaces import ListRequest
from storage.limits import Limits
from storage.masks import matching
from storage.records import Action, Change, IndexSpec

INLINE_BYTES = 64 * 1024
"""A body up to this size is parsed in the time it would take to hand it to a thread and back."""
FED_BYTES = 64 * 1024
"""What is parsed of a large body before others get their turn: about half a millisecond."""
INLINE_PACK_BYTES = 4 * 1024 * 1024
"""Vectors up to this size are packed in a millisecond."""
INCLUDABLE = frozenset({"values", "metadata"})


async def insert(request: web.Request) -> web.Response:
    """Log vectors to add; ids that are there already keep what they have."""
    return await _write_vectors(request, Action.INSERT)


async def upsert(request: web.Request) -> web.Response:
    """Log vectors to add or replace."""
    return await _write_vectors(request, Action.UPSERT)


async def _write_vectors(request: web.Request, action: Action) -> web.Response:
    spec = index_of(request)
    options = write_options(request)
    limits = request.app[SETTINGS].limits
    with body_of(request, request.app[BODY_BUDGET], bytes_max=limits.upload_bytes_max) as reader:
        return await write_arriving(request, spec, action, options, reader)


async def write_arriving(
    request: web.Request, spec: IndexSpec, action: Action, options: WriteOptions, reader: BodyReader
) -> web.Response:
    """Log the vectors of a body that is read as it arrives, where it is plain lines. Raises as `write_batch` does."""
    rules, label = _rules(request, spec, action), request.headers.get("Content-Type", "")
    chunks = reader.chunks()
    first = await anext(chunks, b"")
    if request.content_length is None or not ArrivingBatch.fits(first, label):
        body = b"".join([first, *[chunk async for chunk in chunks]])
        return await write_batch(request, spec, action, options, body)
    arriving = ArrivingBatch(rules, request.content_length)
    arriving.feed(first)
    async for chunk in chunks:
        for start in range(0, len(chunk), FED_BYTES):
            arriving.feed(chunk[start : start + FED_BYTES])
            # A fast sender always has more: the others get their turn.
            await asyncio.sleep(0)
    read = arriving.end()
    if read.batch.values.nbytes <= INLINE_PACK_BYTES:
        packed = pack_vectors(read.batch)
    else:
        packed = await asyncio.to_thread(pack_vectors, read.batch)
    return await _log(request, spec, action, options, read, packed)


async def write_batch(
    request: web.Request, spec: IndexSpec, action: Action, options: WriteOptions, body: bytes
) -> web.Response:
    """Log the vectors of a body that was read. Raises Refusal, and what `Store.append` does."""
    rules, label = _rules(request, spec, action), request.headers.get("Content-Type", "")
    if len(body) <= INLINE_BYTES:
        read, packed = _read_and_pack(body, label, rules)
    else:
        # A full batch takes long enough to parse and pack that it would hold up every other request.
        read, packed = await asyncio.to_thread(_read_and_pack, body, label, rules)
    return await _log(request, spec, action, options, read, packed)


def _rules(request: web.Request, spec: IndexSpec, action: Action) -> BatchRules:
    return BatchRules(
        action=action,
        dimensions=spec.config.dimensions,
        limits=request.app[SETTINGS].limits,
        discard=choice_parameter(request, "unparsable-behavior", ("error", "discard")) == "discard",
    )


async def _log(
    request: web.Request, spec: IndexSpec, action: Action, options: WriteOptions, read: ReadBatch, packed: bytes
) -> web.Response:
    namespaces = sorted({name for name in read.batch.namespaces if name})
    if namespaces:
        await request.app[STORE].check_namespaces(spec, namespaces, request.app[SETTINGS].limits)
    change = Change(action=action, body=packed, rows=len(read.batch))
    return await append(request, spec, change, options, messages=_dropped(read))


def _read_and_pack(body: bytes, label: str, rules: BatchRules) -> tuple[ReadBatch, bytes]:
    read = read_batch(body, label, rules)
    return read, pack_vectors(read.batch)


def _dropped(read: ReadBatch) -> tuple[Message, ...]:
    if not read.dropped:
        return ()
    text = f"{read.dropped} lines were no JSON objects and were dropped"
    return (Message(Code.LINES_DROPPED, text),)


async def delete_by_ids(request: web.Request) -> web.Response:
    """Log the removal of vectors; ids that are not there are counted as missing."""
    spec = index_of(request)
    limits = request.app[SETTINGS].limits
    options = write_options(request)
    body = await json_model(request, Ids, ids_max=limits.delete_ids_max)
    check_ids(body.ids, limits, count_max=limits.delete_ids_max)
    change = Change(action=Action.DELETE, body=pack_ids(body.ids), rows=len(body.ids))
    return await append(request, spec, change, options)


async def get_by_ids(request: web.Request) -> web.Response:
    """The vectors with these ids, in the order asked for, each once; those that are not there are left out."""
    spec = index_of(request)
    limits = request.app[SETTINGS].limits
    body = await json_model(request, Ids, ids_max=limits.get_ids_max)
    check_ids(body.ids, limits, count_max=limits.get_ids_max)
    until_s = _deadline(request)
    records = await request.app[STORE].records(spec, tuple(dict.fromkeys(body.ids)), until_s=until_s)
    return success([vector_answer(record) for record in records if record is not None])


async def delete_by_filter(request: web.Request) -> web.Response:
    """Log the removal of what a filter selects when it is applied; with `dry_run` only count it."""
    spec = index_of(request)
    limits = request.app[SETTINGS].limits
    options = write_options(request)
    body = await json_model(request, Select)
    tree, namespace = _selection(body, limits)
    if tree is None and not namespace:
        raise unreadable("expected `filter` or `namespace`; to remove everything, delete the index")
    rules = rules_for(limits)
    if body.dry_run or flag_parameter(request, "dry_run"):
        return success({"count": await _count(request, spec, namespace, tree)})
    selection = {
        "filter": to_json(tree if tree is not None else And(())),
        "namespace": namespace,
        "rules": asdict(rules),
    }
    change = Change(action=Action.DELETE_BY_FILTER, body=pack_json(selection), rows=0)
    return await append(request, spec, change, options)


async def count(request: web.Request) -> web.Response:
    """How many vectors a filter selects."""
    spec = index_of(request)
    limits = request.app[SETTINGS].limits
    tree, namespace = _selection(await json_model(request, Select), limits)
    return success({"count": await _count(request, spec, namespace, tree)})


async def list_vectors(request: web.Request) -> web.Response:
    """A page of ids, as of the first page of the walk."""
    spec = index_of(request)
    limits = request.app[SETTINGS].limits
    include = words_parameter(request, "include", INCLUDABLE)
    page = await request.app[STORE].list_page(
        spec,
        ListRequest(
            count=whole_parameter(
                request, "count", default=limits.list_count_default, least=1, most=limits.list_count_max
            ),
            cursor=request.query.get("cursor", ""),
            prefix=request.query.get("prefix", ""),
            namespace=checked_namespace(request.query.get("namespace"), limits),
            filter=_filter_parameter(request, limits),
            rules=rules_for(limits),
            include_records=bool(include),
        ),
        until_s=_deadline(request),
    )
    return success(list_answer(page, include=include))


def _filter_parameter(request: web.Request, limits: Limits) -> Filter | None:
    text = request.query.get("filter")
    if not text:
        return None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        message = f"the parameter filter is no JSON object: {error}"
        raise Refusal(Code.PARAMETER_INVALID, message) from error
    return parse_filter(document, limits)


def _selection(body: Select, limits: Limits) -> tuple[Filter | None, str]:
    return parse_filter(body.filter, limits), checked_namespace(body.namespace, limits)


def _deadline(request: web.Request) -> float:
    return deadline_in(request.app[SETTINGS].query_timeout_ms)


async def _count(request: web.Request, spec: IndexSpec, namespace: str, tree: Filter | None) -> int:
    until_s = _deadline(request)
    snapshot = await request.app[STORE].snapshot(spec, until_s=until_s)
    if tree is None and not namespace:
        return snapshot.vectors
    # Every row is looked at, and without a metadata index its metadata is parsed: too long for the loop.
    rules = rules_for(request.app[SETTINGS].limits)
    masks = await in_thread(until_s, matching, snapshot, namespace, tree, rules)
    return sum(int(np.count_nonzero(mask)) for mask in masks)
