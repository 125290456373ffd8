"""`up`, `serve`, `work` and `dev`: the same supervisor with other children and other defaults."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from service.audit import Audit
from service.commands.children import ChildPlan
from service.commands.failure import CommandFailed
from service.commands.leash import stop_at_end_of_input
from service.commands.listeners import Address, bind, resolve_address
from service.commands.rest import DUPLICATE_NAME, Api, ApiRefused
from service.commands.supervise import Supervisor
from service.commands.token import make
from service.commands.welcome import ACCOUNT, welcome, worker_welcome
from service.tls import Certificate, CertificateInvalid, fingerprint
from storage.access import is_locked, open_tokens
from storage.errors import StorageError
from storage.logs import configure_logs
from storage.reserve import make_room_to_start
from storage.runtime import RuntimeFolderInvalid, present, sweep_abandoned
from storage.settings import Settings
from storage.tokens import Grant, Scope
from storage.wanted import WantedIndex, wanted_indexes

SERVICE = ("service", "child")
WORKER = ("worker",)
OWN_TOKEN_MS = 600_000
"""How long the token lives that a supervisor makes for itself, should it die before it can take it back."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Which children a command runs. `service` and `worker` are modules, so that tests can stand in."""

    serves: bool = True
    works: bool = True
    service: tuple[str, ...] = SERVICE
    worker: tuple[str, ...] = WORKER


def run_crew(settings: Settings, crew: Crew, *, teach: bool = False) -> int:
    """Run until SIGTERM or SIGINT, then stop cleanly; returns 0. Raises CommandFailed.

    With `teach`, what is printed when everything is ready includes what to paste and what to try first.
    """
    # Children run in the same folder, but who reads their logs should not have to know that.
    settings = replace(settings, data=settings.data.absolute())
    configure_logs(settings, process="supervisor")
    return asyncio.run(_until_stopped(settings, crew, teach=teach))


async def _until_stopped(settings: Settings, crew: Crew, *, teach: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.stop_with_input:
        stop_at_end_of_input(stop)
    reload = asyncio.Event()
    if settings.tls_certificate or settings.audit_file:
        # Only where there is something to read again: without, a terminal that is closed ends us by this signal.
        loop.add_signal_handler(signal.SIGHUP, reload.set)

    def announce(address: Address | None) -> None:
        if address is None:
            text = worker_welcome(settings)
        else:
            needs_token = bool(settings.token) or is_locked(settings)
            text = welcome(settings, address, teach=teach, needs_token=needs_token)
        with contextlib.suppress(OSError):  # On a full disk, perhaps; nobody needs it to be served.
            sys.stdout.write(text)
            sys.stdout.flush()

    await run_until(settings, crew, stop=stop, reload=reload, ready=announce)
    log.info("supervisor.stopped")
    return 0


async def run_until(
    settings: Settings,
    crew: Crew,
    *,
    stop: asyncio.Event,
    ready: Callable[[Address | None], None],
    reload: asyncio.Event | None = None,
) -> None:
    """Run the children until `stop` is set, and let them read files again when `reload` is. Raises CommandFailed.

    `ready` is called once, with where the services listen (None without any), when every child is ready and
    the wanted indexes are made.
    """
    with _prepared(settings) as metrics:
        await _run_prepared(settings, crew, metrics, stop=stop, ready=ready, reload=reload or asyncio.Event())


async def _run_prepared(
    settings: Settings,
    crew: Crew,
    metrics: Path,
    *,
    stop: asyncio.Event,
    ready: Callable[[Address | None], None],
    reload: asyncio.Event,
) -> None:
    address, listeners = _listen(settings) if crew.serves else (None, ())
    supervisor = Supervisor(_plans(crew, listeners), settings, metrics)
    settled = asyncio.Event()
    running = asyncio.create_task(supervisor.run(ready=settled.set, stop=stop))
    reloading = asyncio.create_task(_reload(supervisor, reload))
    preparing = asyncio.create_task(_announce(settings, address, settled, ready))
    try:
        await asyncio.wait([running, preparing], return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            preparing.result()
        await asyncio.shield(running)
    finally:
        stop.set()
        preparing.cancel()
        reloading.cancel()
        await asyncio.wait([running, preparing, reloading])
        for listener in listeners:
            listener.close()


async def _reload(supervisor: Supervisor, asked: asyncio.Event) -> None:
    while await asked.wait():
        asked.clear()
        supervisor.reload()


async def _announce(
    settings: Settings,
    address: Address | None,
    settled: asyncio.Event,
    ready: Callable[[Address | None], None],
) -> None:
    await settled.wait()
    wanted = wanted_indexes(settings.create_indexes)
    if address is not None and wanted:
        async with _own_token(settings) as token:
            own = fingerprint(settings.tls_certificate) if settings.tls_certificate else b""
            await create_indexes(address.url(), token, wanted, fingerprint=own)
    ready(address)


@asynccontextmanager
async def _own_token(settings: Settings) -> AsyncIterator[str]:
    """What the supervisor's own requests show: the configured token, else one made for them where one is needed."""
    if settings.token or not is_locked(settings):
        yield settings.token
        return
    now_ms = time.time_ns() // 1_000_000
    grants = (Grant(Scope.ADMIN, ACCOUNT),)
    made = make(name="supervisor", grants=grants, now_ms=now_ms, expires_ms=now_ms + OWN_TOKEN_MS)
    editor = await open_tokens(settings)
    try:
        try:
            await editor.add(made.token)
            yield made.text
        finally:
            await editor.remove(made.token.id)
    finally:
        await editor.close()


async def create_indexes(url: str, token: str, wanted: Sequence[WantedIndex], *, fingerprint: bytes = b"") -> None:
    """Make the indexes that are not there yet. One that exists is left as it is, whatever it is."""
    if not wanted:
        return
    async with Api(url, ACCOUNT, token, fingerprint=fingerprint) as api:
        for one in wanted:
            config = {"preset": one.preset} if one.preset else {"dimensions": one.dimensions, "metric": one.metric}
            try:
                await api.post("", {"name": one.name, "config": config})
            except ApiRefused as refused:
                if refused.code != DUPLICATE_NAME:
                    raise
            else:
                log.info("index.created", name=one.name, account=ACCOUNT)


@contextlib.contextmanager
def _prepared(settings: Settings) -> Iterator[Path]:
    """The folders that are needed, for the block; gives the one for metrics. Raises CommandFailed."""
    with contextlib.ExitStack() as stack:
        try:
            settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            make_room_to_start(settings.data)  # Temporary files are often on the same disk.
            metrics = stack.enter_context(present(settings.data))
            swept = sweep_abandoned(settings.data)
            if swept:
                log.info("runtime.swept", folders=swept)
            _check_files(settings)
        except RuntimeFolderInvalid as error:
            raise CommandFailed(str(error)) from error
        except OSError as error:
            raise CommandFailed(
                f"the data folder {settings.data} cannot be used ({error.strerror}); choose another with --data"
            ) from error
        yield metrics


def _check_files(settings: Settings) -> None:
    """Say at the start, and here, what would otherwise keep every service from starting."""
    try:
        if settings.tls_certificate:
            Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        Audit(settings.audit_file).close()
    except CertificateInvalid as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"the audit file {settings.audit_file} cannot be written ({error.strerror})") from error
    if settings.tls_key and not settings.tls_certificate:
        raise CommandFailed("tls_key is set and tls_certificate is not; set both, or neither")
    if settings.tls_client_ca and not settings.tls_certificate:
        raise CommandFailed("tls_client_ca is set and tls_certificate is not; clients are asked for theirs in TLS only")
    if settings.tls_client_ca and settings.create_indexes:
        raise CommandFailed(
            "create_indexes is a request of Headrace to itself, and it has no certificate that tls_client_ca vouches "
            "for; leave one of them out, and make the indexes from a client"
        )


def _listen(settings: Settings) -> tuple[Address, tuple[socket.socket, ...]]:
    try:
        locked = is_locked(settings)
    except StorageError as error:
        raise CommandFailed(str(error)) from error
    return bind(resolve_address(settings, is_locked=locked), settings.processes)


def _plans(crew: Crew, listeners: Sequence[socket.socket]) -> list[list[ChildPlan]]:
    """The children in the order of stopping: services, then the worker."""
    services = [
        ChildPlan(name=f"service-{number}", module=crew.service, listener=listener)
        for number, listener in enumerate(listeners, start=1)
    ]
    workers = [ChildPlan(name="worker", module=crew.worker)] if crew.works else []
    return [services, workers]
