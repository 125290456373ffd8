"""A command that cannot be done: a sentence for the person at the terminal and an exit code."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PORT_TAKEN = 3


class CommandFailed(Exception):
    """What stopped a command and what would work."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
