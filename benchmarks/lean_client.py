"""Calls gRPC methods at little cost, so that load leaves the cores to the server: writes HTTP/2 frames and reads of the
answers how they ended; knows no service and no time.

Only for servers that are trusted: it takes no notice of a server's flow control, which small requests never reach, and
asks servers to compress no headers (RFC 9113, RFC 7541; "gRPC over HTTP2" for the rest).
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections import deque
from collections.abc import Callable

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW = 1, 3, 4  # settings
_TRUE_BINARY = 0xFE03  # gRPC's own: fields whose name ends in "-bin" come as they are, after a zero
_MOST = 2**31 - 1
_POST, _HTTP, _PATH, _AUTHORITY, _CONTENT_TYPE = 0x83, 0x86, 4, 1, 31  # in HPACK's static table
_CANCEL = 8

Ended = Callable[[dict[bytes, bytes]], None]  # is given the trailers: `grpc-status` and what came with it
Answered = Callable[[bytes], None]  # is given a message


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _message(data: bytes) -> bytes:
    """The message as gRPC frames it: not compressed, and its length."""
    return struct.pack(">BI", 0, len(data)) + data


class LeanConnection(asyncio.Protocol):
    """One connection, made by `connect`. Calls beyond those that the server lets run at once wait here."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._next, self._taken = 1, 0
        self._room = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._running: dict[int, tuple[Ended, Answered | None]] = {}
        self._parts: dict[int, bytes] = {}  # of messages that have not come whole, by stream
        self._held: list[bytes] | None = None  # what is written after the first in one pass of the loop
        self._loop = asyncio.get_running_loop()
        self._settled = self._loop.create_future()

    @classmethod
    async def connect(cls, address: str) -> LeanConnection:
        """A connection to HOST:PORT that is ready."""
        host, _, port = address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        await connection._settled
        return connection

    def close(self) -> None:
        """What runs ends as UNAVAILABLE."""
        if self._transport is not None:
            self._transport.close()

    def start(self, head: bytes, message: bytes | None, ended: Ended, answered: Answered | None = None) -> list[int]:
        """Begin a call with the header block of `headers`, and end its requests after `message` if there is one.

        The list is given its stream when it has begun. `answered` is told each message of a stream of answers.
        """
        given: list[int] = []

        def begin() -> None:
            stream, self._next = self._next, self._next + 2
            given.append(stream)
            self._running[stream] = ended, answered
            data = _frame(_HEADERS, _END_HEADERS, stream, head)
            if message is not None:
                data += _frame(_DATA, _END_STREAM, stream, _message(message))
            self._write(data)

        if len(self._running) < self._room:
            begin()
        else:
            self._waiting.append(begin)
        return given

    def send(self, stream: int, message: bytes) -> None:
        """A further request of a call that takes several."""
        self._write(_frame(_DATA, 0, stream, _message(message)))

    def finish(self, stream: int) -> None:
        """No further request comes."""
        self._write(_frame(_DATA, _END_STREAM, stream))

    def cancel(self, stream: int) -> None:
        """Give a call up; nothing is told of its end."""
        if self._running.pop(stream, None) is not None:
            self._write(_frame(_RESET, 0, stream, struct.pack(">I", _CANCEL)))
            self._parts.pop(stream, None)
            self._begin_others()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HIHIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, _MOST, _TRUE_BINARY, 1)
        window = _frame(_WINDOW, 0, 0, struct.pack(">I", _MOST - 65_535))
        self._write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + window)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        for ended, _ in self._running.values():
            ended({b"grpc-status": b"14"})
        self._running.clear()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= 9:
            word, flags, stream = struct.unpack_from(">IBI", data, at)
            after = at + 9 + (word >> 8)
            if after > end:
                break
            self._take(word & 0xFF, flags, stream, data[at + 9 : after])
            at = after
        self._rest = data[at:]
        if self._taken > 1 << 28:  # half of the window: give it back
            self._write(_frame(_WINDOW, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._taken += len(payload)
            call = self._running.get(stream)
            if call is not None and call[1] is not None:
                self._messages(stream, payload, call[1])
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end(stream, _literals(payload))
        elif kind == _RESET:
            self._end(stream, {b"grpc-status": b"14", b"reset": payload})
        elif kind == _SETTINGS and not flags & _ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            self._room = settings.get(_MAX_STREAMS, self._room or _MOST)
            self._write(_frame(_SETTINGS, _ACK, 0))
            if not self._settled.done():
                self._settled.set_result(None)
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._room = 0

    def _messages(self, stream: int, data: bytes, answered: Answered) -> None:
        data = self._parts.pop(stream, b"") + data
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5])):
            answered(data[5:end])
            data = data[end:]
        if data:
            self._parts[stream] = data

    def _end(self, stream: int, trailers: dict[bytes, bytes]) -> None:
        call = self._running.pop(stream, None)
        self._parts.pop(stream, None)
        if call is not None:
            call[0](trailers)
            self._begin_others()

    def _begin_others(self) -> None:
        while self._waiting and len(self._running) < self._room:
            self._waiting.popleft()()

    def _write(self, data: bytes) -> None:
        """At once, or together with the rest of what this pass of the loop writes: each time is a system call."""
        if self._held is not None:
            self._held.append(data)
        elif self._transport is not None:
            self._transport.write(data)
            self._held = []
            self._loop.call_soon(self._write_held)

    def _write_held(self) -> None:
        held, self._held = self._held, None
        if held and self._transport is not None:
            self._transport.write(b"".join(held))


def headers(method: str, seconds: float | None = None) -> bytes:
    """The header block of a call of `method`, "/package.Service/Method", with that deadline."""
    named = {b"te": b"trailers"}
    if seconds is not None:
        named[b"grpc-timeout"] = b"%dm" % round(1_000 * seconds)
    block = bytes((_POST, _HTTP))
    for place, value in ((_PATH, method.encode()), (_AUTHORITY, b"localhost"), (_CONTENT_TYPE, b"application/grpc")):
        block += bytes((place,) if place < 15 else (15, place - 15)) + _text(value)
    return block + b"".join(b"\0" + _text(name) + _text(value) for name, value in named.items())


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value


@functools.lru_cache(1_024)  # where calls are refused in masses, it is with the same few
def _literals(block: bytes) -> dict[bytes, bytes]:
    """The named fields of a header block without indexes of a table of its own, as servers write them to us."""
    fields, at = {}, 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # a whole field of the static table: `:status`
            _, at = _number(block, at, 7)
            continue
        bits = 6 if first & 0x40 else 5 if first & 0x20 else 4
        place, at = _number(block, at, bits)
        if first & 0xE0 == 0x20:  # the table's size
            continue
        name = b""
        if not place:
            name, at = _string(block, at)
        value, at = _string(block, at)
        fields[name] = value
    return fields


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    shift = 0
    while value >= most:
        value, shift, more, at = value + ((block[at] & 0x7F) << shift), shift + 7, block[at] & 0x80, at + 1
        if not more:
            break
    return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    packed = block[at] & 0x80
    length, at = _number(block, at, 7)
    value = block[at : at + length]
    return (b"huffman:" + value if packed else value), at + length
