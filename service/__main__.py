"""`python -m service`: one service process when its argument is `child`, else the `headrace` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run what the arguments name; returns the exit code."""
    if sys.argv[1:2] == ["child"]:
        from service.commands.child import main as child

        return child()
    from service.commands.cli import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
