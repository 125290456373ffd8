"""Measure one peer: run by `measure_peer` in the peer's own environment, where only numpy and the peer are there."""

from __future__ import annotations

import argparse
import importlib
import json
from importlib.metadata import version
from pathlib import Path

from scripts.benchmark.environments import REQUIREMENTS
from scripts.benchmark.peers import NAMES
from scripts.benchmark.peers.contract import Data, Peer
from scripts.benchmark.peers.measuring import SHORT, Measuring, Plan, reopened
from scripts.benchmark.results import Measurement

PEERS = {
    "chroma": "chroma:Chroma",
    "pgvector": "pgvector:Pgvector",
    "qdrant-edge": "qdrant_edge:QdrantEdge",
    "lancedb": "lancedb:LanceDB",
    "milvus-lite": "milvus_lite:MilvusLite",
    "sqlite-vec": "sqlite_vec:SqliteVec",
    "usearch": "graph_libraries:Usearch",
    "hnswlib": "graph_libraries:Hnswlib",
    "faiss": "graph_libraries:Faiss",
}


def main() -> None:
    """Write the measurements to the file after each, so that a run that is cut off leaves what it had."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--reopen", type=int, help="only open what the folder holds, and search it with this effort")
    arguments = parser.parse_args()
    module, _, name = PEERS[arguments.name].partition(":")
    folder = arguments.work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    peer: Peer = getattr(importlib.import_module(f"scripts.benchmark.peers.{module}"), name)(folder)
    data = Data(arguments.data)
    if arguments.reopen is not None:
        print(json.dumps(reopened(peer, data, arguments.reopen)))
        return
    measuring = Measuring(
        arguments.name, peer, data, arguments.work, SHORT if arguments.short else Plan(), _versions(arguments.name)
    )
    found = []
    for one in measuring.all():
        found.append(one.as_dict())
        if arguments.json:
            part = arguments.json.with_suffix(".part")
            part.write_text(json.dumps(found))
            part.replace(arguments.json)
        print(_line(one), flush=True)


def _line(one: Measurement) -> str:
    named = {"clients": one.clients, "ef": one.settings.get("effort"), "recall": one.recall}
    named |= {"p50 ms": one.p50_ms, "p99 ms": one.p99_ms, "low": one.low, "high": one.high}
    more = " ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    return f"{one.subject:12} {one.what:16} {one.filter:14} {one.value:>12,.2f} {one.unit:12} {more} {one.note[-90:]}"


def _versions(name: str) -> str:
    packages = [requirement.partition("==")[0].partition("[")[0] for requirement in REQUIREMENTS[name]]
    return ", ".join(f"{package} {version(package)}" for package in packages if package not in ("numpy", "pyarrow"))


if __name__ == "__main__":
    main()
