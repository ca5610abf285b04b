"""Runs what concurrent callers ask for in batches, without ever waiting for one to fill; knows no model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Entry(Generic[T, R]):
    item: T
    deadline: float | None  # on the event loop's clock
    future: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Maps items to results by `run`, which takes a list of at most `max_batch` and returns a result for each.

    Work-conserving: an item that finds nothing running starts at once, alone; items that arrive meanwhile form the next
    batch. Entries whose caller has gone, or whose deadline has passed, are dropped before a batch is drawn. Batchers
    that share a `turn` take turns, so that only one of them runs at a time. Belongs to one event loop.
    """

    def __init__(
        self, run: Callable[[list[T]], Sequence[R]], executor: Executor, turn: asyncio.Lock, max_batch: int
    ) -> None:
        self._run, self._executor, self._turn = run, executor, turn
        self.max_batch = max_batch
        self._waiting: deque[_Entry[T, R]] = deque()
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, items: Sequence[T], deadline: float | None = None) -> list[R]:
        """The results of `items`, in order; `TimeoutError` when `deadline` (event-loop time) passes before they run.

        An exception of `run` reaches every caller of that batch.
        """
        loop = asyncio.get_running_loop()
        entries: list[_Entry[T, R]] = [_Entry(item, deadline, loop.create_future()) for item in items]
        self._waiting.extend(entries)
        if self._drainer is None:
            self._drainer = loop.create_task(self._drain())
        try:
            return await asyncio.gather(*(entry.future for entry in entries))
        finally:
            for entry in entries:
                entry.future.cancel()  # no effect on those that are done

    async def _drain(self) -> None:
        """Run batches until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                async with self._turn:
                    batch = self._draw(loop.time())
                    if batch:
                        await self._run_batch(loop, batch)
        finally:
            self._drainer = None
            for entry in self._waiting:  # only when the loop is shutting down
                entry.future.cancel()

    def _draw(self, now: float) -> list[_Entry[T, R]]:
        """Take the next live entries from the queue."""
        batch: list[_Entry[T, R]] = []
        while self._waiting and len(batch) < self.max_batch:
            entry = self._waiting.popleft()
            if entry.future.done():
                continue
            if entry.deadline is not None and entry.deadline <= now:
                entry.future.set_exception(TimeoutError("the deadline passed before the work began"))
            else:
                batch.append(entry)
        return batch

    async def _run_batch(self, loop: asyncio.AbstractEventLoop, batch: list[_Entry[T, R]]) -> None:
        try:
            results = await loop.run_in_executor(self._executor, self._run, [entry.item for entry in batch])
        except Exception as error:  # whatever it is, it belongs to the callers
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)
