"""`wrangler vectorize`: every command and option, in the form for people and in that for programs."""

from __future__ import annotations

import json
import re
import subprocess
import traceback
from collections.abc import Callable
from typing import Any

from tests.contract.clients.ways import Results, Stage
from tests.contract.program import ROOT, axis, eventually

MUTATION = r"[0-9a-f]{8}-[0-9a-f-]{27}"
FILTER = '{"kind": {"$ne": "y"}}'
FILTERS = {
    '{"kind": "x"}': {"v2", "v4"},
    '{"kind": {"$in": ["x", "z"]}}': {"v0", "v2", "v4"},
    '{"kind": {"$nin": ["x", "y"]}}': {"v0", "v5"},
    '{"kind": {"$gt": "x", "$lt": "z"}}': {"v1", "v3"},
    '{"kind": {"$lte": "x"}}': {"v2", "v4"},
    # As the page says, and hopes to be wrong one day: wrangler sends nothing of this condition.
    '{"kind": {"$gte": "z"}}': {"v0", "v1", "v2", "v3", "v4", "v5"},
}
PAGE = (
    (ROOT / "COMPATIBILITY.md")
    .read_text(encoding="utf-8")
    .partition("## wrangler vectorize\n")[2]
    .partition("\n## ")[0]
)


class Shell:
    """A terminal in which `wrangler` is pointed here."""

    def __init__(self, stage: Stage, account: str) -> None:
        self._stage = stage
        base = f"{stage.program.url}/client/v4"
        self._environ = stage.environment(
            CLOUDFLARE_API_BASE_URL=base, CLOUDFLARE_API_TOKEN="local", CLOUDFLARE_ACCOUNT_ID=account
        )

    def elsewhere(self) -> Shell:
        """A terminal with an account in which nothing is."""
        return Shell(self._stage, f"{self._stage.account}-empty")

    def says(self, *words: str, code: int = 0) -> str:
        """What a command prints, on both channels; fails on another exit code."""
        done = subprocess.run(
            self._stage.command("wrangler", "vectorize", *words),
            cwd=self._stage.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}:\n{text}"
        return text

    def json(self, *words: str) -> Any:
        """The document that a command prints, behind whatever banner there is."""
        text = self.says(*words)
        found = re.search(r"^[\[{].*^[\]}]$", text, re.MULTILINE | re.DOTALL) or re.search(
            r"^\[\]$", text, re.MULTILINE
        )
        assert found is not None, text
        return json.loads(found[0])

    def write(self, name: str, *vectors: dict[str, Any]) -> None:
        """Make a file of vectors."""
        (self._stage.folder / name).write_text("".join(f"{json.dumps(vector)}\n" for vector in vectors))

    def settles(self, name: str, count: int) -> None:
        """Wait until the index has so many vectors."""
        eventually(f"{count} vectors", lambda: self.json("info", name, "--json")["vectorCount"] == count)


def help_names_nothing_that_the_page_does_not(shell: Shell) -> None:
    rows = re.findall(r"^\| (`[a-z-]+`.*?) \| (`--.+?) \| .*\|$|^\| \| (`--.+?) \|", PAGE, re.MULTILINE)
    described: dict[str, set[str]] = {}
    commands: list[str] = []
    for named, options, more in rows:
        commands = re.findall(r"`([a-z-]+)`", named) or commands
        for command in commands:
            described.setdefault(command, set()).update(re.findall(r"`(--[\w-]+)`", options + more))
    offered = set(re.findall(r"^ +wrangler vectorize ([a-z-]+) ", shell.says("--help"), re.MULTILINE))
    assert offered
    assert offered <= described.keys()
    for command in sorted(offered):
        _, _, options = shell.says(command, "--help").partition("OPTIONS\n")
        found = set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", options, re.MULTILINE)) - {"--experimental-json-config"}
        assert found <= described[command], (command, found - described[command])


def nothing_is_there_yet(shell: Shell) -> None:
    empty = shell.elsewhere()
    assert "You haven't created any indexes on this account" in empty.says("list")
    empty.says("create", "bare", "--dimensions=32", "--metric=dot-product")
    assert "You haven't created any metadata indexes" in empty.says("list-metadata-index", "bare")
    assert "No vectors found in this index" in empty.says("list-vectors", "bare")
    assert empty.json("info", "bare", "--json") == {"dimensions": 32, "vectorCount": 0}
    assert re.search(r"│ 32 +│ 0 +│", empty.says("info", "bare"))
    assert "Deleted index bare" in empty.says("delete", "bare", "--force")


def create(shell: Shell) -> None:
    said = shell.says("create", "small", "--dimensions=32", "--metric=euclidean", "--description=hello")
    assert "Successfully created a new Vectorize index: 'small'" in said
    # What is printed is compared by `get`: wrangler 4.36 prints what it sent, and not the answer.
    assert shell.json("create", "preset", "--preset=@cf/baai/bge-base-en-v1.5", "--json")["name"] == "preset"
    preset = shell.json("get", "preset", "--json")
    assert preset["config"] == {"dimensions": 768, "metric": "cosine", "preset": "@cf/baai/bge-base-en-v1.5"}
    assert shell.json("create", "plain", "--dimensions=1536", "--metric=dot-product", "--json")["name"] == "plain"
    plain = shell.json("get", "plain", "--json")
    assert plain == {
        "created_on": plain["created_on"],
        "modified_on": plain["created_on"],
        "name": "plain",
        "description": "",
        "config": {"dimensions": 1536, "metric": "dot-product"},
    }
    said = shell.says("create", "ada", "--preset=openai/text-embedding-ada-002", "--description=of a model")
    assert "Successfully created a new Vectorize index: 'ada'" in said
    assert "[code: 3003]" in shell.says("create", "huge", "--dimensions=1537", "--metric=cosine", code=1)


def refuse_a_duplicate(shell: Shell) -> None:
    said = shell.says("create", "small", "--dimensions=32", "--metric=cosine", code=1)
    assert 'vectorize.index.duplicate_name - Index name "small" [code: 3002]' in said


def list_and_get(shell: Shell) -> None:
    assert re.search(r"│ small +│ 32 +│ euclidean +│ hello", shell.says("list"))
    assert {index["name"] for index in shell.json("list", "--json")} == {
        "docs",
        "small",
        "preset",
        "plain",
        "ada",
    }
    assert re.search(r"│ small │ 32 +│ euclidean │ hello", shell.says("get", "small"))
    assert shell.json("get", "small", "--json")["config"] == {"dimensions": 32, "metric": "euclidean"}
    assert "[code: 3000]" in shell.says("get", "nowhere", code=1)


def metadata_indexes(shell: Shell) -> None:
    said = shell.says("create-metadata-index", "small", "--property-name=kind", "--type=string")
    assert re.search(rf"enqueued metadata index creation request\. Mutation changeset identifier: {MUTATION}", said)
    shell.says("create-metadata-index", "small", "--property-name=size", "--type=number")
    wanted = [{"propertyName": "kind", "indexType": "String"}, {"propertyName": "size", "indexType": "Number"}]
    eventually("both are listed", lambda: shell.json("list-metadata-index", "small", "--json") == wanted)
    assert re.search(r"│ kind +│ String +│", shell.says("list-metadata-index", "small"))
    shell.says("create-metadata-index", "small", "--propertyName=open", "--type=boolean")
    wanted.append({"propertyName": "open", "indexType": "Boolean"})
    eventually("all are listed", lambda: shell.json("list-metadata-index", "small", "--json") == wanted)
    said = shell.says("create-metadata-index", "small", "--property-name=kind", "--type=number", code=1)
    assert "[code: 40004]" in said
    said = shell.says("delete-metadata-index", "small", "--property-name=size")
    assert re.search(rf"enqueued metadata index deletion request\. Mutation changeset identifier: {MUTATION}", said)
    del wanted[1]
    eventually("one is gone", lambda: shell.json("list-metadata-index", "small", "--json") == wanted)
    assert "[code: 40005]" in shell.says("delete-metadata-index", "small", "--property-name=size", code=1)


def insert_and_upsert(shell: Shell) -> None:
    vectors = [{"id": f"v{n}", "values": axis(n), "metadata": {"kind": "xy"[n % 2], "size": n}} for n in range(5)]
    vectors[4]["namespace"] = "n"
    shell.write("five.ndjson", *vectors)
    said = shell.says("insert", "small", "--file=five.ndjson", "--batch-size=2")
    assert len(re.findall(rf"Mutation changeset identifier: {MUTATION}", said)) == 3
    assert "Successfully enqueued 5 vectors into index 'small' for insertion" in said
    shell.settles("small", 5)
    shell.write("more.ndjson", vectors[0] | {"metadata": {"kind": "z"}}, {"id": "v5", "values": axis(5)})
    assert shell.json("upsert", "small", "--file=more.ndjson", "--json") == {"index": "small", "count": 2}
    shell.settles("small", 6)
    said = shell.says("upsert", "small", "--file=more.ndjson", "--batch-size=1")
    assert len(re.findall(rf"Mutation changeset identifier: {MUTATION}", said)) == 2
    assert "Successfully enqueued 2 vectors into index 'small' for upsertion" in said
    # All of them are there already: what they have stays, that of the first with the kind z above all.
    assert shell.json("insert", "small", "--file=five.ndjson", "--batch-size=2", "--json") == {
        "index": "small",
        "count": 5,
    }
    shell.settles("small", 6)
    found = shell.json("info", "small", "--json")
    assert set(found) == {"dimensions", "vectorCount", "processedUpToDatetime", "processedUpToMutation"}
    assert re.fullmatch(MUTATION, found["processedUpToMutation"])
    assert re.search(rf"│ 32 +│ 6 +│ {MUTATION} +│", shell.says("info", "small"))
    shell.write("wrong.ndjson", {"id": "w", "values": [1.0]})
    assert "[code: 40012]" in shell.says("insert", "small", "--file=wrong.ndjson", code=1)


def query(shell: Shell) -> None:
    options = ("--top-k=2", "--return-values", "--return-metadata=all", f"--filter={FILTER}")
    found = shell.json("query", "small", "--vector-id=v2", *options)
    assert (found["count"], [match["id"] for match in found["matches"]]) == (2, ["v2", "v0"])
    assert found["matches"][0] == {"id": "v2", "score": 0, "values": axis(2), "metadata": {"kind": "x", "size": 2}}
    found = shell.json("query", "small", "--vector", *[str(number) for number in axis(1)], "--top-k=1")
    assert found == {"count": 1, "matches": [{"id": "v1", "score": 0}]}
    found = shell.json("query", "small", "--vector-id=v1", "--namespace=n", "--return-metadata=indexed")
    assert [match["id"] for match in found["matches"]] == ["v4"]
    assert found["matches"][0]["metadata"] == {"kind": "x"}
    found = shell.json("query", "small", "--vector-id=v0", "--return-values", "--return-metadata=none", "--top-k=1")
    assert found == {"count": 1, "matches": [{"id": "v0", "score": 0, "values": axis(0)}]}
    assert shell.json("query", "small", "--vector-id=v0")["count"] == 5
    assert "Could not find any relevant vectors" in shell.says("query", "small", "--vector-id=v0", "--namespace=no")
    assert "[code: 40006]" in shell.says("query", "small", "--vector", "1", "2", code=1)
    assert "[code: 40025]" in shell.says("query", "small", "--vector-id=v0", "--top-k=101", code=1)


def filters(shell: Shell) -> None:
    for filter, ids in FILTERS.items():
        options = ("--vector-id=v0", "--top-k=9", f"--filter={filter}")
        found = shell.json("query", "small", *options)
        assert {match["id"] for match in found["matches"]} == ids, filter


def get_and_delete_vectors(shell: Shell) -> None:
    assert shell.json("get-vectors", "small", "--ids", "v5", "nobody", "v1") == [
        {"id": "v5", "values": axis(5)},
        {"id": "v1", "values": axis(1), "metadata": {"kind": "y", "size": 1}},
    ]
    said = shell.says("delete-vectors", "small", "--ids", "v1", "v5")
    assert "Successfully enqueued 2 vectors into index 'small' for deletion" in said
    shell.settles("small", 4)
    assert "does not contain vectors" in shell.says("get-vectors", "small", "--ids", "v1")


def list_vectors(shell: Shell) -> None:
    first = shell.json("list-vectors", "small", "--count=3", "--json")
    assert ([one["id"] for one in first["vectors"]], first["totalCount"]) == (["v0", "v2", "v3"], 4)
    rest = shell.json("list-vectors", "small", "--count=3", f"--cursor={first['nextCursor']}", "--json")
    assert ([one["id"] for one in rest["vectors"]], rest["isTruncated"]) == (["v4"], False)
    said = shell.says("list-vectors", "small", "--count=3")
    assert "Showing 3 of 4 total vectors" in said
    [cursor] = re.findall(r"list-vectors small --cursor (\S+)", said)
    said = shell.says("list-vectors", "small", "--cursor", cursor)
    assert re.search(r"│ 1 │ v4 +│", said)
    assert "To get the next page" not in said
    assert "Showing 4 of 4 total vectors" in shell.says("list-vectors", "small")
    assert "[code: 49002]" in shell.says("list-vectors", "small", "--cursor=none", code=1)


def the_first_version_is_refused(shell: Shell) -> None:
    for words in (("list",), ("get", "small"), ("delete", "small", "--force")):
        assert "[code: 1010]" in shell.says(*words, "--deprecated-v1", code=1)


def delete(shell: Shell) -> None:
    assert "Deleted index small" in shell.says("delete", "small", "--force")
    assert 'Index name "small" was deleted [code: 3005]' in shell.says("get", "small", code=1)


STEPS: tuple[Callable[[Shell], None], ...] = (
    help_names_nothing_that_the_page_does_not,
    nothing_is_there_yet,
    create,
    refuse_a_duplicate,
    list_and_get,
    metadata_indexes,
    insert_and_upsert,
    query,
    filters,
    get_and_delete_vectors,
    list_vectors,
    the_first_version_is_refused,
    delete,
)


def walk(stage: Stage) -> Results:
    """Every step in order."""
    shell = Shell(stage, stage.account)
    found: Results = []
    for step in STEPS:
        try:
            step(shell)
            found.append((step.__name__, ""))
        except AssertionError:
            # Not the message: an assert has none here, and a case without one counts as passed.
            found.append((step.__name__, traceback.format_exc()))
    return found
