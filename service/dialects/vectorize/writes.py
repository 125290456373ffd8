"""Giving a change its place in the log, and what every write answers.

A write is acknowledged when it is on disk. `?wait=true` holds the answer back until it is applied as well; a
wait that runs out is no failure, so it answers 200 and says so in `messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aiohttp import web

from service.auth import credential
from service.callers import caller_hash
from service.dialects.vectorize.envelope import Message, success
from service.dialects.vectorize.errors import Code
from service.dialects.vectorize.parameters import flag_parameter, idempotency_key, timeout_s
from service.keys import ASKED, SETTINGS, STORE
from storage.records import Appended, Change, IndexSpec, MutationState
from storage.telemetry import MUTATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """What a write asks for beside its change. `wait_s` is negative when the answer shall not wait."""

    wait_s: float
    key: str
    caller: bytes


def write_options(request: web.Request) -> WriteOptions:
    """Read the options first, so that a wrong one is refused before anything is written. Raises Refusal."""
    settings = request.app[SETTINGS]
    waits = flag_parameter(request, "wait") if "wait" in request.query else settings.writes_wait
    longest = timeout_s(request, settings)
    return WriteOptions(wait_s=longest if waits else -1, key=idempotency_key(request), caller=caller_of(request))


def caller_of(request: web.Request) -> bytes:
    """What stands for whoever sent the request."""
    agent = request.headers.get("User-Agent", "")
    return caller_hash(token=credential(request), agent=agent, address=request.remote or "")


async def append(
    request: web.Request,
    spec: IndexSpec,
    change: Change,
    options: WriteOptions,
    *,
    messages: tuple[Message, ...] = (),
) -> web.Response:
    """Log a change and answer with its mutationId. Raises what `Store.append` does."""
    store, limits = request.app[STORE], request.app[SETTINGS].limits
    change = replace(change, caller=options.caller, idempotency_key=options.key)
    appended = await store.append(spec, change, limits)
    request[ASKED].mutation = appended.id
    if not appended.replayed:
        MUTATIONS.labels(change.action).inc()
    if options.wait_s >= 0:
        messages += await _wait(request, spec, appended, options.wait_s)
    response = success({"mutationId": appended.id}, messages=messages)
    if appended.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


async def _wait(request: web.Request, spec: IndexSpec, appended: Appended, wait_s: float) -> tuple[Message, ...]:
    store = request.app[STORE]
    if not await store.wait_applied(spec, appended.sequence, wait_s):
        text = f"mutation {appended.id} is logged and was not applied within {wait_s:g} s; it will be"
        return (Message(Code.WAIT_TIMED_OUT, text),)
    status = await store.mutation(spec, appended.id)
    if status.state is MutationState.FAILED:
        text = f"mutation {appended.id} could not be applied and has no effect: {status.error}"
        return (Message(Code.MUTATION_FAILED, text),)
    return ()
