"""The supervisor, with children that each live one kind of life (`child_double`)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.commands import listeners
from service.commands.children import PACKAGES
from service.commands.failure import EXIT_PORT_TAKEN, EXIT_USAGE, CommandFailed
from service.commands.listeners import Address, bind, resolve_address
from service.commands.supervise import RESTART_WAIT_MAX_S, restart_wait_s
from service.commands.up import Crew, run_until
from storage.settings import Settings

DOUBLE = "tests.service.child_double"
PATIENCE_S = 30
"""How long a test waits for an event before it fails; nothing is measured with it."""


def crew(*, service: str = "serve", worker: str = "work", serves: bool = True, works: bool = True) -> Crew:
    return Crew(serves=serves, works=works, service=(DOUBLE, service), worker=(DOUBLE, worker))


def settings(data: Path, *, processes: int = 1, drain_timeout_ms: int = 20_000) -> Settings:
    return Settings(data=data, port=0, processes=processes, drain_timeout_ms=drain_timeout_ms)


@asynccontextmanager
async def running(told: Settings, who: Crew) -> AsyncIterator[str]:
    """A supervisor that is ready, in this process; its URL (empty without services)."""
    stop = asyncio.Event()
    ready: asyncio.Future[Address | None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_until(told, who, stop=stop, ready=ready.set_result))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            address = await ready
        yield address.url() if address else ""
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task


def served_by(url: str) -> int:
    """The number of the process that answers."""
    import json

    with urllib.request.urlopen(f"{url}/", timeout=PATIENCE_S) as response:
        return int(json.load(response)["result"]["pid"])


async def eventually(holds: Callable[[], bool]) -> None:
    """Come back when it holds; children tell us things only through files, sockets and their end."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (other processes cannot set our events)
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_everything_is_served_until_the_stop_and_nothing_after(tmp_path: Path) -> None:
    async with running(settings(tmp_path, processes=2), crew()) as url:
        pid = await asyncio.to_thread(served_by, url)
        worker = int((tmp_path / "worker.started").read_text().split()[0])
        assert is_alive(pid)
        assert is_alive(worker)

    assert not is_alive(pid)
    assert not is_alive(worker)
    assert (tmp_path / "worker.stopped").exists()
    assert is_free(int(url.rpartition(":")[2]))


async def test_children_share_one_metrics_folder(tmp_path: Path) -> None:
    async with running(settings(tmp_path), crew(serves=False)):
        _, folder = (tmp_path / "worker.started").read_text().split()
        assert Path(folder).name == "metrics"
        assert Path(folder).is_dir()

    assert not Path(folder).parent.exists()


async def test_a_killed_service_comes_back_on_its_port(tmp_path: Path) -> None:
    async with running(settings(tmp_path), crew(works=False)) as url:
        first = await asyncio.to_thread(served_by, url)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not is_alive(first))

        # The supervisor keeps the socket: the request waits for the new child instead of being refused.
        second = await asyncio.to_thread(served_by, url)

    assert second != first


async def test_a_child_that_dies_after_it_was_ready_is_started_again(tmp_path: Path) -> None:
    async with running(settings(tmp_path), crew(worker="crash-once", serves=False)):
        await eventually((tmp_path / "came.back").exists)


async def test_a_child_that_can_never_be_ready_ends_the_supervisor(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="worker could not be started: it ended 5 times"):
        async with running(settings(tmp_path), crew(worker="die")):
            pytest.fail("it must not become ready")

    assert (tmp_path / "deaths").read_text() == "xxxxx"


async def test_a_child_that_refuses_the_data_is_not_started_twice(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="worker refuses to start on"):
        async with running(settings(tmp_path), crew(worker="refuse")):
            pytest.fail("it must not become ready")

    assert (tmp_path / "deaths").read_text() == "x"


async def test_a_child_that_does_not_stop_is_killed_after_its_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.supervise.ORPHAN_GRACE_S", 0)

    async with running(settings(tmp_path, drain_timeout_ms=50), crew(worker="hang", serves=False)):
        pass


async def test_children_of_a_killed_supervisor_stop_and_free_the_port(tmp_path: Path) -> None:
    process = await start_supervisor(tmp_path)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            url = (await process.stdout.readline()).decode().split()[4]
        pid = await asyncio.to_thread(served_by, url)
        worker = int((tmp_path / "worker.started").read_text().split()[0])
    finally:
        process.kill()
    await process.wait()

    await eventually(lambda: not is_alive(pid) and not is_alive(worker))
    assert is_free(int(url.rpartition(":")[2]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_everything_with_exit_code_zero(tmp_path: Path, number: signal.Signals) -> None:
    process = await start_supervisor(tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        line = (await process.stdout.readline()).decode()
        process.send_signal(number)
        code = await process.wait()

    assert "listens on http://127.0.0.1:" in line
    assert code == 0
    assert (tmp_path / "worker.stopped").exists()


async def start_supervisor(data: Path) -> asyncio.subprocess.Process:
    code = (
        "import sys; from pathlib import Path; from service.commands.up import Crew, run_crew;"
        "from storage.settings import Settings;"
        f"crew = Crew(service=({DOUBLE!r}, 'serve'), worker=({DOUBLE!r}, 'work'));"
        "sys.exit(run_crew(Settings(data=Path(sys.argv[1]), port=0), crew))"
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        code,
        str(data),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(PACKAGES)},
    )


def test_the_wait_before_a_restart_doubles_up_to_a_bound() -> None:
    waits = [restart_wait_s(deaths) for deaths in range(1, 100)]

    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits == sorted(waits)
    assert waits[-1] == RESTART_WAIT_MAX_S


@pytest.mark.parametrize("count", [1, 3])
def test_a_taken_port_is_named_and_has_its_own_exit_code(count: int) -> None:
    with socket.socket() as other:
        # Even a program that would share its port does not get to share with us.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(CommandFailed, match=rf"port {port} .* taken") as refused:
            bind(Address(family=socket.AF_INET, host="127.0.0.1", port=port), count)

    assert refused.value.exit_code == EXIT_PORT_TAKEN


def test_a_port_that_a_predecessor_gives_up_is_waited_for() -> None:
    with socket.socket() as predecessor:
        predecessor.bind(("127.0.0.1", 0))
        predecessor.listen()
        port = predecessor.getsockname()[1]

        def ends(_: float) -> None:
            predecessor.close()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(listeners.time, "sleep", ends)
            address, [listener] = bind(Address(family=socket.AF_INET, host="127.0.0.1", port=port), 1)
        listener.close()

    assert address.port == port


def test_several_sockets_share_the_port_that_was_found() -> None:
    address, listeners = bind(Address(family=socket.AF_INET, host="127.0.0.1", port=0), 3)

    assert address.port != 0
    assert {listener.getsockname()[1] for listener in listeners} == {address.port}
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_open_address_needs_a_token_or_a_word(host: str) -> None:
    with pytest.raises(CommandFailed, match=r"HEADRACE_TOKEN.*--insecure") as refused:
        resolve_address(Settings(host=host))

    assert refused.value.exit_code == EXIT_USAGE
    assert not resolve_address(Settings(host=host, token="secret")).is_loopback
    assert not resolve_address(Settings(host=host, insecure=True)).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_neither(host: str) -> None:
    assert resolve_address(Settings(host=host)).is_loopback


@pytest.mark.parametrize(
    ("family", "host", "url"),
    [
        (socket.AF_INET, "127.0.0.1", "http://127.0.0.1:80"),
        (socket.AF_INET, "0.0.0.0", "http://127.0.0.1:80"),
        (socket.AF_INET6, "::1", "http://[::1]:80"),
        (socket.AF_INET6, "::", "http://[::1]:80"),
    ],
)
def test_the_url_is_one_a_client_here_can_use(family: socket.AddressFamily, host: str, url: str) -> None:
    assert Address(family=family, host=host, port=80).url() == url
