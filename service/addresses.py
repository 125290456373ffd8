"""Whom an address stands for, where clients are counted."""

from __future__ import annotations

import socket

_MAPPED = bytes(10) + b"\xff\xff"
"""How an IPv6 address begins that is one of IPv4."""


def address_key(address: str) -> str:
    """The address itself; of IPv6 the first 64 bits, because one client has all addresses that begin with them."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
