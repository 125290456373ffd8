"""Indexes: create, list, get, delete, and how far one is."""

from __future__ import annotations

import time

from aiohttp import web

from service.auth import check_index
from service.dialects.vectorize.answers import index_answer, millis_text
from service.dialects.vectorize.configs import index_config
from service.dialects.vectorize.envelope import Message, success
from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import CreateIndex
from service.dialects.vectorize.names import check_index_name
from service.dialects.vectorize.parameters import account_of, flag_parameter, index_of, timeout_s
from service.dialects.vectorize.reading import json_model
from service.dialects.vectorize.writes import caller_of
from service.keys import CALLER_NAMES, INDEX_NAME, SETTINGS, STORE, TOKEN
from storage.interfaces import Trouble
from storage.records import IndexSpec, MutationId, Progress, Sequence
from storage.tokens import Scope


async def create_index(request: web.Request) -> web.Response:
    """Make an index."""
    account = account_of(request)
    limits = request.app[SETTINGS].limits
    body = await json_model(request, CreateIndex)
    check_index_name(body.name, limits)
    request[INDEX_NAME] = body.name
    check_index(request, Scope.ADMIN, account, body.name)
    config = index_config(body.config, limits)
    if len(body.description.encode()) > limits.description_bytes_max:
        message = f"description too long; max is {limits.description_bytes_max} bytes"
        raise Refusal(Code.DESCRIPTION_TOO_LONG, message)
    spec = await request.app[STORE].create_index(account, body.name, body.description, config, limits)
    return success(index_answer(spec))


async def list_indexes(request: web.Request) -> web.Response:
    """All indexes of the account that the token covers, in one answer: generated SDKs never ask for a second page."""
    account, token = account_of(request), request[TOKEN]
    specs = await request.app[STORE].indexes(account)
    return success([index_answer(spec) for spec in specs if token.may(Scope.READ, account, spec.name)])


async def get_index(request: web.Request) -> web.Response:
    """One index."""
    return success(index_answer(index_of(request)))


async def delete_index(request: web.Request) -> web.Response:
    """Remove an index. The Python SDK sends a Content-Type here and no body; none is read."""
    await request.app[STORE].delete_index(index_of(request))
    return success(None)


async def info(request: web.Request) -> web.Response:
    """How far the index is: its head or, to a caller that wrote here, one of that caller's own mutations.

    `wait_for` holds the answer back until that mutation is processed; it and `latest` always ask for the head,
    because whoever waited for a mutation must not hear of an older one.
    """
    spec = index_of(request)
    latest = flag_parameter(request, "latest") or bool(request.query.get("wait_for"))
    messages = await _wait_for(request, spec)
    own = None if latest else await _own_mutation(request, spec)
    # After the choice, so that the count is never older than the mutation that is named.
    progress = request.app[STORE].progress(spec)
    answer: dict[str, object] = {
        "dimensions": spec.config.dimensions,
        "vectorCount": progress.vectors,
    }
    named = own or _head(progress)
    if named is not None:
        processed_id, processed_ms = named
        answer["processedUpToDatetime"] = millis_text(processed_ms)
        answer["processedUpToMutation"] = processed_id
    return success(answer | _told(await request.app[STORE].trouble(spec)), messages=messages)


def _told(trouble: Trouble) -> dict[str, object]:
    """What the live service never says: keys that are there only when something is wrong."""
    told: dict[str, object] = {}
    if trouble.set_aside_count:
        mutations = [{"mutationId": one.id, "error": one.error} for one in trouble.set_aside]
        told["setAside"] = {"count": trouble.set_aside_count, "mutations": mutations}
    if trouble.bounded_builds:
        told["boundedBuilds"] = dict(trouble.bounded_builds)
    return told


async def _wait_for(request: web.Request, spec: IndexSpec) -> tuple[Message, ...]:
    wanted = request.query.get("wait_for")
    if not wanted:
        return ()
    store = request.app[STORE]
    wait_s = timeout_s(request, request.app[SETTINGS])
    mutation = await store.mutation(spec, MutationId(wanted))
    if await store.wait_applied(spec, mutation.sequence, wait_s):
        return ()
    return (Message(Code.WAIT_TIMED_OUT, f"mutation {mutation.id} was not applied within {wait_s:g} s"),)


def _head(progress: Progress) -> tuple[MutationId, int] | None:
    return (progress.applied_id, progress.applied_ms) if progress.applied else None


async def _own_mutation(request: web.Request, spec: IndexSpec) -> tuple[MutationId, int] | None:
    caller = caller_of(request)
    since_ms = time.time_ns() // 1_000_000 - request.app[SETTINGS].caller_window_ms
    own = await request.app[STORE].caller_mutations(spec, caller, since_ms)
    if not own:
        return None
    chosen = request.app[CALLER_NAMES].choose(spec.id, caller, own)
    [status] = await request.app[STORE].mutations(spec, before=Sequence(chosen + 1), count=1)
    return status.id, status.applied_ms
