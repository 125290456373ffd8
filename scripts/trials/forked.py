"""Work in a process of its own, forked from this one: what it answers, or how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

FAILED = 70
HUNG = -signal.SIGALRM


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended: 0, FAILED for an exception, a negative number for a signal, HUNG for too late; and its answer."""

    code: int
    answer: Any = None


def answered(work: Callable[[], object], log: Path, timeout_s: float) -> Ended:
    """Run something that answers with what JSON can say. What it prints goes to the log, which is begun anew.

    It does not outlive this call, however that ends.
    """
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            become(lambda: _answer(work, log, file.fileno()))
        waited = os.pidfd_open(pid)
        try:
            is_over, _, _ = select.select([waited], [], [], timeout_s)
        finally:
            os.close(waited)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not is_over:
            return Ended(HUNG)
        file.seek(0)
        said = file.read()
        return Ended(code, json.loads(said) if said and code == 0 else None)


def _answer(work: Callable[[], object], log: Path, descriptor: int) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    with os.fdopen(descriptor, "w", closefd=False) as file:
        json.dump(work(), file)


def become(work: Callable[[], object]) -> NoReturn:
    """Do this and end, in a process that was just forked: nothing of what was begun before the fork is gone on with."""
    code = FAILED
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
