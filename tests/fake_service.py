"""A gRPC server in a thread whose methods a test writes, for what a real server does only when it is unwell."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc


@contextlib.contextmanager
def answering(
    services: list[tuple[Callable[[Any, Any], None], object]], credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serve `(add_XServicer_to_server, servicer)` pairs on a free port of this machine, and give the address."""
    started: list[Any] = []
    ready = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        for add, servicer in services:
            add(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        stop = asyncio.Event()
        started.extend([port, asyncio.get_running_loop(), stop])
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    port, loop, stop = started
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
