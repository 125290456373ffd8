"""The supervisor: keeps the children of one `headrace up`, `serve` or `work` alive, and stops them in order.

A child that dies is started again after a wait that doubles with every death. A child that refuses the data
before anything was ready ends the whole: starting it again would only hide the message. On stop the services
go first, while the worker still applies, so that a request that waits for its mutation gets its answer; then
the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from service.commands.children import Child, ChildPlan
from service.commands.failure import CommandFailed
from storage.process import EXIT_REFUSED, ORPHAN_GRACE_S
from storage.runtime import give_back_metrics_room
from storage.settings import Settings

RESTART_WAIT_MIN_S = 0.1
RESTART_WAIT_MAX_S = 5.0
STEADY_AFTER_S = 30.0
"""A child that lived this long has recovered: its next death counts as the first."""
START_ATTEMPTS_MAX = 5
"""How often a child that was never ready is started before the supervisor gives up."""

log = structlog.get_logger()


def restart_wait_s(deaths: int) -> float:
    """How long to wait before starting a child that has died `deaths` times in a row."""
    assert deaths >= 1
    return min(RESTART_WAIT_MIN_S * 2.0 ** min(deaths - 1, 16), RESTART_WAIT_MAX_S)


@dataclass(slots=True)
class Kept:
    """A plan and what has become of it. `was_ready` is set at its first readiness and stays."""

    plan: ChildPlan
    was_ready: asyncio.Event = field(default_factory=asyncio.Event)
    child: Child | None = None
    deaths: int = 0


class Supervisor:
    """Runs children by plan, grouped in the order in which they are stopped.

    `run` returns after every child has ended, and raises CommandFailed when one could not be started at all.
    It is cancelled safely: no child outlives it.
    """

    def __init__(self, groups: Sequence[Sequence[ChildPlan]], settings: Settings, metrics: Path) -> None:
        self._groups = [[Kept(plan) for plan in group] for group in groups]
        self._settings = settings
        self._metrics = metrics
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run now, by the name of their plan."""
        return {one.plan.name: one.child.pid for one in self._all() if one.child is not None}

    async def run(self, *, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Keep the children until `stop` is set; `ready` is called once, when all of them are."""
        keepers = [[asyncio.create_task(self._keep(one)) for one in group] for group in self._groups]
        everyone = [task for group in keepers for task in group]
        stopped = asyncio.create_task(stop.wait())
        all_ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait([stopped, all_ready, *everyone], return_when=asyncio.FIRST_COMPLETED)
            if all_ready.done() and not stop.is_set():
                ready()
                await asyncio.wait([stopped, *everyone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            all_ready.cancel()
            await asyncio.shield(asyncio.create_task(self._stop(keepers)))
        for task in everyone:
            task.result()

    def reload(self) -> None:
        """Ask the services to read again what they read from files beside the data."""
        for one in self._all():
            if one.plan.listener is not None and one.child is not None:
                one.child.reload()

    async def _all_ready(self) -> None:
        for one in self._all():
            await one.was_ready.wait()

    async def _keep(self, one: Kept) -> None:
        """Start a child again and again until the stop. Raises CommandFailed when that is pointless."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            code = await self._live_once(one)
            if self._stopping.is_set():
                return
            one.deaths = one.deaths + 1 if loop.time() - started < STEADY_AFTER_S else 1
            self._judge(one, code)
            wait_s = restart_wait_s(one.deaths)
            log.error("child.died", name=one.plan.name, exit_code=code, restart_in_s=wait_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _live_once(self, one: Kept) -> int:
        child = await Child.start(one.plan, self._settings, self._metrics)
        one.child = child
        try:
            if self._stopping.is_set():
                # The stop came between the decision to start and the start; nobody else knows this child.
                child.terminate()
            if await child.heard_ready():
                log.debug("child.ready", name=one.plan.name, pid=child.pid)
                one.was_ready.set()
            code = await child.ended()
            give_back_metrics_room(self._metrics, child.pid)
            return code
        finally:
            one.child = None
            # Gauges of the living must not include the dead.
            mark_process_dead(child.pid, str(self._metrics))  # type: ignore[no-untyped-call]

    def _judge(self, one: Kept, code: int) -> None:
        if one.was_ready.is_set():
            return
        if code == EXIT_REFUSED:
            raise CommandFailed(f"{one.plan.name} refuses to start on {self._settings.data}; the reason is above")
        if one.deaths >= START_ATTEMPTS_MAX:
            raise CommandFailed(
                f"{one.plan.name} could not be started: it ended {one.deaths} times, the last time with code "
                f"{code}; its messages are above"
            )

    async def _stop(self, keepers: list[list[asyncio.Task[None]]]) -> None:
        self._stopping.set()
        patience_s = self._settings.drain_timeout_ms / 1000 + ORPHAN_GRACE_S
        for group, tasks in zip(self._groups, keepers, strict=True):
            for one in group:
                if one.plan.listener is not None:
                    # From here on the children's copies are the last: who closes one closes the port.
                    one.plan.listener.close()
                if one.child is not None:
                    one.child.terminate()
            if tasks:
                await asyncio.wait(tasks, timeout=patience_s)
            for one in group:
                if one.child is not None:
                    log.warning("child.killed", name=one.plan.name, waited_s=patience_s)
                    one.child.kill()
            if tasks:
                await asyncio.wait(tasks)

    def _all(self) -> list[Kept]:
        return [one for group in self._groups for one in group]
