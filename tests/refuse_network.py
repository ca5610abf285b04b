"""Installed as `sitecustomize` in a process under test: whatever is not this machine cannot be reached, and is noted.

An audit hook refuses addresses and look-ups that come from Python and writes each to the file `REFUSED_CONNECTIONS`.
With `OWN_NETWORK=1` the process also moves, where the system lets it, to a network of its own that has a loopback and
nothing else, which holds for native code too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
SET_FLAGS, UP_AND_RUNNING = 0x8914, 0x41  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def is_this_machine(host: object) -> bool:
    """Whether an address or a name means the loopback, or every interface of this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: see https://docs.python.org/3/library/audit_events.html for the events."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple) or is_this_machine(address[0]):  # a path names a socket of this machine
            return
        what = str(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if is_this_machine(arguments[0]):
            return
        what = str(arguments[0])
    else:
        return
    with Path(os.environ["REFUSED_CONNECTIONS"]).open("a") as record:
        record.write(f"{event} {what} by {sys.orig_argv!r}\n")
    raise ConnectionRefusedError(f"{event}: {what} is not this machine")


def move_to_own_network() -> None:
    """Leave this machine's network for an empty one; OSError where that is not permitted."""
    user, group = os.geteuid(), os.getegid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(NEW_NETWORK if user == 0 else NEW_USER | NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP_AND_RUNNING))


sys.addaudithook(refuse)
if os.environ.pop("OWN_NETWORK", ""):  # its children stay in the same network
    with contextlib.suppress(OSError):
        move_to_own_network()
