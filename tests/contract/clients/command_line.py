"""`wrangler vectorize`: all sixteen commands, in the form for people and in that for programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

from tests.contract.clients.ways import Results, Stage
from tests.contract.program import axis, eventually

MUTATION = r"[0-9a-f]{8}-[0-9a-f-]{27}"
FILTER = '{"kind": {"$ne": "y"}}'


class Shell:
    """A terminal in which `wrangler` is pointed here."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        base = f"{stage.program.url}/client/v4"
        self._environ = stage.environment(
            CLOUDFLARE_API_BASE_URL=base, CLOUDFLARE_API_TOKEN="local", CLOUDFLARE_ACCOUNT_ID=stage.account
        )

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


def create(shell: Shell) -> None:
    said = shell.says("create", "small", "--dimensions=32", "--metric=euclidean", "--description=hello")
    assert "Successfully created a new Vectorize index: 'small'" in said
    preset = shell.json("create", "preset", "--preset=@cf/baai/bge-base-en-v1.5", "--json")
    assert preset["config"] == {"dimensions": 768, "metric": "cosine", "preset": "@cf/baai/bge-base-en-v1.5"}


def refuse_a_duplicate(shell: Shell) -> None:
    said = shell.says("create", "small", "--dimensions=32", "--metric=cosine", code=1)
    assert 'vectorize.index.duplicate_name - Index name "small" [code: 3002]' in said


def list_and_get(shell: Shell) -> None:
    assert re.search(r"│ small +│ 32 +│ euclidean │ hello", shell.says("list"))
    assert {index["name"] for index in shell.json("list", "--json")} == {"docs", "small", "preset"}
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
    said = shell.says("delete-metadata-index", "small", "--property-name=size")
    assert re.search(rf"enqueued metadata index deletion request\. Mutation changeset identifier: {MUTATION}", said)


def insert_and_upsert(shell: Shell) -> None:
    vectors = [{"id": f"v{n}", "values": axis(n), "metadata": {"kind": "xy"[n % 2]}} for n in range(5)]
    vectors[4]["namespace"] = "n"
    shell.write("five.ndjson", *vectors)
    said = shell.says("insert", "small", "--file=five.ndjson", "--batch-size=2")
    assert len(re.findall(rf"Mutation changeset identifier: {MUTATION}", said)) == 3
    assert "Successfully enqueued 5 vectors into index 'small' for insertion" in said
    shell.settles("small", 5)
    shell.write("more.ndjson", vectors[0] | {"metadata": {"kind": "z"}}, {"id": "v5", "values": axis(5)})
    assert shell.json("upsert", "small", "--file=more.ndjson", "--json") == {"index": "small", "count": 2}
    shell.settles("small", 6)
    assert "vectorCount" in shell.says("info", "small")
    shell.write("wrong.ndjson", {"id": "w", "values": [1.0]})
    assert "[code: 40012]" in shell.says("insert", "small", "--file=wrong.ndjson", code=1)


def query(shell: Shell) -> None:
    options = ("--top-k=2", "--return-values", "--return-metadata=all", f"--filter={FILTER}")
    found = shell.json("query", "small", "--vector-id=v2", *options)
    assert (found["count"], [match["id"] for match in found["matches"]]) == (2, ["v2", "v0"])
    assert found["matches"][0] == {"id": "v2", "score": 0, "values": axis(2), "metadata": {"kind": "x"}}
    found = shell.json("query", "small", "--vector", *[str(number) for number in axis(1)], "--top-k=1")
    assert found == {"count": 1, "matches": [{"id": "v1", "score": 0}]}
    found = shell.json("query", "small", "--vector-id=v1", "--namespace=n", "--return-metadata=indexed")
    assert [match["id"] for match in found["matches"]] == ["v4"]
    assert found["matches"][0]["metadata"] == {"kind": "x"}


def get_and_delete_vectors(shell: Shell) -> None:
    assert [vector["id"] for vector in shell.json("get-vectors", "small", "--ids", "v5", "nobody", "v1")] == [
        "v5",
        "v1",
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
    assert "list-vectors small --cursor" in said


def delete(shell: Shell) -> None:
    assert "Deleted index small" in shell.says("delete", "small", "--force")
    assert 'Index name "small" was deleted [code: 3005]' in shell.says("get", "small", code=1)


STEPS: tuple[Callable[[Shell], None], ...] = (
    create,
    refuse_a_duplicate,
    list_and_get,
    metadata_indexes,
    insert_and_upsert,
    query,
    get_and_delete_vectors,
    list_vectors,
    delete,
)


def walk(stage: Stage) -> Results:
    """Every step in order."""
    shell = Shell(stage)
    found: Results = []
    for step in STEPS:
        try:
            step(shell)
            found.append((step.__name__, ""))
        except AssertionError as error:
            found.append((step.__name__, str(error)))
    return found
