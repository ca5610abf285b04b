"""A cache that computes what many ask for at once only once; knows nothing of what it keeps."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Keeps the `size` values used last. Belongs to one event loop.

    Of those who ask for a value that is being made, none starts making it again; one who gives up leaves it to the
    others, and the last who gives up stops it. A failure is told to all who wait, and not kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._flights: dict[K, tuple[asyncio.Task[V], list[None]]] = {}
        self.hits = self.misses = 0

    async def get(self, key: K, make: Callable[[], Awaitable[V]], deadline: float | None = None) -> V:
        """The value of `key`, made by `make` if there is none.

        `TimeoutError` of another's flight, whose deadline was sooner than `deadline` (event-loop time), is tried again.
        """
        while True:
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            joined = key in self._flights
            try:
                return await self._fly(key, make)
            except TimeoutError:
                if not joined or (deadline is not None and asyncio.get_running_loop().time() >= deadline):
                    raise

    def peek(self, key: K) -> V | None:
        """The value if it is kept."""
        value = self._kept.get(key)
        if value is not None:
            self.hits += 1
            self._kept.move_to_end(key)
        return value

    def is_made(self, key: K) -> bool:
        """Whether somebody waits for the value already."""
        return key in self._flights

    async def _fly(self, key: K, make: Callable[[], Awaitable[V]]) -> V:
        if key not in self._flights:
            self.misses += 1
            self._flights[key] = asyncio.ensure_future(self._make(key, make)), []
        else:
            self.hits += 1
        task, passengers = self._flights[key]
        passengers.append(None)
        try:
            return await asyncio.shield(task)
        finally:
            passengers.pop()
            if not passengers:
                task.cancel()  # no effect when it is done

    async def _make(self, key: K, make: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await make()
            self._kept[key] = value
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return value
        finally:
            del self._flights[key]
