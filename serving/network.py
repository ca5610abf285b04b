"""Network addresses: which are this machine's own, and which belong to one caller; knows no connection."""

from __future__ import annotations

import ipaddress

from data.errors import UserError


def split_address(address: str, flag: str, example: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; `UserError` names the `flag`."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and port.isascii() and int(port) < 65_536):
        raise UserError("an address HOST:PORT", repr(address), f"name one such as {flag} {example}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach `host`; a name other than localhost may mean any address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def limited_network(peer: str) -> str:
    """What stands for one caller: an IPv4 address, or the /64 that one IPv6 customer has to himself."""
    if ":" not in peer:
        return peer
    try:
        address = ipaddress.IPv6Address(peer.partition("%")[0])
    except ValueError:
        return peer
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
