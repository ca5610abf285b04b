"""Keeps states of a store for a while, so that a client can page through hits while others change the index; knows no
token."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from serving.page_tokens import PageTokenExpired

if TYPE_CHECKING:
    from serving.vector_store import StoreView, VectorStore

HELD, SECONDS = 64, 300.0


class HeldViews:
    """The last `HELD` states that somebody may page through, each for `SECONDS` after it was last asked for.

    Safe to share between threads.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def view(self, revision: str | None = None) -> AbstractContextManager[StoreView]:
        """The state now, or that of `revision`; `PageTokenExpired` when it is gone."""
        return self._store.view() if revision is None else self._of(revision)

    @contextmanager
    def _of(self, revision: str) -> Iterator[StoreView]:
        with self._store.view() as view:
            if view.revision == revision:
                yield view
                return
        held = self._take(revision)
        try:
            yield held.view
        finally:
            self._leave(held)

    def hold(self, revision: str) -> None:
        """Keep the state now if it is that of `revision`."""
        with self._lock:
            if revision in self._held:
                self._touch(revision)
                return
            stack = ExitStack()
            view = stack.enter_context(self._store.view())
            if view.revision != revision:
                stack.close()
                return
            self._held[revision] = _Held(view, stack)
            self._touch(revision)

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            for held in self._held.values():
                held.let_go()
            self._held.clear()

    def _touch(self, revision: str) -> None:
        """Mark a state as asked for, and let go of those that nobody asked for of late."""
        now = time.monotonic()
        self._held[revision].until = now + SECONDS
        self._held.move_to_end(revision)
        while len(self._held) > HELD or next(iter(self._held.values())).until < now:
            _, oldest = self._held.popitem(last=False)
            oldest.let_go()

    def _take(self, revision: str) -> _Held:
        with self._lock:
            held = self._held.get(revision)
            if held is None:
                raise PageTokenExpired
            self._touch(revision)
            held.readers += 1
            return held

    def _leave(self, held: _Held) -> None:
        with self._lock:
            held.readers -= 1
            if held.gone and not held.readers:
                held.stack.close()


class _Held:
    """A view, who reads it, and until when it is kept."""

    def __init__(self, view: StoreView, stack: ExitStack) -> None:
        self.view, self.stack = view, stack
        self.readers, self.gone, self.until = 0, False, 0.0

    def let_go(self) -> None:
        """Release the view as soon as nobody reads it."""
        self.gone = True
        if not self.readers:
            self.stack.close()
