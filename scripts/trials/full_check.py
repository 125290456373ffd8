"""Everything the service says of its past and present, against the model of trials in which the disk fails."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson

from scripts.trials.full_load import Client, Load
from scripts.trials.promises import check
from scripts.trials.writes import GROUPS, Model, Row, model_of, row_of


def compare(client: Client, load: Load) -> None:
    """Nothing is lost or doubled, everything is in order, and all of `docs` is as the model has it. Raises Broken."""
    newest = max(mutation for writes in load.acknowledged for mutation, _ in writes)
    client.call("GET", f"/docs/info?wait_for={newest}&timeout=100")
    _check_vectors(client, model_of("docs", _walk_mutations(client), load.acknowledged))


def _walk_mutations(client: Client) -> list[dict[str, Any]]:
    """The whole log, oldest first."""
    found: list[dict[str, Any]] = []
    before = ""
    while True:
        page = client.call("GET", f"/docs/mutations?count=1000{before}")
        found += page["mutations"]
        if page["nextBefore"] is None:
            return found[::-1]
        before = f"&before={page['nextBefore']}"


def _check_vectors(client: Client, model: Model) -> None:
    """What is stored, listed and found is what the model has."""
    listed: dict[str, Row] = {}
    page: dict[str, str] = {"include": "values,metadata", "count": "100"}
    while page:
        answer = client.call("GET", f"/docs/list?{urlencode(page)}")
        listed |= {one["id"]: (one["values"], one["metadata"]["group"]) for one in answer["vectors"]}
        cursor = answer["nextCursor"]
        page = page | {"cursor": cursor} if cursor else {}
    check(listed == model.rows, f"the vectors are those of the model: {_difference(listed, model.rows)}")
    info = client.call("GET", "/docs/info?latest=true")
    check(info["vectorCount"] == len(model.rows), f"/info counts {len(model.rows)} vectors: {info}")
    for group in range(0, GROUPS, 7):
        expected = {id for id, (_, own) in model.rows.items() if own == group}
        query = {"vector": row_of(0)[0], "topK": 100, "filter": {"group": group}}
        found = client.call("POST", "/docs/query", orjson.dumps(query))
        check({one["id"] for one in found["matches"]} == expected, f"group {group} is {expected}: {found}")


def _difference(found: dict[str, Row], expected: dict[str, Row]) -> str:
    wrong = [id for id in sorted(found.keys() | expected.keys()) if found.get(id) != expected.get(id)]
    return f"{len(wrong)} differ, the first: {[(id, found.get(id), expected.get(id)) for id in wrong[:2]]}"
