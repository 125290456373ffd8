"""The API does what its OpenAPI document says: schemathesis makes requests from the document, with every check it has.

A trial is one operation, asked with what the document allows or with what it forbids: `trials` requests of each and, at
full size, the borders of every schema. What is allowed is accepted, what is forbidden refused, nothing fails inside,
and every answer has a status, headers and a body that are in the document. schemathesis is installed into an
environment of its own, the first time from PyPI.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.benchmark.environments import NotInstalled, environment
from scripts.trials.contract_narrowing import ACCOUNT, DIMENSIONS, INDEX, narrowed, narrowed_to_acceptable
from scripts.trials.report import Trial, Trials

SHORT = 2
FULL = 2_000
TOGETHER_MAX = 50
"""With fewer requests of each, all operations are asked in one go, without the borders: a go begins with seconds."""
PROMISE = "the API does what its OpenAPI document says"
REQUIREMENTS = ("schemathesis==4.32.5",)
TOKEN = "contract-7e3c5b1a9d2f4860"
INDEXES = f"/accounts/{ACCOUNT}/vectorize/v2/indexes"
MODES = {"positive": narrowed_to_acceptable, "negative": narrowed}
ROOT = Path(__file__).resolve().parents[2]
HOOKS = Path(__file__).with_name("contract_hooks.py")
LISTENS = re.compile(r"listens on (http://\S+)")
START_S, RUN_S = 60, 3_600
# Which properties have a metadata index, and how many there may be, is no matter of a document.
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "404"]

[[operations]]
include-operation-id = ["create_metadata_index", "delete_metadata_index"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]
"""


def run(trials: int, seed: int, results: Path, replay: int | None) -> list[Trial]:
    """Ask every operation that was not asked yet."""
    try:
        python = environment("schemathesis", REQUIREMENTS)
    except NotInstalled as error:
        return [_not_run(f"schemathesis, and a package index to install it from ({error})")]
    done = Trials(results / f"contract-{trials}-{seed}.jsonl", replay)
    with tempfile.TemporaryDirectory(prefix="headrace-contract-") as scratch, _service(Path(scratch)) as url:
        documents = _documents(url)
        for mode, document in documents.items():
            (Path(scratch) / f"{mode}.json").write_text(json.dumps(document))
        (Path(scratch) / "schemathesis.toml").write_text(CONFIG)
        every = _all(documents)
        for some in _goes([every[number] for number in done.wanted(every)], trials):
            for trial in _ask(python, Path(scratch), url, some, trials, seed):
                done.note(trial)
    return done.result(every)


Asked = tuple[int, str, str]
"""The number of a trial, its mode and its operation."""


def _all(documents: dict[str, Any]) -> dict[int, Asked]:
    """Every trial there can be. Nothing can be forbidden of an operation that takes nothing."""
    return {
        number: (number, mode, id)
        for number, (id, mode) in enumerate(itertools.product(_operations(documents["negative"]), MODES))
        if mode == "positive" or _takes_something(documents[mode], id)
    }


def _takes_something(document: dict[str, Any], id: str) -> bool:
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    return any(one["parameters"] or "requestBody" in one for one in operations if one["operationId"] == id)


def _operations(document: dict[str, Any]) -> dict[str, str]:
    """The names that schemathesis gives them, by their ids."""
    return {
        operation["operationId"]: f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def _goes(wanted: list[Asked], trials: int) -> list[list[Asked]]:
    if trials > TOGETHER_MAX:
        return [[one] for one in wanted]
    return [some for mode in MODES if (some := [one for one in wanted if one[1] == mode])]


def _ask(python: Path, folder: Path, url: str, asked: list[Asked], trials: int, seed: int) -> Iterator[Trial]:
    mode = asked[0][1]
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"{mode}.json"]
    command += ["--url", url, "--header", f"Authorization: Bearer {TOKEN}", "--mode", mode, "--checks", "all"]
    command += ["--max-examples", str(trials), "--seed", str(seed), "--continue-on-failure"]
    # An operation without parameters has little that could be forbidden.
    command += ["--suppress-health-check", "all", "--report", "junit", "--report-junit-path", str(report)]
    command += ["--phases", "coverage,fuzzing"] if trials > TOGETHER_MAX else ["--phases", "fuzzing", "--no-shrink"]
    for _, _, id in asked:
        command += ["--include-operation-id", id]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": HOOKS.stem, "PYTHONPATH": str(HOOKS.parent)}
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=RUN_S, check=False)
    if not report.exists():
        raise SystemExit(f"schemathesis made no report:\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    names = _operations(json.loads((folder / f"{mode}.json").read_text()))
    cases = {case.get("name"): case for case in ET.parse(report).iter("testcase")}
    for number, _, id in asked:
        case = cases.get(names[id])
        skipped = case is None or case.find("skipped") is not None
        found = [] if case is None else [one for kind in ("failure", "error") for one in case.findall(kind)]
        yield Trial(
            number=number,
            promise=PROMISE,
            what=f"{mode} requests to {names[id]}",
            verdict="violation" if found else "was skipped" if skipped else "kept",
            seconds=0.0 if case is None else float(case.get("time", 0)),
            note="\n".join(one.text or "" for one in found)[:2_000],
        )


def _documents(url: str) -> dict[str, Any]:
    """What the service says of itself, narrowed to an index that is made here."""
    served = _request(url, "GET", "/openapi.json")
    _request(url, "POST", INDEXES, {"name": INDEX, "config": {"dimensions": DIMENSIONS, "metric": "cosine"}})
    vectors = [{"id": str(n), "values": [n, 1, 2, 3], "metadata": {"k": n}} for n in range(20)]
    mutation = _request(url, "POST", f"{INDEXES}/{INDEX}/upsert?wait=true", vectors)["result"]["mutationId"]
    return {mode: narrow(served, mutation) for mode, narrow in MODES.items()}


def _request(url: str, method: str, path: str, document: object = None) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, body, headers, method=method)) as response:
        return json.load(response)


@contextmanager
def _service(folder: Path) -> Iterator[str]:
    """A service with relaxed limits, which take filters and dimensions that the others do not, and a token."""
    command = [sys.executable, "-P", "-m", "service", "dev", "--port", "0", "--data", str(folder / "data")]
    command += ["--limits", "relaxed", "--log-level", "warning", "--stop-with-input"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environ |= {"HEADRACE_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            found = LISTENS.search(process.stdout.readline())
            if found is None:
                raise SystemExit(f"the service did not start:\n{(folder / 'log').read_text()}")
            yield found[1]
        finally:
            process.terminate()
            process.wait(START_S)


def _not_run(needs: str) -> Trial:
    return Trial(number=0, promise=PROMISE, what="", verdict="not run", seconds=0.0, note=f"needs {needs}")
