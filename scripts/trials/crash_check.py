"""Everything the service says of its past and present, against the model."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson

from scripts.trials.crash_load import Api, Load
from scripts.trials.crash_writes import GROUPS, Model, Row, Write, row_of
from scripts.trials.promises import check


class Checker:
    """Checks the index `docs` of one data folder again and again; what was checked before is not walked twice."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._model = Model()
        self._last = ""
        self._checked = 0

    def all(self, load: Load) -> None:
        """Nothing lost, nothing doubled, everything in order and as the model has it. Raises Broken.

        The load is at rest: everything that was begun is acknowledged.
        """
        acknowledged = {mutation: write for writes in load.acknowledged for mutation, write in writes}
        check(len(acknowledged) == load.count, "every write has a mutation of its own")
        for writes in load.acknowledged:
            mine = [mutation for mutation, _ in writes]
            check(mine == sorted(mine), "the writes of one writer keep their order")
        if acknowledged:
            self._log(acknowledged)
        self._vectors()
        self._metadata_indexes()
        there = {one["name"] for one in self._api.call("GET", "")}
        check(there == load.extra | {"docs"}, f"the indexes are {sorted(load.extra)} and docs: {sorted(there)}")

    def prefix(self, acknowledged: dict[str, Write], *, needed: set[str]) -> None:
        """For a copy of the folder from earlier on: a part of the log from its beginning, with what it must have."""
        new = self._walk()
        ids = [str(one["mutationId"]) for one in new]
        check(ids == sorted(acknowledged)[: len(ids)], "a copy has the log from its beginning without a gap")
        check(needed <= set(ids), f"a copy lacks {len(needed - set(ids))} that were acknowledged before it was begun")
        if ids:
            self._apply(new, acknowledged)
        self._vectors()
        self._metadata_indexes()

    def _log(self, acknowledged: dict[str, Write]) -> None:
        newest = max(acknowledged)
        applied = self._api.call("GET", f"/docs/info?wait_for={newest}&timeout=100")
        new = self._walk()
        ids = [str(one["mutationId"]) for one in new]
        wanted = {id for id in acknowledged if id > self._last}
        lost, phantom = wanted - set(ids), set(ids) - wanted
        check(not lost, f"{len(lost)} acknowledged writes are lost: {sorted(lost)[:3]} of {len(wanted)}; {applied}")
        check(not phantom, f"{len(phantom)} writes are in the log that nobody did: {sorted(phantom)[:3]}")
        check(len(ids) == len(wanted), "a write is in the log twice")
        check(ids == sorted(ids), "mutation ids ascend in the order of the log")
        self._checked += len(ids)
        check(self._checked == len(acknowledged), "what was in the log once stays in it")
        self._apply(new, acknowledged)
        self._last = newest

    def _apply(self, new: list[dict[str, Any]], acknowledged: dict[str, Write]) -> None:
        self._api.call("GET", f"/docs/info?wait_for={new[-1]['mutationId']}&timeout=100") if new else None
        for one in self._walk() if any(one["state"] != "applied" for one in new) else new:
            write = acknowledged[str(one["mutationId"])]
            expected = self._model.apply(write)
            check(one["state"] == "applied", f"every mutation is applied: {one}")
            check(one["counts"] == expected, f"{write} does what it does in the model, {expected}: {one}")

    def _walk(self) -> list[dict[str, Any]]:
        """The log after what was checked, oldest first; what was checked last is still there."""
        found: list[dict[str, Any]] = []
        before = ""
        while True:
            page = self._api.call("GET", f"/docs/mutations?count=1000{before}")
            for one in page["mutations"]:
                if one["mutationId"] == self._last:
                    return found[::-1]
                found.append(one)
            if page["nextBefore"] is None:
                check(not self._last, f"mutation {self._last} was acknowledged, and found before: it is lost")
                return found[::-1]
            before = f"&before={page['nextBefore']}"

    def _vectors(self) -> None:
        listed: dict[str, Row] = {}
        page: dict[str, str] = {"include": "values,metadata", "count": "100"}
        while page:
            answer = self._api.call("GET", f"/docs/list?{urlencode(page)}")
            listed |= {one["id"]: _row(one) for one in answer["vectors"]}
            cursor = answer["nextCursor"]
            page = page | {"cursor": cursor} if cursor else {}
        rows = self._model.rows
        check(listed == rows, f"the vectors are those of the model: {_difference(listed, rows)}")
        info = self._api.call("GET", "/docs/info?latest=true")
        check(info["vectorCount"] == len(rows), f"/info counts {len(rows)} vectors: {info}")
        for group in range(0, GROUPS, 9):
            expected = {id for id, row in rows.items() if row[1] == group}
            self._query({"filter": {"group": group}}, expected)
        self._query({"namespace": "night"}, {id for id, row in rows.items() if row[2] == "night"})

    def _query(self, narrowed: dict[str, Any], expected: set[str]) -> None:
        query = {"vector": row_of("", 0)[0], "topK": 1000, **narrowed}
        found = {one["id"] for one in self._api.call("POST", "/docs/query", orjson.dumps(query))["matches"]}
        wrong = sorted(found ^ expected)
        check(not wrong, f"a query of {narrowed} finds {len(expected)}; missing or too many are {wrong[:5]}")

    def _metadata_indexes(self) -> None:
        some = self._api.call("GET", "/docs/metadata_index/list")["metadataIndexes"]
        found = {one["propertyName"]: one["indexType"].lower() for one in some}
        check(found == self._model.indexes, f"the metadata indexes are {self._model.indexes}: {found}")


def _row(vector: dict[str, Any]) -> Row:
    return tuple(vector["values"]), vector["metadata"]["group"], vector.get("namespace", "")


def _difference(found: dict[str, Row], expected: dict[str, Row]) -> str:
    wrong = [id for id in sorted(found.keys() | expected.keys()) if found.get(id) != expected.get(id)]
    return f"{len(wrong)} differ, the first: {[(id, found.get(id), expected.get(id)) for id in wrong[:2]]}"
