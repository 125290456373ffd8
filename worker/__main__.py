"""`python -m worker`: one worker process, started by the supervisor."""

from __future__ import annotations

import sys

from storage.process import run_child
from worker.process import run


def main() -> int:
    """Work until told to stop; returns the exit code."""
    return run_child(run)


if __name__ == "__main__":
    sys.exit(main())
