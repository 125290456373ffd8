"""One service process, as its supervisor starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from storage.process import inherited_sockets, run_child
from storage.settings import Settings


def main() -> int:
    """Serve on the inherited sockets until told to stop; returns the exit code."""
    return run_child(_serve)


async def _serve(settings: Settings, ready: Callable[[], None], stop: asyncio.Event) -> None:
    from service.process import run

    await run(settings, sockets=inherited_sockets(), ready=ready, stop=stop)
