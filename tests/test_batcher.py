"""The batcher never waits when idle, forms batches while busy, and drops what nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.batcher import HERE_SECONDS, Batcher, QueueLimits, Turn
from serving.overload import Overloaded


class Gate:
    """A function to run in batches: records each batch, and holds it until it is opened."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = asyncio.Event()
        self.opened = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self._loop.call_soon_threadsafe(self.started.set)
        assert self.opened.wait(20)
        if -1 in items:
            raise ValueError("a bad item")
        return [item * 10 for item in items]


def run(scenario) -> None:
    """Run `scenario(batcher, gate)` with batches of at most 4."""

    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            try:
                await asyncio.wait_for(scenario(Batcher(gate, executor, Turn(1), max_batch=4), gate), 20)
            finally:
                gate.opened.set()

    asyncio.run(main())


async def occupied(batcher: Batcher, gate: Gate) -> asyncio.Task:
    """Start a batch of one that is running when this returns."""
    task = asyncio.create_task(batcher.submit([0]))
    await gate.started.wait()
    return task


async def waiting(batcher: Batcher, item: int, deadline: float | None = None) -> asyncio.Task:
    """Start a call that has joined the queue when this returns."""
    before = len(batcher._waiting)
    task = asyncio.create_task(batcher.submit([item], deadline))
    while len(batcher._waiting) == before:
        await asyncio.sleep(0)
    return task


def test_an_idle_batcher_runs_a_single_item_at_once():
    async def scenario(batcher, gate):
        gate.opened.set()
        assert await batcher.submit([7]) == [70]
        assert gate.batches == [[7]]

    run(scenario)


def test_what_arrives_while_busy_forms_full_batches_in_order():
    async def scenario(batcher, gate):
        first = await occupied(batcher, gate)
        others = [await waiting(batcher, item) for item in range(1, 7)]
        gate.opened.set()
        assert await first == [0]
        assert await asyncio.gather(*others) == [[item * 10] for item in range(1, 7)]
        assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]

    run(scenario)


def test_a_call_with_many_items_gets_its_results_in_order():
    async def scenario(batcher, gate):
        gate.opened.set()
        assert await batcher.submit(range(1, 11)) == [item * 10 for item in range(1, 11)]
        assert [len(batch) for batch in gate.batches] == [4, 4, 2]
        assert await batcher.submit([]) == []

    run(scenario)


def test_cancelled_calls_cost_no_work():
    async def scenario(batcher, gate):
        first = await occupied(batcher, gate)
        gone, stays = await waiting(batcher, 1), await waiting(batcher, 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.opened.set()
        assert await stays == [20]
        assert await first == [0]
        assert gate.batches == [[0], [2]]

    run(scenario)


def test_calls_whose_deadline_has_passed_are_told_and_cost_no_work():
    async def scenario(batcher, gate):
        first = await occupied(batcher, gate)
        now = asyncio.get_running_loop().time()
        late, early = await waiting(batcher, 1, deadline=now), await waiting(batcher, 2, deadline=now + 100)
        gate.opened.set()
        with pytest.raises(TimeoutError):
            await late
        assert await early == [20]
        assert await first == [0]
        assert gate.batches == [[0], [2]]

    run(scenario)


def test_a_failing_batch_tells_its_callers_and_the_next_one_runs():
    async def scenario(batcher, gate):
        first = await occupied(batcher, gate)
        bad = [await waiting(batcher, item) for item in (-1, 2)]
        gate.opened.set()
        assert await first == [0]
        for result in await asyncio.gather(*bad, return_exceptions=True):
            assert isinstance(result, ValueError)
        assert await batcher.submit([3]) == [30]

    run(scenario)


def test_a_caller_that_leaves_during_its_batch_harms_nobody():
    async def scenario(batcher, gate):
        first = await occupied(batcher, gate)
        first.cancel()
        other = await waiting(batcher, 1)
        gate.opened.set()
        assert await other == [10]

    run(scenario)


def test_batchers_that_share_a_turn_alternate():
    async def main():
        order: list[str] = []
        gate = threading.Event()
        loop, started = asyncio.get_running_loop(), asyncio.Event()

        def runner(name):
            def call(items):
                order.append(name)
                loop.call_soon_threadsafe(started.set)
                assert gate.wait(20)
                return items

            return call

        turn = Turn(1)
        with ThreadPoolExecutor(2) as executor:
            texts = Batcher(runner("text"), executor, turn, max_batch=1)
            images = Batcher(runner("image"), executor, turn, max_batch=1)
            calls = [asyncio.create_task(images.submit([1, 2, 3]))]
            await started.wait()
            calls.append(await waiting(texts, 1))
            gate.set()
            await asyncio.gather(*calls)
        assert order == ["image", "text", "image", "image"]

    asyncio.run(main())


def test_bulk_items_wait_for_the_others_and_run_few_at_once():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        batcher.bulk_batch = 2
        first = await occupied(batcher, gate)
        bulk = asyncio.create_task(batcher.submit([1, 2, 3], bulk=True))
        while not batcher._bulk:
            await asyncio.sleep(0)
        later = await waiting(batcher, 4)
        gate.opened.set()
        assert await bulk == [10, 20, 30]
        await asyncio.gather(first, later)
        assert gate.batches == [[0], [4], [1, 2], [3]]

    run(scenario)


@pytest.mark.parametrize(
    ("limits", "bulk", "deadline", "refused"),
    [
        (QueueLimits(items=2, seconds=9), False, None, True),
        (QueueLimits(items=3, seconds=9), False, None, False),
        (QueueLimits(seconds=1.9), False, None, True),
        (QueueLimits(seconds=2.1), False, None, False),
        (QueueLimits(bulk_seconds=0.9), True, None, True),
        (QueueLimits(bulk_seconds=1.1), True, None, False),
        (QueueLimits(seconds=9), False, 2.5, True),
        (QueueLimits(seconds=9), False, 60.0, False),
    ],
)
def test_what_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back(limits, bulk, deadline, refused):
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        first = await occupied(batcher, gate)
        second = await waiting(batcher, 1)
        batcher.limits, batcher._item_seconds = limits, 1.0  # one runs and one waits: two seconds
        until = None if deadline is None else asyncio.get_running_loop().time() + deadline
        third = asyncio.create_task(batcher.submit([2], until, bulk=bulk))
        await asyncio.sleep(0)
        assert third.done() is refused
        gate.opened.set()
        if refused:
            with pytest.raises(Overloaded) as refusal:
                await third
            assert refusal.value.retry_after > 0
        else:
            assert await third == [20]
        await asyncio.gather(first, second)

    run(scenario)


def test_where_many_wait_batches_are_larger():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        batcher._crowd_batch = 8
        gate.opened.clear()
        first = await occupied(batcher, gate)
        calls = [await waiting(batcher, item) for item in range(1, 14)]
        gate.opened.set()
        assert await asyncio.gather(first, *calls) == [[10 * item] for item in range(14)]
        assert [len(batch) for batch in gate.batches] == [1, 8, 4, 1]

    run(scenario)


def test_items_that_are_coming_are_waited_for_too():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        assert batcher.refusal() is None
        first = await occupied(batcher, gate)
        batcher.limits, batcher._item_seconds = QueueLimits(seconds=3.5), 1.0
        assert batcher.refusal(coming=2) is None
        refusal = batcher.refusal(coming=3)
        assert refusal is not None
        assert refusal.retry_after == 2
        gate.opened.set()
        await first

    run(scenario)


def test_nothing_is_refused_that_finds_nothing_before_it():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        batcher.limits, batcher._item_seconds = QueueLimits(items=1, seconds=0.0), 100.0
        gate.opened.set()
        assert await batcher.submit([1, 2, 3, 4, 5], asyncio.get_running_loop().time() + 20) == [10, 20, 30, 40, 50]

    run(scenario)


def test_each_lane_runs_a_batch_and_what_comes_meanwhile_forms_the_next():
    async def main():
        gate = Gate()
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(gate, executor, Turn(2), max_batch=4, lanes=2)
            calls = []
            for item in (0, 1):
                gate.started.clear()
                calls.append(asyncio.create_task(batcher.submit([item])))
                await gate.started.wait()
            assert batcher.waiting == 2
            calls += [await waiting(batcher, item) for item in (2, 3, 4)]
            gate.opened.set()
            assert await asyncio.gather(*calls) == [[item * 10] for item in range(5)]
        assert sorted(gate.batches[:2]) == [[0], [1]]
        assert gate.batches[2:] == [[2, 3, 4]]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_bulk_items_leave_a_lane_to_others():
    async def main():
        gate = Gate()
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(gate, executor, Turn(2), max_batch=2, lanes=2)
            bulk = asyncio.create_task(batcher.submit([1, 2, 3, 4], bulk=True))
            await gate.started.wait()
            gate.started.clear()
            other = asyncio.create_task(batcher.submit([9]))
            await gate.started.wait()
            assert gate.batches == [[1, 2], [9]]
            gate.opened.set()
            assert await other == [90]
            assert await bulk == [10, 20, 30, 40]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_bulk_items_have_a_part_of_each_batch_while_others_keep_coming():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        first = await occupied(batcher, gate)
        bulk = asyncio.create_task(batcher.submit([100, 200], bulk=True))
        while not batcher._bulk:
            await asyncio.sleep(0)
        others = [await waiting(batcher, item) for item in range(1, 10)]
        gate.opened.set()
        await asyncio.gather(first, bulk, *others)
        assert gate.batches == [[0], [1, 2, 3, 4, 100], [5, 6, 7, 8, 200], [9]]

    run(scenario)


def test_one_slow_batch_does_not_make_it_refuse_for_long():
    """Batches that stay small, for all others are refused, tell all the same that items are quick again."""

    async def scenario(batcher: Batcher, gate: Gate) -> None:
        batcher.bulk_batch, batcher._item_seconds = 16, 10.0
        gate.opened.set()
        for item in range(600):
            await batcher.submit([item])
        gate.opened.clear()
        gate.started.clear()
        first = await occupied(batcher, gate)
        second = await waiting(batcher, 1)
        gate.opened.set()
        assert await asyncio.gather(first, second) == [[0], [10]]

    run(scenario)


def test_results_reach_those_who_still_wait_when_the_threads_are_stopped():
    async def main():
        gate = Gate()
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(gate, executor, Turn(), max_batch=1)
        first, second = asyncio.create_task(batcher.submit([1])), await waiting(batcher, 2)
        await gate.started.wait()
        stopping = asyncio.get_running_loop().run_in_executor(None, lambda: executor.shutdown(cancel_futures=True))
        while not executor._shutdown:
            await asyncio.sleep(0)
        gate.opened.set()
        assert await first == [10]
        with pytest.raises(RuntimeError, match="shutdown"):
            await second
        await stopping

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize(("ahead", "handed_over"), [(0, [1]), (1, [1, 2]), (2, [1, 2, 2])])
def test_full_batches_wait_in_the_executor_and_others_in_the_batcher(ahead: int, handed_over: list[int]):
    async def main():
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(gate, executor, Turn(), max_batch=2, ahead=ahead)
            calls = [await occupied(batcher, gate)]
            calls += [asyncio.create_task(batcher.submit([item])) for item in range(1, 6)]
            await asyncio.sleep(0)
            assert batcher._running == handed_over
            assert batcher.waiting == 6
            gate.opened.set()
            assert await asyncio.gather(*calls) == [[item * 10] for item in range(6)]
        assert gate.batches == [[0], [1, 2], [3, 4], [5]]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_nothing_goes_ahead_of_another_batcher_that_waits_for_its_turn():
    async def main():
        gate, turn = Gate(), Turn()
        with ThreadPoolExecutor(1) as executor:
            texts = Batcher(gate, executor, turn, max_batch=1, ahead=1)
            images = Batcher(gate, executor, turn, max_batch=1)
            calls = [await occupied(texts, gate), await waiting(images, 100)]
            calls += [await waiting(texts, item) for item in (1, 2)]
            gate.opened.set()
            await asyncio.gather(*calls)
        assert gate.batches == [[0], [100], [1], [2]]

    asyncio.run(asyncio.wait_for(main(), 20))


def here(scenario) -> None:
    """Run `scenario(batcher, ran)`; `ran` is told the thread of each batch and its items, of which -1 is a bad one."""
    ran = []

    def work(items: list[int]) -> list[int]:
        ran.append((threading.current_thread().name, list(items)))
        if -1 in items:
            raise ValueError("a bad item")
        return [item * 10 for item in items]

    async def main() -> None:
        with ThreadPoolExecutor(2, thread_name_prefix="elsewhere") as executor:
            await asyncio.wait_for(scenario(Batcher(work, executor, Turn(2), max_batch=4, lanes=2), ran), 20)

    asyncio.run(main())


def test_an_item_in_place_is_run_at_once_by_who_starts_it():
    async def scenario(batcher: Batcher, ran: list) -> None:
        assert batcher.place() is None  # how long an item takes is not known yet
        await batcher.submit([1])
        with batcher.place():
            future = batcher.start(2)
            assert future.done()
            assert batcher.start(3).result() == 30
        assert await future == 20
        with batcher.place():
            failed = batcher.start(-1)
        with pytest.raises(ValueError, match="a bad item"):
            await failed
        assert (batcher.waiting, batcher._turn._free) == (0, 2)
        await batcher.submit([4])
        assert [items for _, items in ran] == [[1], [2], [3], [-1], [4]]
        threads = ["here" if name == "MainThread" else name.partition("_")[0] for name, _ in ran]
        assert threads == ["elsewhere", "here", "here", "here", "elsewhere"]

    here(scenario)


def test_there_is_no_place_for_what_takes_long_nor_beside_others():
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        gate.opened.set()
        await batcher.submit([1])
        assert batcher.place() is not None
        batcher._alone_seconds = 2 * HERE_SECONDS
        assert batcher.place() is None
        batcher._alone_seconds = 0.0
        gate.opened.clear()
        gate.started.clear()
        first = await occupied(batcher, gate)
        assert batcher.place() is None
        gate.opened.set()
        await first
        assert batcher.place() is not None

    run(scenario)
