"""A process that decodes images which nobody trusts, with little to harm: no files, no network, no further process, an
end to memory and to time. `isolated_decoding` starts it and knows what it answers.

It reads from standard input, a socket: two lengths, what is wanted as JSON, the encoded image. Wanted is a
preprocessing, or `{"thumbnail": [side, quality]}`. It answers with a kind, a length, and pixels (S, S, 3) uint8 or a
WebP, or why there is none as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from functools import lru_cache

from PIL import Image

from data.errors import ImageError
from data.images import FORMATS, ImagePreprocessing, load_resized
from data.thumbnails import thumbnail

REQUEST, ANSWER = struct.Struct("<II"), struct.Struct("<BI")
READY, PIXELS, REFUSED, THUMBNAIL = 0, 1, 2, 3

# Decoding an image of as many pixels as are allowed, with alpha, takes about 0.9 GB.
MEMORY_BYTES = 2 << 30
CPU_SECONDS = 20

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000


def main() -> None:
    """Serve the socket on standard input until it closes."""
    connection = socket.socket(fileno=0)
    _load_decoders()
    lower_privileges(int(sys.argv[1]))
    with contextlib.suppress(ConnectionError):  # the server has ended without a word
        connection.sendall(ANSWER.pack(READY, 0))
        while head := _read(connection, REQUEST.size):
            settings_size, size = REQUEST.unpack(head)
            settings, data = _read(connection, settings_size), _read(connection, size)
            kind, answer = _decoded(bytes(data), bytes(settings))
            connection.sendall(ANSWER.pack(kind, len(answer)))
            connection.sendall(answer)


def _load_decoders() -> None:
    """Let Pillow import all that it imports at the first image of a format; later it could not."""
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (2, 2)).save(file, name)
        load_resized(file.getvalue(), ImagePreprocessing(size=2))


def lower_privileges(parent: int) -> None:
    """Give up what decoding does not need; what this machine does not let a process give up, it keeps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends this process
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # of another system than Linux
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    if os.getppid() != parent:  # it ended before it could be followed
        os._exit(0)
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),  # those that are open stay
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


@lru_cache(maxsize=8)
def _wanted(settings: bytes) -> ImagePreprocessing | list[int]:
    config = json.loads(settings)
    return config["thumbnail"] if "thumbnail" in config else ImagePreprocessing.from_config(config)


def _decoded(data: bytes, settings: bytes) -> tuple[int, bytes]:
    """The kind and content of an answer."""
    used = math.ceil(time_used())
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, most))  # past it, the system ends the process
    try:
        wanted = _wanted(settings)
        if isinstance(wanted, ImagePreprocessing):
            return PIXELS, load_resized(data, wanted).tobytes()
        return THUMBNAIL, thumbnail(data, *wanted)
    except ImageError as error:
        told = [error.reason, error.expected, error.received, error.next_step]
    except MemoryError:
        told = ["too_large", "an image that decodes in the memory there is", "a larger one", "send a smaller copy"]
    return REFUSED, json.dumps(told).encode()


def time_used() -> float:
    """Seconds of processor time so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _read(connection: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes; none when the other end has closed."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = connection.recv_into(view[at:])
        if not count:
            return bytearray()
        at += count
    return data


if __name__ == "__main__":
    main()
