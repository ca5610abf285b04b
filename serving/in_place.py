"""Handlers that run where their calls are taken, without a change of threads, while calls come one by one; knows no
call."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any

from serving.lent_loop import LentLoop

Place = AbstractContextManager[None]  # in which a handler runs
PlaceOf = Callable[[], Place | None]

BUSY_SECONDS = 0.25  # in which nothing runs in place, after calls came at one time
WAITED_SECONDS = 0.0001  # a call that is taken so soon after one in place may have waited for it


class InPlace:
    """Belongs to the thread that takes calls; `loop` is where handlers run otherwise.

    `place_of` gives the context for the next call's handler, or None where that may take long or others are under way:
    while it runs, no other call is taken.
    """

    def __init__(self, loop: LentLoop, place_of: PlaceOf) -> None:
        self._loop, self._place_of = loop, place_of
        self._left = self._busy_until = -math.inf

    def place(self, coming: int) -> Place | None:
        """Where to run the handler of a call that is taken now, if it is to run in place.

        `coming` others were taken that no handler knows of yet.
        """
        now = time.perf_counter()
        if now < self._busy_until and not coming:
            return None
        if now - self._left < WAITED_SECONDS:  # if there are others, they show while this one is under way elsewhere
            return None
        place = None if coming else self._place_of()
        if place is None:
            self._busy_until = now + BUSY_SECONDS
        return place

    def run(
        self, place: Place, handler: Callable[[], Coroutine[Any, Any, None]], keep: Callable[[asyncio.Task[None]], None]
    ) -> bool:
        """Run a handler until it waits for something; `keep` is given the task of the rest of it, if there is one.

        False when the loop is at work, and nothing was done.
        """
        with self._loop.borrowed() as borrowed:
            if not borrowed:
                return False
            with place:
                handling = handler()
                try:
                    awaited = handling.send(None)
                except StopIteration:
                    return True
                finally:
                    self._left = time.perf_counter()
            keep(self._loop.create_task(_rest(handling, awaited)))
            return True


async def _rest(handling: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _resumed(handling, awaited)


@types.coroutine
def _resumed(handling: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that waits for `awaited`, which whoever began it was given."""
    with contextlib.suppress(StopIteration):
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # it is cancelled
                awaited = handling.throw(error)
            else:
                awaited = handling.send(sent)
