"""Calls as no client of gRPC makes them: requests that are sent but for their end, by HTTP/2 written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_HEADERS, ACK = 4, 1
INITIAL_WINDOW_SIZE = 4
WINDOW, FRAME = 65_535, 16_384  # the least that both sides may rely on


class HalfRequest:
    """One connection with one call of `path`, whose request has `size` bytes and never comes to its end.

    `sent` tells how many of them the server took.
    """

    def __init__(self, path: str, size: int, metadata: dict[str, str] | None = None) -> None:
        self._size = size
        self._headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
        self._headers |= {"content-type": "application/grpc", "te": "trailers", **(metadata or {})}
        self.sent = 0
        self.refused = False
        self._connection, self._stream, self._initial = WINDOW, WINDOW, WINDOW
        self._room = asyncio.Event()

    async def run(self, address: str) -> None:
        """Send, then wait until the server ends the call or the connection, or this is cancelled."""
        host, _, port = address.rpartition(":")
        reader, self._writer = await asyncio.open_connection(host, int(port))
        try:
            self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS) + self._head())
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send())
                await self._listen(reader)
                sending.cancel()
        except* (ConnectionError, asyncio.IncompleteReadError):
            self.refused = True
        finally:
            self._writer.close()

    def _head(self) -> bytes:
        block = b"".join(b"\0" + literal(name) + literal(value) for name, value in self._headers.items())
        return frame(HEADERS, END_HEADERS, 1, block)

    async def _send(self) -> None:
        message = b"\0" + struct.pack(">I", self._size)  # not compressed
        left = self._size - 1
        while left or message:
            while (room := min(self._connection, self._stream, FRAME)) <= 0:
                self._room.clear()
                await self._room.wait()
            if not message:
                message = bytes(min(left, room))
                left -= len(message)
            part, message = message[:room], message[room:]
            self._writer.write(frame(DATA, 0, 1, part))
            self._connection -= len(part)
            self._stream -= len(part)
            self.sent += len(part)
            await self._writer.drain()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            head = await reader.readexactly(9)
            length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
            stream = int.from_bytes(head[5:])
            payload = await reader.readexactly(length)
            if kind == WINDOW_UPDATE:
                self._widen(stream, int.from_bytes(payload))
            elif kind == SETTINGS and not flags & ACK:
                self._take_settings(payload)
            elif kind == PING and not flags & ACK:
                self._writer.write(frame(PING, ACK, 0, payload))
            elif kind in (HEADERS, RST_STREAM, GOAWAY):  # the answer, which is a refusal
                self.refused = True
                return

    def _widen(self, stream: int, by: int) -> None:
        if stream:
            self._stream += by
        else:
            self._connection += by
        self._room.set()

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._stream += value - self._initial
                self._initial = value
        self._writer.write(frame(SETTINGS, ACK))
        self._room.set()


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def literal(text: str) -> bytes:
    """A short string of RFC 7541, section 5.2, without Huffman's code."""
    data = text.encode()
    assert len(data) < 127
    return bytes((len(data),)) + data


@contextlib.asynccontextmanager
async def half_requests(address: str, count: int, *call: object):
    """So many connections, each with a `HalfRequest(*call)`, until the end of the block."""
    requests = [HalfRequest(*call) for _ in range(count)]
    tasks = [asyncio.create_task(request.run(address)) for request in requests]
    try:
        yield requests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
