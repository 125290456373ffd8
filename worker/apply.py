"""Applying the next mutations of one index: read, decide, write in one transaction.

Nothing is copied: the bodies in the log are the first tier of the index, and applying says which of their rows are
live. A crash before the transaction leaves everything as it was; after it, the mutations are applied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items

import structlog

from storage.apply import Applied
from storage.backends.sqlite.log import LoggedMutation
from storage.backends.sqlite.state import State
from storage.backends.sqlite.workshop import WorkIndex
from storage.batch import unpack_ids, unpack_json, unpack_namespaces
from storage.chain import hash_body, link
from storage.errors import BatchDamaged, FilterInvalid, LogDamaged
from storage.filters import FilterRules, from_json
from storage.masks import matching
from storage.records import Action, MetadataIndex
from storage.settings import Settings
from storage.snapshot import rows_of
from storage.telemetry import WRITE_TO_VISIBLE
from worker.plan import Planner

log = structlog.get_logger()

TRIES_MAX = 3
"""A mutation that could not be applied this often is set aside: `failed`, and the ones behind it go on."""

LOST = "it was lost from a damaged log"
POISON = (BatchDamaged, FilterInvalid, ValueError, TypeError, KeyError, MemoryError)
"""What a mutation itself can do to whoever applies it; anything else is ours to mend and is not its fault."""


async def apply_next(index: WorkIndex, settings: Settings, *, alone: bool = False) -> int:
    """Apply the next mutations, as many as fit one transaction; `alone` takes one. Returns how many.

    Raises LeaseLost, ManifestMoved, LogDamaged.
    """
    state = index.state()
    mutations = index.read(
        state, mutations_max=1 if alone else settings.apply_mutations_max, bytes_max=settings.apply_bytes_max
    )
    verify(mutations, state)
    batch = _prefix(mutations)
    if not batch:
        return 0
    failure = ""
    if alone and await index.count_try(batch[0].sequence) > TRIES_MAX:
        failure = f"applying it failed {TRIES_MAX} times"
    await _apply(index, state, batch, failure)
    return len(batch)


async def _apply(index: WorkIndex, state: State, batch: Items[LoggedMutation], failure: str) -> None:
    planner = Planner(await index.live_labels(_named(batch) if not failure else []), state.next_label)
    if failure:
        log.error("mutation.set_aside", index=index.spec.id, mutation=batch[0].id, reason=failure)
        planner.fail(batch[0].sequence, failure)
    else:
        for mutation in batch:
            if mutation.action is Action.DELETE_BY_FILTER:
                await _delete_by_filter(index, planner, mutation, state)
            else:
                _fold(planner, index, mutation)
    last = batch[-1]
    await index.apply(state, planner.effects, Applied(last.sequence, last.id, last.chain, last.bytes_through))
    now_ms = time.time_ns() // 1_000_000
    for mutation in batch:
        WRITE_TO_VISIBLE.observe(max(0, now_ms - mutation.created_ms) / 1000)
    log.debug("mutations.applied", index=index.spec.id, through=last.sequence, count=len(batch))


def verify(mutations: Items[LoggedMutation], state: State) -> None:
    """Follow the chain from the last applied mutation. Raises LogDamaged: what comes next is not what was written."""
    chain, expected, through = state.applied_chain, state.applied + 1, state.applied_bytes
    for mutation in mutations:
        if mutation.sequence != expected:
            raise LogDamaged(f"mutation {expected} is missing from the log; the next one is {mutation.sequence}")
        if mutation.body is None or hash_body(mutation.body) != mutation.body_hash:
            raise LogDamaged(f"the body of mutation {mutation.sequence} is not what was written")
        chain = link(
            chain,
            sequence=mutation.sequence,
            mutation_id=mutation.id,
            action=mutation.action,
            created_ms=mutation.created_ms,
            rows=mutation.rows,
            body_hash=mutation.body_hash,
        )
        if chain != mutation.chain:
            raise LogDamaged(f"mutation {mutation.sequence} does not follow from the one before it")
        through += len(mutation.body)
        if mutation.bytes_through != through:
            raise LogDamaged(f"mutation {mutation.sequence} counts {mutation.bytes_through} bytes, not {through}")
        expected += 1


def _prefix(mutations: Items[LoggedMutation]) -> Items[LoggedMutation]:
    """A delete by filter is applied by itself: it is evaluated against the state at its sequence."""
    for place, mutation in enumerate(mutations):
        if mutation.action is Action.DELETE_BY_FILTER:
            return mutations[: max(1, place)]
    return mutations


def _named(batch: Items[LoggedMutation]) -> list[str]:
    """Every id that the batch names; a delete by filter names its own later."""
    named: dict[str, None] = {}
    for mutation in batch:
        if mutation.action in (Action.INSERT, Action.UPSERT, Action.DELETE):
            assert mutation.body is not None, "verified"
            named.update(dict.fromkeys(unpack_ids(mutation.body) if mutation.body else ()))
    return list(named)


def _fold(planner: Planner, index: WorkIndex, mutation: LoggedMutation) -> None:
    body = mutation.body
    assert body is not None, "verified"
    if not body:
        # What a salvage puts in the place of a mutation that is lost.
        log.error("mutation.set_aside", index=index.spec.id, mutation=mutation.id, reason=LOST)
        planner.fail(mutation.sequence, LOST)
        return
    match mutation.action:
        case Action.INSERT:
            planner.insert(mutation.sequence, unpack_ids(body), unpack_namespaces(body), body_bytes=len(body))
        case Action.UPSERT:
            planner.upsert(mutation.sequence, unpack_ids(body), unpack_namespaces(body), body_bytes=len(body))
        case Action.DELETE:
            planner.delete(mutation.sequence, unpack_ids(body))
        case Action.CREATE_METADATA_INDEX:
            planner.create_metadata_index(mutation.sequence, _accepted(index, mutation))
        case Action.DELETE_METADATA_INDEX:
            accepted = _accepted(index, mutation)
            planner.delete_metadata_index(mutation.sequence, accepted.id if accepted is not None else 0)
        case Action.DELETE_BY_FILTER:
            raise AssertionError("applied by itself")


def _accepted(index: WorkIndex, mutation: LoggedMutation) -> MetadataIndex | None:
    """The metadata index that a mutation is about, which its number and its body must agree on. Raises LogDamaged."""
    if not mutation.metadata_index:
        return None
    assert mutation.body is not None, "verified"
    document = unpack_json(mutation.body)
    accepted = index.accepted_metadata_index(mutation.metadata_index)
    named = document if isinstance(document, dict) else {}
    # Who deletes one names its property; the type in that body is only there to fill the form.
    typed = mutation.action is Action.CREATE_METADATA_INDEX
    if (
        accepted is None
        or named.get("property", accepted.property) != accepted.property
        or (typed and named.get("type", accepted.type) != accepted.type)
    ):
        raise LogDamaged(
            f"mutation {mutation.sequence} is about metadata index {mutation.metadata_index}, its body about another"
        )
    return accepted


async def _delete_by_filter(index: WorkIndex, planner: Planner, mutation: LoggedMutation, state: State) -> None:
    assert mutation.body is not None, "verified"
    document = unpack_json(mutation.body)
    if not isinstance(document, dict):
        raise BatchDamaged(f"the parameters of mutation {mutation.sequence} are not an object")
    snapshot = await index.snapshot()
    if snapshot.applied != state.applied:
        # Another worker took the index and went on. One that holds it sees what it has applied and nothing newer.
        index.check_held()
        raise AssertionError(f"mutation {snapshot.applied} is applied, and nobody did after {state.applied}")
    tree = from_json(document["filter"]) if document["filter"] is not None else None
    masks = matching(snapshot, document["namespace"], tree, FilterRules(**document["rules"]))
    ids = [
        live_part.part.id_of(row)
        for live_part, mask in zip(snapshot.parts, masks, strict=True)
        for row in rows_of(mask)
    ]
    planner.know(await index.live_labels(ids))
    planner.delete(mutation.sequence, ids)
