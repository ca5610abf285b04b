"""A loop that waits can be borrowed by another thread; at no time do two threads run what belongs to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from serving.lent_loop import LentLoop

SECONDS = 20


def run(scenario, loop_factory=LentLoop, debug=False) -> None:
    """Run `scenario(loop)` on a new loop."""

    async def main() -> None:
        await asyncio.wait_for(scenario(asyncio.get_running_loop()), SECONDS)

    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        runner.run(main())


def borrowing(loop: LentLoop, work: Callable[[], None]) -> bool:
    """Whether `work` was done in the loop's place."""
    with loop.borrowed() as borrowed:
        if borrowed:
            work()
        return borrowed


async def in_a_thread(work: Callable[[], bool]) -> bool:
    """What it returns, in a thread that begins when the loop waits."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    found = []

    def until_it_waits() -> None:
        for _ in range(1_000):  # the loop may have something of its own to do just now
            if work():
                found.append(True)
                break
            threading.Event().wait(0.001)
        loop.call_soon_threadsafe(told.set)

    threading.Thread(target=until_it_waits).start()
    await told.wait()
    return bool(found)


def test_who_borrows_it_is_on_it_and_what_is_scheduled_then_runs_on_its_own_thread():
    async def scenario(loop: LentLoop) -> None:
        seen, ran = [], asyncio.Event()

        def work() -> None:
            seen.append(asyncio.get_running_loop())
            loop.call_soon(lambda: seen.append(threading.current_thread()))
            loop.call_later(0.01, ran.set)

        assert await in_a_thread(lambda: borrowing(loop, work))
        await ran.wait()  # the loop waited for nothing so soon when it was borrowed
        assert seen == [loop, threading.current_thread()]

    run(scenario)


def test_it_runs_nothing_while_it_is_borrowed():
    async def scenario(loop: LentLoop) -> None:
        order = []

        def work() -> None:
            told = threading.Event()
            loop.call_soon_threadsafe(lambda: (order.append("loop"), told.set()))
            assert not told.wait(0.1)
            order.append("borrower")

        assert await in_a_thread(lambda: borrowing(loop, work))
        await asyncio.sleep(0)
        assert order == ["borrower", "loop"]

    run(scenario)


def test_it_is_not_lent_while_it_is_at_work_nor_before_and_after():
    refused = []

    def ask(loop: LentLoop) -> None:
        thread = threading.Thread(target=lambda: refused.append(not borrowing(loop, lambda: None)))
        thread.start()
        thread.join(SECONDS)

    kept = []

    async def scenario(loop: LentLoop) -> None:
        kept.append(loop)
        ask(loop)  # in a callback of the loop, which waits for the thread

    idle = LentLoop()
    ask(idle)
    idle.close()
    run(scenario)
    ask(kept[0])
    assert refused == [True, True, True]


def test_a_loop_that_looks_for_mistakes_is_not_lent():
    async def scenario(loop: LentLoop) -> None:
        assert not await asyncio.to_thread(borrowing, loop, lambda: None)

    run(scenario, debug=True)


def test_what_fails_in_the_block_leaves_the_loop_to_others():
    async def scenario(loop: LentLoop) -> None:
        def fail() -> None:
            raise ValueError

        def work() -> bool:
            try:
                return borrowing(loop, fail)
            except ValueError:
                return True

        assert await in_a_thread(work)
        assert await in_a_thread(lambda: borrowing(loop, lambda: None))

    run(scenario)
