"""Runs what concurrent callers ask for in batches, without ever waiting for one to fill; knows no model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.overload import Overloaded

T = TypeVar("T")
R = TypeVar("R")

# How much the newest batch counts in the average time of an item.
_NEWEST = 0.2


@dataclass(frozen=True)
class _Entry(Generic[T, R]):
    item: T
    deadline: float | None  # on the event loop's clock
    future: asyncio.Future[R]


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait: `items`, and what they are estimated to take in seconds, for bulk items and for others."""

    items: int = 1_024
    seconds: float = 0.15
    bulk_seconds: float = 10.0


class Batcher(Generic[T, R]):
    """Maps items to results by `run`, which takes a list of at most `max_batch` and returns a result for each.

    Work-conserving: an item that finds one of `lanes` free starts at once, alone; items that arrive while all run form
    the next batch. Bulk items run, at most `bulk_batch` at once, when no other waits, and leave a lane to others if
    there are several, so that a caller who waits never waits for much of them. Entries whose caller has gone, or whose
    deadline has passed, are dropped before a batch is drawn. Batchers that share a `turn` run as many batches at a time
    as it admits, all of them together. Belongs to one event loop.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        executor: Executor,
        turn: asyncio.Semaphore,
        max_batch: int,
        bulk_batch: int | None = None,
        limits: QueueLimits | None = None,
        lanes: int = 1,
    ) -> None:
        self._run, self._executor, self._turn = run, executor, turn
        self.max_batch, self.bulk_batch = max_batch, bulk_batch or max_batch
        self.limits = limits or QueueLimits()
        self._waiting: deque[_Entry[T, R]] = deque()
        self._bulk: deque[_Entry[T, R]] = deque()
        self._lanes = lanes
        self._running: list[int] = []  # the sizes of the batches that run
        self._bulk_runs = 0
        self._item_seconds = 0.0  # of late, in full batches and lanes; 0 before the first
        self._drainers: set[asyncio.Task[None] | None] = set()

    @property
    def waiting(self) -> int:
        """How many items wait or run."""
        return len(self._waiting) + len(self._bulk) + sum(self._running)

    async def submit(self, items: Sequence[T], deadline: float | None = None, *, bulk: bool = False) -> list[R]:
        """The results of `items`, in order; `TimeoutError` when `deadline` (event-loop time) passes before they run.

        `Overloaded`, at once, when too many wait, or when those that wait will not be done by the deadline. An
        exception of `run` reaches every caller of that batch.
        """
        loop = asyncio.get_running_loop()
        if (refusal := self.refusal(len(items), deadline, bulk=bulk)) is not None:
            raise refusal
        queue = self._bulk if bulk else self._waiting
        entries: list[_Entry[T, R]] = [_Entry(item, deadline, loop.create_future()) for item in items]
        queue.extend(entries)
        if len(self._drainers) < self._lanes:
            self._drainers.add(loop.create_task(self._drain()))
        try:
            if len(entries) == 1:
                return [await entries[0].future]
            return await asyncio.gather(*(entry.future for entry in entries))
        finally:
            for entry in entries:
                entry.future.cancel()  # no effect on those that are done

    def refusal(self, count: int = 1, deadline: float | None = None, *, bulk: bool = False) -> Overloaded | None:
        """What `submit` would raise now: `count` items would wait too long. What finds nothing before it never does."""
        before = len(self._bulk if bulk else self._waiting) + sum(self._running)
        if not before:
            return None
        wait = before * self._item_seconds
        longest = self.limits.bulk_seconds if bulk else self.limits.seconds
        retry_after = _rounded(max(wait / 2, 0.05))
        if before + count > self.limits.items or wait > longest:
            return Overloaded(f"{before:,} before this one", retry_after)
        if deadline is not None:
            now = asyncio.get_running_loop().time()
            late = now + wait + count * self._item_seconds - deadline
            if now < deadline and late > 0:
                return Overloaded(f"{late:.2g} s of work, longer than the deadline of this one", retry_after)
        return None

    async def _drain(self) -> None:
        """Run one batch after the other until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._bulk_may_run:
                async with self._turn:
                    now = loop.time()
                    if batch := self._draw(self._waiting, self.max_batch, now):
                        await self._run_batch(loop, batch)
                    elif self._bulk_may_run and (batch := self._draw(self._bulk, self.bulk_batch, now)):
                        self._bulk_runs += 1
                        try:
                            await self._run_batch(loop, batch)
                        finally:
                            self._bulk_runs -= 1
        finally:
            self._drainers.discard(asyncio.current_task())
            if not self._drainers:
                for entry in (*self._waiting, *self._bulk):  # only when the loop is shutting down
                    entry.future.cancel()

    @property
    def _bulk_may_run(self) -> bool:
        return bool(self._bulk) and self._bulk_runs < max(1, self._lanes - 1)

    def _draw(self, queue: deque[_Entry[T, R]], most: int, now: float) -> list[_Entry[T, R]]:
        """Take the next live entries from a queue."""
        batch: list[_Entry[T, R]] = []
        while queue and len(batch) < most:
            entry = queue.popleft()
            if entry.future.done():
                continue
            if entry.deadline is not None and entry.deadline <= now:
                entry.future.set_exception(TimeoutError("the deadline passed before the work began"))
            else:
                batch.append(entry)
        return batch

    async def _run_batch(self, loop: asyncio.AbstractEventLoop, batch: list[_Entry[T, R]]) -> None:
        began = loop.time()
        self._running.append(len(batch))
        try:
            results = await loop.run_in_executor(self._executor, self._run, [entry.item for entry in batch])
        except Exception as error:  # whatever it is, it belongs to the callers
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        finally:
            lanes = len(self._running)
            self._running.remove(len(batch))
        self._note(len(batch), (loop.time() - began) / lanes)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    def _note(self, count: int, seconds: float) -> None:
        """Learn what an item takes when many wait: small batches say little about that."""
        if 2 * count >= self.bulk_batch or not self._item_seconds:
            newest = seconds / count
            self._item_seconds += (newest - self._item_seconds) * (_NEWEST if self._item_seconds else 1)


def _rounded(seconds: float) -> float:
    """In two digits: few different refusals are told, each of which is made into a message once."""
    return float(f"{seconds:.2g}")
