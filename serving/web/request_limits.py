"""How much a request may hold and how long it may take to come and to go; a layer around an ASGI application."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.overload import Overloaded
from serving.web.problems import HttpRefusal, problem_of

# An image of 32 MiB as Base64 in JSON, and what else is in a request.
MAX_BODY_BYTES = 45 * 1024 * 1024
MAX_HELD_BYTES = 4 * MAX_BODY_BYTES  # of all bodies together
BODY_SECONDS = 60.0  # for a whole body to come
SEND_SECONDS = 60.0  # for a client to take what is sent at once


class RequestLimits:
    """Refuses bodies that are too long or come too slowly, and those for which there is no memory."""

    def __init__(self, app: ASGIApp, body_seconds: float = BODY_SECONDS, send_seconds: float = SEND_SECONDS) -> None:
        self._app, self._body_seconds, self._send_seconds = app, body_seconds, send_seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
            return await problem_of(_too_long(declared.decode("latin-1")))(scope, receive, send)
        body = _Body(self, receive, asyncio.get_running_loop().time() + self._body_seconds)

        async def patient_send(message: Message) -> None:
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        try:
            return await self._app(scope, body.receive, patient_send)
        finally:
            self._held -= body.received

    def hold(self, size: int) -> None:
        """Count bytes that came; `Overloaded` when there are too many of all requests together."""
        if self._held + size > MAX_HELD_BYTES:
            raise Overloaded("the uploads of others fill the memory for them", 1.0)
        self._held += size


class _Body:
    """The body of one request while it comes."""

    def __init__(self, limits: RequestLimits, receive: Receive, end: float) -> None:
        self._limits, self._receive, self._end = limits, receive, end
        self.received, self._complete = 0, False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # which now waits for the client to leave
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise HttpRefusal(408, "expected the whole body within a minute") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self.received + size > MAX_BODY_BYTES:
                raise _too_long("more")
            self._limits.hold(size)
            self.received += size
            self._complete = not message.get("more_body", False)
        return message


def _too_long(received: str) -> HttpRefusal:
    return HttpRefusal(413, f"expected a body of at most {MAX_BODY_BYTES:,} bytes; received {received[:20]}")
