"""The measuring of peers, on a peer that is a scan in numpy; the real ones are asked by `scripts/bench --short`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scripts.benchmark import environments, peers
from scripts.benchmark.data import FILTERS, SELECTIVITIES
from scripts.benchmark.peers import __main__ as program
from scripts.benchmark.peers import postgres_wire
from scripts.benchmark.peers.clients import recall
from scripts.benchmark.peers.contract import Data, Loaded
from scripts.benchmark.peers.measuring import SHORT, Measuring
from scripts.benchmark.results import from_dicts

ROWS = 1_200


class Scan:
    """A peer whose effort is the share of the rows that it looks at."""

    note = "in process"
    efforts = (1, 2, 4, 8)
    abilities = frozenset({"filters", "get", "scan", "write", "raw"})

    def __init__(self) -> None:
        self.settings = {"made of": "numpy"}
        self.efforts_tried = []

    def create(self, data):
        self.vectors, self.fields = np.empty((0, data.dimensions), dtype=np.float32), data.fields

    def load(self, data):
        self.vectors = np.array(data.vectors)
        return Loaded(searchable_s=0.5, indexed_s=1.0)

    def session(self, effort):
        self.efforts_tried.append(effort)
        return ScanSession(self, effort)

    def close(self):
        pass

    def get(self, rows):
        return len(self.vectors[sorted(set(rows))])

    def scan(self):
        yield from (1_000, ROWS - 1_000)

    def write(self, row, vector, metadata):
        assert row == len(self.vectors)
        self.vectors = np.concatenate((self.vectors, vector[None, :]))

    def raw(self, queries, effort, *, clients, seconds):
        return [1.0, 3.0] * clients, 0.5


class ScanSession:
    def __init__(self, peer, effort) -> None:
        self.peer, self.effort = peer, effort

    def prepare(self, query, count, where=None):
        return query, count, where

    def ask(self, request):
        query, count, where = request
        scores = self.peer.vectors @ query
        scores[:ROWS][np.arange(ROWS) % 8 >= self.effort] = -2
        if where is not None:
            scores[: len(self.peer.fields[where.field])][np.array(self.peer.fields[where.field]) != where.value] = -2
        best = np.argsort(-scores)[:count]
        return best[scores[best] > -2]

    def rows(self, answer):
        return answer.tolist()

    def close(self):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set with the files that `scripts/benchmark/data.py` makes."""
    place = tmp_path_factory.mktemp("data") / f"small-{ROWS}"
    place.mkdir()
    dice = np.random.default_rng(5)
    vectors, queries = (dice.standard_normal((count, 16)).astype(np.float32) for count in (ROWS, 100))
    for each in (vectors, queries):
        each /= np.linalg.norm(each, axis=1, keepdims=True)
    scores = queries @ vectors.T
    fields = {f"{kind}_{n}": dice.integers(0, n, ROWS) for kind in ("random", "region") for n in SELECTIVITIES}
    filters = {}
    for name in FILTERS:
        kind, _, number = name.partition("_")
        column = fields[name if kind == "random" else f"region_{number}"]
        values = dice.integers(0, int(number), 20)
        allowed = np.where(column[None, :] == values[:, None], scores[:20], -2)
        best = np.argsort(-allowed, axis=1)[:, :10]
        filters[f"{name}_value"] = values
        filters[f"{name}_truth"] = np.where(np.take_along_axis(allowed, best, 1) > -2, best, -1)
    np.save(place / "vectors.npy", vectors)
    np.save(place / "queries.npy", queries)
    np.save(place / "truth.npy", np.argsort(-scores, axis=1)[:, :100])
    np.savez(place / "metadata.npz", **fields)
    np.savez(place / "filters.npz", **filters)
    return place


@pytest.fixture
def measuring(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"x" * 100_000)
    plan = SHORT.__class__(
        rounds=2, round_s=0.02, filtered_queries=10, writes=3, effort_s=60.0, filter_s=60.0, raised_s=60.0
    )
    return Measuring("scan", Scan(), Data(folder), tmp_path, plan, "scan 1")


def test_every_figure_that_a_peer_can_give_is_measured(measuring):
    found = list(measuring.all())

    by_what = {}
    for one in found:
        by_what.setdefault(one.what, []).append(one)
    assert {
        "load.searchable",
        "load.indexed",
        "query",
        "query.raw",
        "filtered",
        "get",
        "list",
        "disk",
        "visible",
    } <= set(by_what)
    assert [one.value for one in (*by_what["load.searchable"], *by_what["load.indexed"])] == [2 * ROWS, ROWS]
    assert {one.clients for one in by_what["query"]} == {1, 8}
    assert [(one.value, one.p50_ms) for one in by_what["query.raw"] if one.clients == 1] == [(4.0, 2.0)]
    assert [one.filter for one in by_what["filtered"]][:2] == ["random 50 %", "random 10 %"]
    assert len(by_what["filtered"]) == 12
    assert all(one.recall == 1.0 for one in by_what["filtered"])
    assert all(one.set == "small" and one.rows == ROWS and one.settings["version"] == "scan 1" for one in found)
    assert from_dicts(json.loads(json.dumps([one.as_dict() for one in found]))) == found


def test_the_least_effort_that_reaches_the_recall_is_taken(measuring):
    found = [one for one in measuring.all() if one.what == "query"]

    assert {one.settings["effort"] for one in found} == {8}
    assert {one.recall for one in found} == {1.0}


def test_a_part_that_fails_is_told_of_and_the_rest_is_measured(measuring, monkeypatch):
    def get(self, rows):
        raise OSError("the peer fell over")

    monkeypatch.setattr(Scan, "get", get)

    found = list(measuring.all())

    failed = [one.note for one in found if one.what == "failed"]
    # A scan in numpy cannot be opened again either.
    assert failed[0] == "in process; get: OSError: the peer fell over"
    assert len(failed) == 2
    assert any(one.what == "visible" for one in found)


def test_recall_counts_as_many_as_there_are():
    truth = np.array([[1, 2, -1, -1], [-1, -1, -1, -1], [7, 8, 9, -1]])

    assert recall([[2, 1], [], [7, 8, 1]], truth) == pytest.approx((1 + 2 / 3) / 2)


def test_every_name_has_an_environment_and_a_module():
    assert set(peers.NAMES) == set(environments.REQUIREMENTS) == set(program.PEERS)
    for place in program.PEERS.values():
        module, _, name = place.partition(":")
        source = Path(program.__file__).with_name(f"{module}.py").read_text()
        assert f"class {name}" in source


def test_every_requirement_but_what_follows_from_another_is_pinned():
    loose = {one for all_of in environments.REQUIREMENTS.values() for one in all_of if "==" not in one}

    assert not loose


def test_a_peer_that_cannot_be_installed_is_reported_and_not_raised(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "venvs")
    monkeypatch.setitem(environments.REQUIREMENTS, "faiss", (str(tmp_path / "no-such-package"),))

    [found] = peers.measure_peer("faiss", folder, tmp_path / "work", short=True)

    assert (found["subject"], found["what"], found["rows"]) == ("faiss", "missing", ROWS)
    assert found["note"].startswith("not installed: faiss: ")
    assert not (tmp_path / "venvs" / "faiss" / "requirements.txt").exists()


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(environments, "FOLDER", tmp_path)

    def run(name, command):
        commands.append(command)
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setattr(environments, "_run", run)

    assert environments.environment("faiss") == environments.environment("faiss")
    assert len(commands) == 2

    monkeypatch.setitem(environments.REQUIREMENTS, "faiss", ("faiss-cpu==0",))
    environments.environment("faiss")
    assert len(commands) == 4


def test_a_peer_that_ends_badly_leaves_what_it_had_and_says_why(folder, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nplace = sys.argv[sys.argv.index('--json') + 1]\n"
        'open(place, "w").write(\'[{"what": "load.indexed"}]\')\nsys.exit("no memory left")\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(peers, "environment", lambda name: script)

    kept, failed = peers.measure_peer("faiss", folder, tmp_path / "work", short=True)

    assert kept == {"what": "load.indexed"}
    assert (failed["what"], failed["note"]) == ("failed", "ended with 1: no memory left")
    assert not (tmp_path / "work" / "faiss").exists()


def test_stopping_a_peer_stops_what_it_started():
    code = (
        "import subprocess, sys, time\n"
        "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(one.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    child = Path(f"/proc/{int(process.stdout.readline())}/stat")

    peers._stop_group(process)

    process.stdout.close()
    assert process.returncode < 0
    # It may be dead and not yet collected.
    while child.exists() and child.read_text().split()[2] != "Z":
        time.sleep(0.01)


def test_a_message_to_postgresql_binds_runs_and_ends_the_transaction():
    message = postgres_wire.execute_message(b"vector")

    bind = 4 + 1 + 2 + 2 + 2 + 2 + 4 + len(b"vector") + 2
    assert message[:1] == b"B"
    assert int.from_bytes(message[1:5], "big") == bind
    assert message[bind + 1 :] == b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00S\x00\x00\x00\x04"


def test_the_program_of_a_peer_needs_numpy_alone():
    modules = "scripts.benchmark.peers.measuring, scripts.benchmark.load, scripts.benchmark.peers.__main__"
    code = f"import {modules}, sys; print(sorted({{'orjson', 'aiohttp', 'usearch'}} & set(sys.modules)))"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=peers.ROOT)

    assert ran.stdout.strip() == "[]"
