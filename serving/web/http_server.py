"""Runs the gateway on a port, in the event loop of the gRPC server; knows no route."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from data.durable import cache_directory
from data.errors import UserError
from serving.call_guard import CallGuard
from serving.isolated_decoding import IsolatedDecoder
from serving.network import join_address, split_address
from serving.web.gateway import Gateway
from serving.web.http_settings import HttpSettings
from serving.web.pictures import Pictures
from serving.web.thumbnail_cache import ThumbnailCache

HEAD_SECONDS = 15.0  # for the line and the headers of a request to come
MAX_CONNECTIONS = 1_024


@contextlib.asynccontextmanager
async def http_server(
    settings: HttpSettings, guard: CallGuard, grace: float, decoder: IsolatedDecoder | None = None
) -> AsyncIterator[str]:
    """Serve until the end of the block, then let running calls have `grace` seconds; gives the page's address.

    `decoder` makes thumbnails in processes of its own, where there is one.

    `UserError` when the address cannot be used.
    """
    listening = _listen(settings.address)
    pictures = Pictures(ThumbnailCache(cache_directory("thumbnails"), settings.thumbnail_bytes), decoder)
    config = uvicorn.Config(
        Gateway(guard, pictures, settings.origins, settings.hosts).app,
        http=_PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve([listening]))
    host, port = listening.getsockname()[:2]
    try:
        yield f"http://{join_address(host, port)}"
    finally:
        server.should_exit = True
        await serving
        pictures.close()


class _Server(uvicorn.Server):
    """Leaves signals to the process, which stops gRPC too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _PatientProtocol(H11Protocol):
    """Closes connections on which no whole head of a request came in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and self.conn.their_state is h11.IDLE:  # a further request begins
            self._expect_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _listen(address: str) -> socket.socket:
    """A bound socket; the system chooses the port when it is 0."""
    host, port = split_address(address, "--http-address", "127.0.0.1:8080")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen()  # from here on calls wait for the loop to take them
        except OSError:
            listening.close()
            raise
    except OSError:
        raise UserError(
            "an address of this machine that is free",
            f"{address}, which cannot be opened",
            "stop the program that uses it, or choose another --http-address (port 0 takes any free one)",
        ) from None
    return listening
