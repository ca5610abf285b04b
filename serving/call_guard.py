"""What stands around every call: who asks, until when, for which engine, and a status for every error; knows no method.

Handlers are methods of services that have a `guard`, decorated with `unary` or `streaming`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from serving.error_details import NotReady, status_of
from serving.search_engine import SearchEngine

IN_FLIGHT = 32  # answers under way in one stream

_log = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Call:
    """One call. `deadline` is a moment on the event loop's clock, or None."""

    method: str
    request_id: str
    deadline: float | None
    engine: SearchEngine


class CallGuard:
    """What answers now, and what every call passes on its way there."""

    def __init__(self) -> None:
        self.engine: SearchEngine | None = None  # None until the model and the index are loaded

    def admit(self, method: str, context: grpc.aio.ServicerContext) -> Call:
        """Let a call in; what it raises is told to the client."""
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        if self.engine is None:
            raise NotReady
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        return Call(method, uuid.uuid4().hex, deadline, self.engine)

    def status(self, error: Exception, method: str, request_id: str) -> status_pb2.Status:
        """What a client is told of `error`; a defect is logged."""
        status = status_of(error, request_id)
        if status.code == grpc.StatusCode.INTERNAL.value[0]:
            _log.error("request %s failed in %s", request_id, method, exc_info=error)
        return status


def unary(handler: Callable[..., Awaitable[_Response]]) -> Callable[..., Awaitable[_Response]]:
    """A method with one answer, from `handler(service, request, call)`."""

    @functools.wraps(handler)
    async def answer(service: Any, request: Any, context: grpc.aio.ServicerContext) -> _Response:
        method, request_id = handler.__qualname__, ""
        try:
            call = service.guard.admit(method, context)
            request_id = call.request_id
            return await handler(service, request, call)
        except Exception as error:
            await _abort(context, service.guard.status(error, method, request_id or uuid.uuid4().hex))
        raise AssertionError("abort always raises")

    return answer


def streaming(handler: Callable[..., AsyncIterator[_Response]]) -> Callable[..., AsyncIterator[_Response]]:
    """A method that answers a stream with a stream, from `handler(service, requests, call)`."""

    @functools.wraps(handler)
    async def answer(
        service: Any, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[_Response]:
        method, request_id = handler.__qualname__, ""
        try:
            call = service.guard.admit(method, context)
            request_id = call.request_id
            async for response in handler(service, requests, call):
                yield response
        except Exception as error:
            await _abort(context, service.guard.status(error, method, request_id or uuid.uuid4().hex))

    return answer


async def as_they_come(
    requests: AsyncIterator[_Request], answer: Callable[[_Request], Awaitable[_Response]]
) -> AsyncIterator[_Response]:
    """The answers of all requests, each as soon as it is there; at most `IN_FLIGHT` are read before that.

    When nobody takes answers any more, what is under way is cancelled.
    """
    answers: asyncio.Queue[_Response | None] = asyncio.Queue()
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(request: _Request) -> None:
        answers.put_nowait(await answer(request))

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await room.acquire()
                group.create_task(one(request))
        answers.put_nowait(None)

    reading = asyncio.create_task(all_of_them())
    reading.add_done_callback(lambda done: answers.put_nowait(None))  # a reader that fails ends it too
    try:
        while (response := await answers.get()) is not None:
            room.release()
            yield response
        try:
            await reading
        except BaseExceptionGroup as errors:  # the group around the tasks; what went wrong is in it
            raise errors.exceptions[0] from None
    finally:
        reading.cancel()


async def _abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> None:
    told = rpc_status.to_status(status)
    await context.abort(told.code, told.details, told.trailing_metadata)
