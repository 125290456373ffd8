"""`python -m scripts.trials.preloaded MODULE PROGRAM ...`: run a program of ours as if by `-m`, after another module.

The other module is one of `scripts.trials`, and breaks the product on purpose: trials must notice. It is imported in
every process that this one starts as well, although children and builders get an environment of their own.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import runpy
import sys
from typing import Any

PREFIX = "scripts.trials."


def preload(module: str) -> None:
    """Import the module here, and see to it that Python programs started from here import it first too."""
    importlib.import_module(module if "." in module else PREFIX + module)
    start = asyncio.create_subprocess_exec

    @functools.wraps(start)
    async def start_preloaded(program: Any, *arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if program == sys.executable and arguments[:2] == ("-P", "-m"):
            arguments = ("-P", "-m", __spec__.name, module, *arguments[2:])
        return await start(program, *arguments, **options)

    asyncio.create_subprocess_exec = start_preloaded


def main() -> None:
    """Become the program."""
    module, program, *arguments = sys.argv[1:]
    preload(module)
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
