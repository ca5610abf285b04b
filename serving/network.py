"""Network addresses: their parts, which are this machine's own, and which belong to one caller; knows no connection."""

from __future__ import annotations

import ipaddress

from data.errors import UserError

_LONGEST_PORT = len("65535")


def host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of HOST:PORT, where an IPv6 address stands in brackets and is given without; None for anything else."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and len(port) <= _LONGEST_PORT and int(port) < 65_536):
        return None
    host = _host(host)
    return (host, int(port)) if host else None


def split_address(address: str, flag: str, example: str) -> tuple[str, int]:
    """As `host_and_port`; `UserError` names the `flag`."""
    found = host_and_port(address)
    if found is None:
        expected = "an address HOST:PORT, an IPv6 address in brackets"
        raise UserError(expected, repr(address), f"name one such as {flag} {example}")
    return found


def join_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(authority: str) -> str:
    """The host of HOST or HOST:PORT as HTTP names whom a request is for; empty when it is neither."""
    found = host_and_port(authority)
    return _host(authority.removesuffix(":")) if found is None else found[0]


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach `host`; a name other than localhost may mean any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
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


def _host(text: str) -> str:
    """A name, an IPv4 address, or an IPv6 address that stood in brackets; empty for anything else."""
    if not text.startswith("["):
        return "" if ":" in text or "]" in text else text
    inside = text[1:-1]
    try:
        ipaddress.IPv6Address(inside)
    except ValueError:
        return ""
    return inside if text.endswith("]") else ""
