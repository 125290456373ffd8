"""The listening sockets: bound once by the supervisor, kept while children come and go.

Several service processes get a socket each on one port, and the kernel spreads connections over them. The
supervisor keeps them all open, so a connection that arrives while a child is being restarted waits instead of
being refused.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from dataclasses import dataclass, replace

from service.commands.failure import EXIT_PORT_TAKEN, EXIT_USAGE, CommandFailed
from storage.settings import Settings

BACKLOG = 1024
PREDECESSOR_S = 2.0
"""How long a port that is taken is tried again: the children of a `headrace up` that was killed have it until they
notice, and who starts it again at once is not to be told of another program."""
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, after the name is resolved."""

    family: socket.AddressFamily
    host: str
    port: int
    is_secure: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback

    def url(self) -> str:
        """How a client on this machine spells it."""
        host = self.host
        if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
            host = "127.0.0.1" if self.family == socket.AF_INET else "::1"
        scheme = "https" if self.is_secure else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"


def resolve_address(settings: Settings, *, is_locked: bool = False) -> Address:
    """The address of `host` and `port`. Raises CommandFailed for a name that is none, and for an open door.

    An address beyond loopback without a token would let the whole network read and delete everything. `is_locked` says
    that the data has tokens.
    """
    host = settings.host or "0.0.0.0"  # noqa: S104 (an empty host means every address, and is refused below)
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise CommandFailed(
            f"cannot listen on {host!r}: it is no address here ({error.strerror}); try --host 127.0.0.1",
            exit_code=EXIT_USAGE,
        ) from error
    # Of a name with both kinds of address, the first kind: clients that are given 127.0.0.1 must find us.
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    is_secure = bool(settings.tls_certificate)
    address = Address(family=family, host=str(where[0]), port=settings.port, is_secure=is_secure)
    if not address.is_loopback and not (settings.token or is_locked or settings.insecure):
        raise CommandFailed(
            f"refusing to listen on {host} without a token: everybody who reaches this machine could "
            "read and delete everything. Make one with `headrace token create`, set one with HEADRACE_TOKEN, "
            "listen on 127.0.0.1, or pass --insecure if a firewall or proxy keeps others out",
            exit_code=EXIT_USAGE,
        )
    return address


def bind(address: Address, count: int) -> tuple[Address, tuple[socket.socket, ...]]:
    """`count` listening sockets on one port, and the address with the real port. Raises CommandFailed.

    A port that is taken is waited for, `PREDECESSOR_S` at most.
    """
    try:
        first = _first_listener(address)
    except OSError as error:
        raise _refusal(address, error) from error
    real = replace(address, port=first.getsockname()[1])
    if count == 1:
        return real, (first,)
    # A socket that shares its port can be bound beside any other of this user that shares it: a second server
    # would start and take half of the connections. The first, unshared one has just proved that the port is
    # free.
    first.close()
    try:
        return real, tuple(_listener(real, shared=True) for _ in range(count))
    except OSError as error:
        raise _refusal(real, error) from error


def _first_listener(address: Address) -> socket.socket:
    give_up_at = time.monotonic() + PREDECESSOR_S
    while True:
        try:
            return _listener(address, shared=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= give_up_at:
                raise
        time.sleep(PAUSE_S)


def _listener(address: Address, *, shared: bool) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal(address: Address, error: OSError) -> CommandFailed:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EADDRINUSE:
        return CommandFailed(
            f"port {address.port} on {address.host} is taken by another program (another headrace?); stop "
            "it, or choose another with --port (--port 0 takes any free one)",
            exit_code=EXIT_PORT_TAKEN,
        )
    return CommandFailed(
        f"cannot listen on {address.host} port {address.port}: {reason}; try another --host or --port",
        exit_code=EXIT_PORT_TAKEN,
    )
