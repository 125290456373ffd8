"""Headrace as an installed package: this file is `headrace/__init__.py` in the wheel.

The packages service, storage and worker lie beside it, inside `headrace/`, because their names are common:
the PyPI distributions `worker` and `storage` would overwrite ours at the top of site-packages. This folder
goes first on the path, so that `from storage...` means ours in this process; children get the same through
PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """The `headrace` command."""
    folder = str(Path(__file__).resolve().parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    from service.commands.cli import main as command

    return command(sys.argv[1:])
