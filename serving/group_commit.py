"""One thread that commits what many submit, all that waits at once; knows nothing of what is committed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# What the items of one commit weigh at most, unless the first alone does: the first does not wait for an endless crowd,
# and callers make their next items ready while the rest is committed.
MAX_GROUP = 1_024


class GroupCommitter(Generic[T, R]):
    """Collects items while a commit is under way and hands them to the next one.

    `commit(items)` returns a result or an exception for each item; what it raises goes to every one of them. `weigh`
    tells how much work an item is. An item whose future is cancelled before its commit begins is left out; after that
    it cannot be cancelled.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Sequence[R | Exception]],
        weigh: Callable[[T], int] = lambda item: 1,
        name: str = "commit",
    ) -> None:
        self._commit, self._weigh = commit, weigh
        self._waiting: list[tuple[T, Future[R]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> Future[R]:
        """Queue `item`; the result comes when its commit is done. `RuntimeError` after `close`."""
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Commit what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                weights = itertools.accumulate(self._weigh(item) for item, _ in self._waiting)
                count = max(1, sum(1 for _ in itertools.takewhile(lambda weight: weight <= MAX_GROUP, weights)))
                drawn, self._waiting = self._waiting[:count], self._waiting[count:]
            group = [(item, future) for item, future in drawn if future.set_running_or_notify_cancel()]
            if not group:
                continue
            try:
                results = self._commit([item for item, _ in group])
            except Exception as error:
                results = [error] * len(group)
            for (_, future), result in zip(group, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
