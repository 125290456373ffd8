"""The whole matrix of clients, as a table: client, version, way, cases, result. Exit code 1 if anything failed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.contract.clients.matrix import MORE_WAYS, WAYS
from tests.contract.clients.ways import Way
from tests.contract.program import Program, running

ARGUMENTS = ("--profile", "cloudflare", "--processes", "2", "--binding-creates-indexes")


def main(patterns: list[str]) -> int:
    """Run what matches any of the patterns, or everything."""
    chosen = [
        way
        for way in WAYS + MORE_WAYS
        if not patterns or any(one in f"{way.project.name} {way.package} {way.name}" for one in patterns)
    ]
    rows = []
    with tempfile.TemporaryDirectory(prefix="headrace-clients-") as folder, running(Path(folder), *ARGUMENTS) as one:
        for number, way in enumerate(chosen):
            rows.append(_row(way, one, f"way-{number}"))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    failed = sum(row[-1] != "passed" for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _row(way: Way, program: Program, account: str) -> tuple[str, ...]:
    try:
        found = way.try_on(program, account)
    except AssertionError as error:
        sys.stderr.write(f"{way.package}, {way.name}: {error}\n")
        return way.package, "?", way.name, "none", "failed"
    for case, wrong in found:
        if wrong:
            sys.stderr.write(f"{way.package}, {way.name}, {case}: {wrong}\n")
    passed = sum(not wrong for _, wrong in found)
    result = "passed" if passed == len(found) else "failed"
    return way.package, way.project.version(way.package), way.name, f"{passed} of {len(found)}", result


if __name__ == "__main__":
    print("| client | version | way | cases | result |\n|---|---|---|---|---|")
    sys.exit(main(sys.argv[1:]))
