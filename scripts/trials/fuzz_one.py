"""One target under atheris, in a process of its own: what is imported here is instrumented."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["service", "storage"]):
    from scripts.trials.fuzz_targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
