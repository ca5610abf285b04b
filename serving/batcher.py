"""Runs what concurrent callers ask for in batches, without ever waiting for one to fill; knows no model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from serving.overload import Overloaded

T = TypeVar("T")
R = TypeVar("R")

# How much the newest full batch counts in the average time of an item; smaller ones count less.
_NEWEST = 0.2

HERE_SECONDS = 0.02  # an item that takes longer runs in the executor

BULK_SHARE = 0.25  # of the others in a batch: so bulk items come to their turn however many others come


@dataclass(frozen=True)
class _Entry(Generic[T, R]):
    item: T
    deadline: float | None  # on the event loop's clock
    future: asyncio.Future[R]


class _Ran(Generic[R]):
    """What came of a batch that ran in this thread, as a future tells it."""

    __slots__ = ("_error", "_results")

    def __init__(self, run: Callable[[], Sequence[R]]) -> None:
        self._error: BaseException | None = None
        self._results: Sequence[R] = ()
        try:
            self._results = run()
        except BaseException as error:
            self._error = error

    def cancelled(self) -> bool:
        return False

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Sequence[R]:
        return self._results


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait: `items`, and what they are estimated to take in seconds, for bulk items and for others."""

    items: int = 1_024
    seconds: float = 0.15
    bulk_seconds: float = 10.0


class Turn:
    """How many batches may run at a time, of all batchers that share it: who waited longest goes first."""

    def __init__(self, count: int = 1) -> None:
        self._free = count
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, otherwise: Callable[[], None]) -> bool:
        """Take one of the places; where none is free, `otherwise` is called when one may be."""
        if self._free:
            self._free -= 1
            return True
        if otherwise not in self._waiting:
            self._waiting.append(otherwise)
        return False

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a place."""
        return bool(self._waiting)

    def leave(self) -> None:
        """Give a place back."""
        self._free += 1
        while self._free and self._waiting:
            self._waiting.popleft()()


class Batcher(Generic[T, R]):
    """Maps items to results by `run`, which takes a list of at most `max_batch` and returns a result for each; of
    `crowd_batch`, where half as many again as a batch wait.

    Work-conserving: an item that finds one of `lanes` free starts at once, alone; items that arrive while all run form
    the next batch. While others wait, bulk items have `BULK_SHARE` of their number in a batch; otherwise they run, at
    most `bulk_batch` at once, and leave a lane to others if there are several, so that a caller who waits never waits
    for much of them. Entries whose caller has gone, or whose deadline has passed, are dropped before a batch is drawn.
    Batchers that share a `turn` run as many batches at a time as it admits, all of them together. With `ahead`, so many
    more full batches are handed to the `executor`, which has a thread for each lane: a thread then goes on at once,
    however late the event loop is. Belongs to one event loop; it runs callbacks on that and no tasks, for each step of
    a task is another pass of the loop that somebody waits for.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        executor: Executor,
        turn: Turn,
        max_batch: int,
        bulk_batch: int | None = None,
        crowd_batch: int | None = None,
        limits: QueueLimits | None = None,
        lanes: int = 1,
        ahead: int = 0,
    ) -> None:
        self._run, self._executor, self._turn = run, executor, turn
        self.max_batch, self.bulk_batch = max_batch, bulk_batch or max_batch
        self._crowd_batch = crowd_batch or max_batch
        self.limits = limits or QueueLimits()
        self._waiting: deque[_Entry[T, R]] = deque()
        self._bulk: deque[_Entry[T, R]] = deque()
        self._lanes, self._ahead = lanes, ahead
        self._running: list[int] = []  # the sizes of the batches that run, or will without another word
        self._bulk_runs = 0
        self._item_seconds = 0.0  # of late, in full batches and lanes; 0 before the first
        self._alone_seconds = math.inf  # of late, of an item alone
        self._here = False  # whether to run in the thread that starts

    @property
    def waiting(self) -> int:
        """How many items wait or run."""
        return len(self._waiting) + len(self._bulk) + sum(self._running)

    async def submit(self, items: Sequence[T], deadline: float | None = None, *, bulk: bool = False) -> list[R]:
        """The results of `items`, in order; `TimeoutError` when `deadline` (event-loop time) passes before they run.

        `Overloaded`, at once, when too many wait, or when those that wait will not be done by the deadline. An
        exception of `run` reaches every caller of that batch.
        """
        futures = self._put(items, deadline, bulk)
        try:
            if len(futures) == 1:
                return [await futures[0]]
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()  # no effect on those that are done

    def start(self, item: T, deadline: float | None = None, *, bulk: bool = False) -> asyncio.Future[R]:
        """As `submit`, for one item: its result to be awaited, or cancelled when nobody waits for it any more."""
        return self._put([item], deadline, bulk)[0]

    def place(self) -> contextlib.AbstractContextManager[None] | None:
        """A context in which an item runs at once, in the thread that starts it and stands in for the loop's.

        None unless it would be done soon, and nothing waits or runs.
        """
        return self._running_here() if self._alone_seconds <= HERE_SECONDS and not self.waiting else None

    @contextlib.contextmanager
    def _running_here(self) -> Iterator[None]:
        self._here = True
        try:
            yield
        finally:
            self._here = False

    def refusal(
        self, count: int = 1, deadline: float | None = None, *, bulk: bool = False, coming: int = 0
    ) -> Overloaded | None:
        """What `submit` would raise now: `count` items would wait too long. What finds nothing before it never does.

        `coming` further items will have been submitted before.
        """
        before = len(self._bulk if bulk else self._waiting) + sum(self._running) + coming
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

    def _put(self, items: Sequence[T], deadline: float | None, bulk: bool) -> list[asyncio.Future[R]]:
        if (refusal := self.refusal(len(items), deadline, bulk=bulk)) is not None:
            raise refusal
        loop = asyncio.get_running_loop()
        entries: list[_Entry[T, R]] = [_Entry(item, deadline, loop.create_future()) for item in items]
        (self._bulk if bulk else self._waiting).extend(entries)
        self._begin()
        return [entry.future for entry in entries]

    def _begin(self) -> None:
        """Run batches of what waits, as many as may run."""
        while self._waiting or self._bulk_may_run:
            in_lane = len(self._running) < self._lanes
            if not in_lane and not self._may_run_ahead:
                return
            if in_lane and not self._turn.take(self._begin):
                return
            now = asyncio.get_running_loop().time()
            crowded = 2 * len(self._waiting) >= 3 * self.max_batch
            batch, bulk = self._draw(self._waiting, self._crowd_batch if crowded else self.max_batch, now), False
            if batch:
                batch += self._draw(self._bulk, int(BULK_SHARE * len(batch)), now)
            elif self._bulk_may_run:
                batch, bulk = self._draw(self._bulk, self.bulk_batch, now), True
            if batch:
                self._run_batch(batch, bulk)
            elif in_lane:
                self._turn.leave()

    @property
    def _may_run_ahead(self) -> bool:
        """Whether one more may wait in the executor: what is as full as it may be gains nothing by waiting here."""
        room = len(self._running) < self._lanes + self._ahead
        return room and len(self._waiting) >= self.max_batch and not self._turn.wanted

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

    def _run_batch(self, batch: list[_Entry[T, R]], bulk: bool) -> None:
        loop = asyncio.get_running_loop()
        began = ended_at = loop.time()

        def run() -> Sequence[R]:
            nonlocal began, ended_at
            began = loop.time()
            try:
                return self._run([entry.item for entry in batch])
            finally:
                ended_at = loop.time()

        def ended(done: Future[Sequence[R]]) -> None:  # in the thread that ran it
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(self._end_batch, batch, bulk, ended_at - began, done)

        here = self._here and not self._running
        self._running.append(len(batch))
        self._bulk_runs += bulk
        if here:
            ran = _Ran(run)
            self._end_batch(batch, bulk, ended_at - began, ran)
            return
        try:
            running = self._executor.submit(run)
        except RuntimeError as error:  # the threads have been stopped
            running = Future()
            running.set_exception(error)
        running.add_done_callback(ended)

    def _end_batch(
        self, batch: list[_Entry[T, R]], bulk: bool, seconds: float, done: Future[Sequence[R]] | _Ran[R]
    ) -> None:
        """Let the next batch run, and give the results of this one to those who wait for them."""
        lanes = min(self._lanes, len(self._running))
        self._running.remove(len(batch))
        self._bulk_runs -= bulk
        failed = done.cancelled() or done.exception() is not None
        if not failed:
            self._note(len(batch), seconds / lanes)
        if len(self._running) < self._lanes:  # otherwise one that was ahead is in its place
            self._turn.leave()
        self._begin()
        results = itertools.repeat(None, len(batch)) if failed else done.result()
        for entry, result in zip(batch, results, strict=True):
            if entry.future.done():
                continue
            if done.cancelled():
                entry.future.cancel()
            elif (error := done.exception()) is not None:  # whatever it is, it belongs to the callers
                entry.future.set_exception(error)
            else:
                entry.future.set_result(cast(R, result))

    def _note(self, count: int, seconds: float) -> None:
        """Learn what an item takes, above all when many wait."""
        weight = _NEWEST * min(1.0, count / self.bulk_batch) if self._item_seconds else 1.0
        self._item_seconds += weight * (seconds / count - self._item_seconds)
        if count == 1:
            before = self._alone_seconds if self._alone_seconds < math.inf else seconds
            self._alone_seconds = before + _NEWEST * (seconds - before)


def _rounded(seconds: float) -> float:
    """In two digits: few different refusals are told, each of which is made into a message once."""
    return float(f"{seconds:.2g}")
