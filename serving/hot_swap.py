"""Goes over to what is published: within the store where the model is the same, else to another model with its index as
one unit, loaded beside the one that answers; knows no call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from data import console
from serving.embedded_store import EmbeddedStore
from serving.operations import OperationFailed

if TYPE_CHECKING:
    from serving.live_unit import LiveUnit
    from serving.search_engine import SearchEngine

T = TypeVar("T")

SECONDS = 0.5  # between two looks; the store's own is one call of stat

_log = logging.getLogger(__name__)


class HotSwap:
    """Keeps a `LiveUnit` at what is published. Belongs to one event loop.

    `load_next(former)` loads the unit that is live in the index of `former`, in a thread; when it returns, the new one
    may be changed and `former` may not. What it raises is told once: the former unit answers on, and what was published
    next is tried.
    """

    def __init__(self, unit: LiveUnit, load_next: Callable[[SearchEngine], SearchEngine]) -> None:
        self._unit, self._load_next = unit, load_next
        self._turn = asyncio.Lock()
        self._refused: tuple[str, Exception] | None = None  # the snapshot that could not be served, and why
        self.loading = False

    async def watch(self) -> None:
        """Look for what is published until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await self._look(again=False)
            except Exception:
                _log.exception("looking for what was published failed; it is tried again")

    async def go_over(self) -> None:
        """Serve what is published now; `OperationFailed` tells why that is not possible."""
        await self._look(again=True)
        if self._refused is not None:
            name, error = self._refused
            raise OperationFailed(f"snapshot {name} is live, but cannot be served: {error}", refused=True)

    async def _look(self, again: bool) -> None:
        async with self._turn:
            while (engine := self._unit.engine) is not None and isinstance(engine.store, EmbeddedStore):
                store = engine.store
                name = await asyncio.to_thread(_published, store, again)
                if name is None:
                    self._refused = None
                    return
                if self._refused is not None and self._refused[0] == name and not again:
                    return
                again = False
                try:
                    await self._swap(engine)
                    self._refused = None
                except Exception as error:
                    self._refused = name, error
                    _log.error("snapshot %s of another model cannot be served; the former goes on: %s", name, error)
                    return

    async def _swap(self, engine: SearchEngine) -> None:
        self.loading = True
        try:
            following = await in_daemon_thread(lambda: self._load_next(engine))
        finally:
            self.loading = False
        self._unit.replace(following)
        console.say(f"went over to model {following.runtime.name} ({following.runtime.fingerprint})")


def _published(store: EmbeddedStore, now: bool) -> str | None:
    """The live snapshot if it is another model's; `now` waits for one of the same model to be in use."""
    if now:
        store.refresh()
    else:
        with store.view():
            pass
    return store.superseded


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run `work` in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(setter: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if future.done() else setter(value))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            deliver(future.set_exception, error)
        else:
            deliver(future.set_result, result)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return future
