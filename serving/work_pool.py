"""Threads for short work beside the event loop, with an end to how much waits for them; knows no work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serving.overload import Overloaded

R = TypeVar("R")


class WorkPool:
    """As many threads as there are cores, and at most `max_waiting` calls in them and before them."""

    def __init__(self, name: str, max_waiting: int = 1_024, threads: int | None = None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix=name)
        self._name, self._max_waiting = name, max_waiting
        self.waiting = 0

    async def run(self, work: Callable[[], R], deadline: float | None = None) -> R:
        """The result of `work` in a thread; `TimeoutError` when `deadline` (event-loop time) passes before it begins.

        `Overloaded`, at once, when too much waits.
        """
        if self.waiting >= self._max_waiting:
            raise Overloaded(f"{self.waiting:,} before this one ({self._name})", 0.1)
        loop = asyncio.get_running_loop()

        def unless_late() -> R:
            if deadline is not None and loop.time() >= deadline:
                raise TimeoutError("the deadline passed before the work began")
            return work()

        self.waiting += 1
        try:
            return await loop.run_in_executor(self.pool, unless_late)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self.pool.shutdown(cancel_futures=True)


async def in_order(work: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """The results of all, which run at the same time; when all ended, the first in order that failed is raised."""
    results: list[R] = []
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results
