"""An event loop that lends itself: while it waits, another thread may run in its place; knows no transport."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from collections.abc import Iterator
from typing import Any


class LentLoop(asyncio.SelectorEventLoop):
    """At any time one thread runs what belongs to the loop: its own, or one that borrows it while that one waits."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # of running what belongs to the loop
        super().__init__(_LendingSelector(self._turn))

    def run_forever(self) -> None:
        """See `asyncio.AbstractEventLoop`."""
        with self._turn:
            super().run_forever()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[bool]:
        """Whether this thread stands in for the loop's own until the end of the block; not when that is at work.

        This is the running loop then, and no task is. What the block schedules is run by the loop, afterwards.
        """
        if not self.is_running() or self.get_debug() or not self._turn.acquire(blocking=False):
            yield False
            return
        asyncio._set_running_loop(self)
        try:
            yield True
        finally:
            asyncio._set_running_loop(None)
            self._turn.release()
            with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                self.call_soon_threadsafe(_nothing)  # or it would wait as it did before


class _LendingSelector(selectors.DefaultSelector):
    """Gives the turn away while it waits."""

    def __init__(self, turn: threading.Lock) -> None:
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> Any:
        """See `selectors.BaseSelector`."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self._turn.release()
        try:
            return super().select(timeout)
        finally:
            self._turn.acquire()


def _nothing() -> None:
    """To wake the loop."""
