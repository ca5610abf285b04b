"""A cache that computes what many ask for at once only once; knows nothing of what it keeps."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
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
        self._flights: dict[K, _Flight[V]] = {}
        self.hits = self.misses = 0

    async def get(self, key: K, make: Callable[[], asyncio.Future[V]], deadline: float | None = None) -> V:
        """The value of `key`, which `make` begins to make if there is none; what `make` raises is raised.

        `TimeoutError` of another's flight, whose deadline was sooner than `deadline` (event-loop time), is tried again.
        """
        while True:
            if (kept := self.peek(key)) is not None:
                return kept
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

    async def _fly(self, key: K, make: Callable[[], asyncio.Future[V]]) -> V:
        flight = self._flights.get(key)
        if flight is None:
            self.misses += 1
            flight = self._flights[key] = _Flight(make())
            if flight.made.done():  # nobody else can have joined
                self._land(key, flight, flight.made)
                return flight.made.result()
            flight.made.add_done_callback(partial(self._land, key, flight))
        else:
            self.hits += 1
        passenger: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        flight.passengers.append(passenger)
        try:
            return await passenger
        finally:
            flight.passengers.remove(passenger)
            if not flight.passengers:
                self._forget(key, flight)  # nobody joins what is given up
                flight.made.cancel()  # no effect when it is done

    def _land(self, key: K, flight: _Flight[V], made: asyncio.Future[V]) -> None:
        self._forget(key, flight)
        failed = made.cancelled() or made.exception() is not None
        if not failed:
            self._kept[key] = made.result()
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        for passenger in flight.passengers:
            if passenger.done():
                continue
            if made.cancelled():
                passenger.cancel()
            elif (error := made.exception()) is not None:
                passenger.set_exception(error)
            else:
                passenger.set_result(made.result())

    def _forget(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


class _Flight(Generic[V]):
    """What is being made, and who waits for it."""

    __slots__ = ("made", "passengers")

    def __init__(self, made: asyncio.Future[V]) -> None:
        self.made = made
        self.passengers: list[asyncio.Future[V]] = []
