"""The engine that answers now, and those before it until the last call has left them; knows no model and no call."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.search_engine import SearchEngine


class LiveUnit:
    """A model and its index, replaced as one. Belongs to one event loop.

    Whoever calls `enter` keeps that engine until `leave`, whatever replaces it meanwhile.
    """

    def __init__(self) -> None:
        self._engine: SearchEngine | None = None
        self._users: Counter[SearchEngine] = Counter()
        self._retired: set[SearchEngine] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._replaced: asyncio.Event | None = None

    @property
    def engine(self) -> SearchEngine | None:
        """What answers now; None before the first is loaded."""
        return self._engine

    def enter(self) -> SearchEngine | None:
        """Use what answers now."""
        if self._engine is not None:
            self._users[self._engine] += 1
        return self._engine

    def leave(self, engine: SearchEngine) -> None:
        """The opposite of `enter`."""
        self._users[engine] -= 1
        if not self._users[engine]:
            del self._users[engine]
            self._close_unused(engine)

    def replace(self, engine: SearchEngine | None) -> None:
        """Let `engine` answer from now on; the former one closes when nobody uses it any more."""
        former, self._engine = self._engine, engine
        if self._replaced is not None:
            self._replaced.set()
            self._replaced = None
        if former is not None and former is not engine:
            self._retired.add(former)
            self._close_unused(former)

    async def another(self, than: SearchEngine, seconds: float) -> bool:
        """Whether another engine than this answers, waiting for it at most so many seconds."""
        if self._engine is not than:
            return True
        if self._replaced is None:
            self._replaced = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._replaced.wait(), seconds)
        return self._engine is not than

    async def close(self) -> None:
        """Close every engine, used or not."""
        if self._engine is not None:
            self.replace(None)
        for engine in list(self._retired):
            self._close(engine)
        await asyncio.gather(*self._closing)

    def _close_unused(self, engine: SearchEngine) -> None:
        if engine in self._retired and engine not in self._users:
            self._close(engine)

    def _close(self, engine: SearchEngine) -> None:
        """In a thread, for it waits for what the engine's threads are doing."""
        self._retired.discard(engine)
        task = asyncio.ensure_future(asyncio.to_thread(engine.close))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        # The last reference goes with the task; what it frees would stay with the allocator, a model each time.
        asyncio.get_running_loop().call_later(1.0, give_back_memory)


def give_back_memory() -> None:
    """Let the system have what the C library keeps of freed memory, where that can be asked for."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
