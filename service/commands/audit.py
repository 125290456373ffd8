"""`headrace audit`: whether the lines of an audit file are those that were written."""

from __future__ import annotations

import sys
from pathlib import Path

from service.audit_lines import suspicions
from service.commands.failure import EXIT_FAILED, CommandFailed

SHOWN_MAX = 100


def check_audit(file: Path) -> int:
    """Say what is wrong with the file; returns 0 when nothing is. Raises CommandFailed where it cannot be read."""
    try:
        with file.open("rb") as lines:
            found = list(suspicions(lines))
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from error
    for one in found[:SHOWN_MAX]:
        sys.stdout.write(f"{file}:{one.line}: {one.reason}\n")
    if found:
        sys.stdout.write(f"{len(found)} lines of {file} are not as they were written\n")
        return EXIT_FAILED
    sys.stdout.write(f"every line of {file} is as it was written, in its place\n")
    return 0
