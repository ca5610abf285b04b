"""Between gRPC and the methods: reads requests within the limits of their methods and of the memory; knows no service.

Every method is given what it reads by `context.read()` or from its iterator of requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from grpc_status import rpc_status

from serving.core_server import CoreServer
from serving.error_details import RequestTooLarge, status_of
from serving.method_policies import POLICIES
from serving.overload import Overloaded
from serving.request_memory import MIB, RequestMemory

OTHERS_MIB = 1  # health and reflection
_OURS = "/imageretrieval.v1."


class BoundedServer:
    """A server as services are added to it, with their methods' requests bounded; the memory is the process's own.

    Methods are found by the generic handlers only.
    """

    def __init__(self, server: CoreServer, memory: RequestMemory) -> None:
        self._server, self._memory = server, memory

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """See `grpc.aio.Server`."""
        self._server.add_generic_rpc_handlers([BoundedHandler(handler, self._memory) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Nothing is left to do: generated code gives the same as a generic handler before."""


class BoundedHandler(grpc.GenericRpcHandler):
    """What `handler` answers, within the limits."""

    def __init__(self, handler: grpc.GenericRpcHandler, memory: RequestMemory) -> None:
        self._handler, self._memory = handler, memory
        self._known: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """See `grpc.GenericRpcHandler`."""
        path = handler_call_details.method
        if (known := self._known.get(path)) is not None:
            return known
        handler = self._handler.service(handler_call_details)
        if handler is None:
            return None
        name = path.removeprefix(_OURS).replace("/", ".", 1)
        bounded = self._bounded(handler, name)
        if name in POLICIES:  # of other names there is no end
            self._known[path] = bounded
        return bounded

    def _bounded(self, handler: grpc.RpcMethodHandler, name: str) -> grpc.RpcMethodHandler:
        most = (POLICIES[name].max_mib if name in POLICIES else OTHERS_MIB) * MIB
        memory, decode = self._memory, handler.request_deserializer

        async def one(requests: Any, context: Any) -> Any:
            reading = _CallReading(context, memory, decode, most)
            try:
                if handler.request_streaming:
                    return await handler.stream_unary(reading.messages(), reading)
                return await handler.unary_unary(await reading.read(), context)
            except (RequestTooLarge, Overloaded) as error:  # of a method that is not ours
                return await _abort(context, error)
            finally:
                reading.end()

        async def many(requests: Any, context: Any) -> AsyncIterator[Any]:
            reading = _StreamReading(context, memory, decode, most)
            try:
                async with aclosing(handler.stream_stream(reading.messages(), reading)) as responses:
                    async for response in responses:
                        reading.answered()
                        yield response
            except (RequestTooLarge, Overloaded) as error:
                await _abort(context, error)
            finally:
                reading.end()

        async def told(requests: Any, context: Any) -> None:
            reading = _CallReading(context, memory, decode, most)
            try:
                request = await reading.read()
            except (RequestTooLarge, Overloaded) as error:
                await _abort(context, error)
            finally:
                reading.end()
            await handler.unary_stream(request, context)

        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(one, None, handler.response_serializer)
        answer = many if handler.request_streaming else told
        return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)


async def _abort(context: Any, error: Exception) -> None:
    status = rpc_status.to_status(status_of(error, ""))
    await context.abort(status.code, status.details, status.trailing_metadata)


class _Reading:
    """A call's context that reads within limits; all else is the context's own."""

    def __init__(self, context: Any, memory: RequestMemory, decode: Callable[[bytes], Any] | None, most: int) -> None:
        self._context, self._memory, self._decode, self._most = context, memory, decode, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next request, or `grpc.aio.EOF`. `RequestTooLarge`, `Overloaded`."""
        data = await self._memory.come(self._context.read())
        if data is grpc.aio.EOF:
            return data
        if len(data) > self._most:
            raise RequestTooLarge(len(data), self._most)
        self._hold(len(data))
        return self._decode(data) if self._decode else data

    async def messages(self) -> AsyncIterator[Any]:
        """All requests."""
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def _hold(self, size: int) -> None:
        raise NotImplementedError


class _CallReading(_Reading):
    """Of a call with one answer."""

    _held = 0

    def _hold(self, size: int) -> None:
        self._memory.hold(size)
        self._held += size

    def end(self) -> None:
        self._memory.release(self._held)


class _StreamReading(_Reading):
    """Of a call with an answer for each request."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._sizes: deque[int] = deque()

    async def read(self) -> Any:
        await self._memory.room_in_streams()
        return await super().read()

    def _hold(self, size: int) -> None:
        self._memory.hold_in_stream(size)
        self._sizes.append(size)

    def answered(self) -> None:
        """Answers come in any order: once all are there, nothing is held."""
        if self._sizes:
            self._memory.release_in_stream(self._sizes.popleft())

    def end(self) -> None:
        while self._sizes:
            self.answered()
