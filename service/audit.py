"""The audit: who changed or administered what, and what came of it.

One event for every request that was let in to write or administer, whatever came of it, and nothing of what was
written. Events go to the log, or to a file of their own, whatever the level of the log: one JSON object a line, each
written in one call, so that lines of several processes do not mix. The file is opened again on SIGHUP, so that it can
be rotated.

An event is written after the change it tells of. A process that dies between the two leaves a change without its event;
the log of the index has it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from service.audit_lines import AuditLines
from storage.logs import QuickLog
from storage.tokens import Scope, Token

log = structlog.get_logger()


@dataclass(slots=True)
class Asked:
    """What a request wants to change. `mutation` is filled in when it has become one; `index` may be empty."""

    token: Token
    scope: Scope
    account: str
    index: str
    mutation: str = ""


class Audit:
    """Where a process writes its audit. Close it when done."""

    def __init__(self, path: str) -> None:
        """Open the file, if there is to be one. Raises OSError."""
        self._path = path
        self._file = _opened(path) if path else -1
        self._lines = AuditLines(self._write)
        self._log: AuditLines | QuickLog = self._lines if path else QuickLog()

    def record(self, asked: Asked, *, request_id: str, method: str, path: str, address: str, outcome: str) -> None:
        """Write down one request."""
        values: dict[str, Any] = {
            "at_s": time.time(),
            "request_id": request_id,
            "token": asked.token.id,
            "account": asked.account,
            "index": asked.index,
            "mutation": asked.mutation,
            "method": method,
            "path": path,
            "address": address,
            "outcome": outcome,
        }
        log = self._log
        if asked.scope is Scope.ADMIN:
            log.info("administration.audited", **values)
        else:
            log.info("write.audited", **values)

    def record_token(self, token: Token, *, change: str, grants: str) -> None:
        """Write down that a token was made, rotated or revoked by a command."""
        log = self._log
        log.info(
            "token.audited",
            at_s=time.time(),
            token=token.id,
            name=token.name,
            change=change,
            grants=grants,
            user=os.getuid(),
        )

    def reopen(self) -> None:
        """Go on in the file that has the name now. Keeps the one it has when that cannot be opened."""
        if not self._path:
            return
        try:
            fresh = _opened(self._path)
        except OSError as error:
            log.error("audit.failed", reason=str(error))
            return
        os.close(self._file)
        self._file = fresh
        self._lines.begin()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, text: bytes) -> bool:
        try:
            if os.write(self._file, text) == len(text):
                return True
            os.write(self._file, b"\n")
            reason = "only a part of the line could be written"
        except OSError as error:
            reason = str(error)
        # The change is made and acknowledged already: to fail the request now would be a lie.
        log.error("audit.failed", reason=reason, line=text.decode())
        return False


def _opened(path: str) -> int:
    # Closed to others: it says who uses what from where.
    return os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
