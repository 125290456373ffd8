"""Mutations: what became of them."""

from __future__ import annotations

from aiohttp import web

from service.dialects.vectorize.answers import mutation_answer
from service.dialects.vectorize.envelope import success
from service.dialects.vectorize.parameters import index_of, whole_parameter
from service.keys import STORE
from storage.records import MutationId, Sequence

PAGE_DEFAULT = 20
PAGE_MAX = 1000


async def get_mutation(request: web.Request) -> web.Response:
    """One mutation: its state, times and counts."""
    spec = index_of(request)
    status = await request.app[STORE].mutation(spec, MutationId(request.match_info["mutation"]))
    return success(mutation_answer(status))


async def list_mutations(request: web.Request) -> web.Response:
    """The newest first. `before` takes the `nextBefore` of the page before, which is null on the last one."""
    spec = index_of(request)
    store = request.app[STORE]
    count = whole_parameter(request, "count", default=PAGE_DEFAULT, least=1, most=PAGE_MAX)
    before = Sequence(0)
    if named := request.query.get("before"):
        before = (await store.mutation(spec, MutationId(named))).sequence
    # One more than asked for tells whether there is another page. Nothing lies before the first mutation.
    page = await store.mutations(spec, before=before, count=count + 1) if before != 1 else ()
    shown = page[:count]
    return success(
        {
            "count": len(shown),
            "mutations": [mutation_answer(status) for status in shown],
            "nextBefore": shown[-1].id if len(page) > count else None,
        }
    )
