"""Handlers run in place while calls come one by one; what they wait for is waited for on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serving import in_place
from serving.in_place import BUSY_SECONDS, WAITED_SECONDS, InPlace
from serving.lent_loop import LentLoop

LATER = 10 * WAITED_SECONDS


class Scene:
    """An `InPlace` on a clock of its own, which has a place for calls unless told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.free, self.asked = 1_000.0, True, 0
        monkeypatch.setattr(in_place.time, "perf_counter", lambda: self.now)
        self.here = InPlace(None, self._place_of)

    def _place_of(self) -> contextlib.AbstractContextManager[None] | None:
        self.asked += 1
        return contextlib.nullcontext() if self.free else None

    def takes(self, coming: int = 0, after: float = LATER) -> bool:
        """Whether a call that is taken so much later has a place."""
        self.now += after
        return self.here.place(coming) is not None


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def test_calls_that_come_one_by_one_have_a_place(scene):
    assert [scene.takes() for _ in range(5)] == [True] * 5


@pytest.mark.parametrize("another", ["is on its way", "is under way"])
def test_after_calls_at_one_time_there_is_none_for_a_while_and_nobody_is_asked(scene, another):
    if another == "is on its way":
        assert not scene.takes(coming=1)
    else:
        scene.free = False
        assert not scene.takes()
        scene.free = True
    asked = scene.asked
    assert not scene.takes()
    assert not scene.takes(after=0.9 * BUSY_SECONDS)
    assert scene.asked == asked
    assert scene.takes(after=0.2 * BUSY_SECONDS)


def test_calls_that_come_together_keep_the_time_from_ending(scene):
    for _ in range(3):
        assert not scene.takes(coming=1, after=0.9 * BUSY_SECONDS)
    assert not scene.takes(after=0.9 * BUSY_SECONDS)


def test_a_call_that_may_have_waited_for_one_in_place_has_none_and_the_next_has(scene):
    scene.here._left = scene.now
    assert not scene.takes(after=WAITED_SECONDS / 2)
    assert scene.takes()


def served(handler: Callable[[], Coroutine[Any, Any, None]], then: Callable[[], Any] = lambda: None) -> list[str]:
    """Run a handler in place, on a thread "calls", and then `then` on the loop; the events, in their order."""
    events: list[str] = []

    @contextlib.contextmanager
    def place():
        events.append(f"in {threading.current_thread().name}")
        yield
        events.append("out")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        told: asyncio.Future[None] = loop.create_future()
        here = InPlace(loop, lambda: None)

        def calls() -> None:
            while not here.run(place(), lambda: handler(), tasks.append):
                threading.Event().wait(0.001)  # until the loop waits
            loop.call_soon_threadsafe(told.set_result, None)

        threading.Thread(target=calls, name="calls").start()
        await told
        then_do = then()
        for task in tasks:
            if then_do == "cancel":
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        events.append(f"{len(tasks)} on the loop")

    with asyncio.Runner(loop_factory=LentLoop) as runner:
        runner.run(asyncio.wait_for(main(), 20))
    return events


def test_a_handler_that_waits_for_nothing_ends_in_place():
    seen = []

    async def handler() -> None:
        seen.append((threading.current_thread().name, type(asyncio.get_running_loop())))

    assert served(handler) == ["in calls", "out", "0 on the loop"]
    assert seen == [("calls", LentLoop)]


def test_what_a_handler_waits_for_is_waited_for_on_the_loop():
    seen, futures = [], []

    async def handler() -> None:
        futures.append(asyncio.get_running_loop().create_future())
        seen.append(await futures[0])
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await asyncio.sleep(0.001)
        with pytest.raises(ValueError, match="told"):
            await failing()
        seen.append(threading.current_thread().name)

    async def failing() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("told"))
        await future

    events = served(handler, lambda: futures[0].set_result("given"))
    assert events == ["in calls", "out", "1 on the loop"]
    assert seen == ["given", "MainThread"]


def test_a_handler_that_waits_can_be_cancelled():
    seen = []

    async def handler() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    assert served(handler, lambda: "cancel") == ["in calls", "out", "1 on the loop"]
    assert seen == ["cancelled", "cleaned up"]
