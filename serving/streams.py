"""Answers a stream of requests as they come, some of them at a time; knows no call and no transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

IN_FLIGHT = 32  # answers under way in one stream

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


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

    def ended(done: asyncio.Task[None]) -> None:
        answers.put_nowait(None)  # a reader that fails ends it too
        if not done.cancelled():
            done.exception()  # where nobody takes answers any more, nobody else asks for it

    reading = asyncio.create_task(all_of_them())
    reading.add_done_callback(ended)
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
