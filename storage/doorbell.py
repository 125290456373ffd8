"""Doorbells between the processes on one data folder: datagrams on UNIX sockets that name an index.

A ring is a hint. The kernel drops datagrams when a queue is full (ten of them on some machines), a process may be
starting, and nothing is stored; so whoever waits for a ring also looks by itself now and then. A ring that did not
fit is repeated shortly afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from storage.records import IndexId

DATAGRAM_BYTES_MAX = 64
RETRY_S = 0.02
PEERS_REFRESH_S = 1.0


class Side(StrEnum):
    """Who listens: the spelling is part of the socket's name."""

    SERVICE = "service"
    WORKER = "worker"

    @property
    def other(self) -> Side:
        """Whom this side rings for."""
        return Side.WORKER if self is Side.SERVICE else Side.SERVICE


class Doorbell:
    """One process's bell, and the bells of all processes on the other side."""

    def __init__(self, folder: Path, side: Side, heard: Callable[[IndexId], None]) -> None:
        self._folder = folder
        self._side = side
        self._heard = heard
        self._path = folder / f"{side}-{os.getpid()}-{secrets.token_hex(3)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # Not inheritable, as all Python's are.
        self._socket.setblocking(False)
        self._unheard: set[IndexId] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._peers: tuple[Path, ...] = ()
        self._peers_at = -PEERS_REFRESH_S

    def open(self) -> None:
        """Be reachable, and call `heard` for every ring from now on."""
        self._socket.bind(str(self._path))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def ring(self, index: IndexId) -> None:
        """Tell every process on the other side that something happened to an index. Never blocks, never fails."""
        message = index.encode()
        # Every peer is rung for, whether or not an earlier one had room.
        missed = [peer for peer in self._others() if not self._send(peer, message)]
        if missed:
            self._unheard.add(index)
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._ring_again)

    def _ring_again(self) -> None:
        self._retry = None
        unheard, self._unheard = self._unheard, set()
        for index in unheard:
            self.ring(index)

    def _others(self) -> tuple[Path, ...]:
        now = asyncio.get_running_loop().time()
        if now - self._peers_at > PEERS_REFRESH_S or not self._peers:
            # Without a descriptor to look with, those that were there are rung for; later there may be one.
            with contextlib.suppress(OSError):
                self._peers = tuple(self._folder.glob(f"{self._side.other}-*.sock"))
                self._peers_at = now
        return self._peers

    def _send(self, peer: Path, message: bytes) -> bool:
        """Whether the peer was told, is gone, or will never hear; False when there was no room."""
        try:
            self._socket.sendto(message, str(peer))
        except BlockingIOError:
            return False
        except (ConnectionRefusedError, FileNotFoundError):
            # The process died without taking its bell down.
            peer.unlink(missing_ok=True)
            self._peers = ()
        except OSError as error:
            # What has no room now may have some later; what is forbidden stays so, and whoever waits looks by itself.
            return error.errno not in (errno.ENOBUFS, errno.ENOMEM)
        return True

    def _read(self) -> None:
        rung: set[IndexId] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                rung.add(IndexId(self._socket.recv(DATAGRAM_BYTES_MAX).decode("ascii", "replace")))
        for index in rung:
            self._heard(index)

    def close(self) -> None:
        """Be reachable no longer. Safe twice."""
        if self._socket.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
