"""What many ask for at once is made once, for those who still want it."""

from __future__ import annotations

import asyncio

import pytest

from serving.single_flight import SingleFlight


class Maker:
    """Begins futures that the test finishes."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Future[str]] = []

    def __call__(self) -> asyncio.Future[str]:
        self.begun.append(asyncio.get_running_loop().create_future())
        return self.begun[-1]


def run(scenario) -> None:
    """Run `scenario(cache of two, maker)`."""

    async def main() -> None:
        await asyncio.wait_for(scenario(SingleFlight(2), Maker()), 20)

    asyncio.run(main())


async def asking(cache: SingleFlight[str, str], key: str, maker: Maker, deadline: float | None = None) -> asyncio.Task:
    """Someone who waits for the value when this returns."""
    task = asyncio.create_task(cache.get(key, maker, deadline))
    await asyncio.sleep(0)
    return task


async def made_anew(cache: SingleFlight[str, str], maker: Maker) -> bool:
    """Whether the value of "a" is made again for who asks now."""
    before = len(maker.begun)
    task = await asking(cache, "a", maker)
    maker.begun[-1].set_result("made")
    return await task == "made" and len(maker.begun) == before + 1


def test_all_who_ask_meanwhile_get_what_one_had_made_and_it_is_kept():
    async def scenario(cache, maker):
        tasks = [await asking(cache, "a", maker) for _ in range(3)]
        maker.begun[0].set_result("made")
        assert await asyncio.gather(*tasks) == ["made"] * 3
        assert await cache.get("a", maker) == "made"
        assert (len(maker.begun), cache.misses, cache.hits) == (1, 1, 3)

    run(scenario)


def test_the_values_used_last_are_kept():
    async def scenario(cache, maker):
        for key in "abac":
            task = await asking(cache, key, maker)
            for future in maker.begun:
                if not future.done():
                    future.set_result(key)
            await task
        assert [cache.peek(key) for key in "abc"] == ["a", None, "c"]

    run(scenario)


def test_who_gives_up_leaves_it_to_the_others():
    async def scenario(cache, maker):
        first, second = await asking(cache, "a", maker), await asking(cache, "a", maker)
        first.cancel()
        await asyncio.wait([first])
        assert not maker.begun[0].cancelled()
        maker.begun[0].set_result("made")
        assert await second == "made"

    run(scenario)


def test_the_last_who_gives_up_stops_it_and_nobody_joins_what_is_stopped():
    async def scenario(cache, maker):
        only = await asking(cache, "a", maker)
        only.cancel()
        await asyncio.wait([only])
        later = await asking(cache, "a", maker)
        assert maker.begun[0].cancelled()
        maker.begun[1].set_result("made")
        assert await later == "made"

    run(scenario)


def test_a_failure_is_told_to_all_and_not_kept():
    async def scenario(cache, maker):
        tasks = [await asking(cache, "a", maker) for _ in range(2)]
        maker.begun[0].set_exception(ValueError("no"))
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, ValueError)
        assert await made_anew(cache, maker)

    run(scenario)


def test_what_cannot_begin_is_told_and_leaves_nothing_behind():
    async def scenario(cache, maker):
        def refuse():
            raise ValueError("full")

        with pytest.raises(ValueError, match="full"):
            await cache.get("a", refuse)
        assert await made_anew(cache, maker)

    run(scenario)


def test_another_s_deadline_is_not_one_s_own():
    async def scenario(cache, maker):
        now = asyncio.get_running_loop().time()
        hasty, patient = await asking(cache, "a", maker, now), await asking(cache, "a", maker, now + 100)
        maker.begun[0].set_exception(TimeoutError())
        with pytest.raises(TimeoutError):
            await hasty
        while len(maker.begun) < 2:
            await asyncio.sleep(0)
        maker.begun[1].set_result("made")
        assert await patient == "made"

    run(scenario)


def test_what_is_there_as_soon_as_it_is_asked_for_is_kept_and_what_fails_so_is_not():
    async def scenario(cache: SingleFlight[str, str], maker: Maker) -> None:
        def at_once() -> asyncio.Future[str]:
            maker().set_result("made")
            return maker.begun[-1]

        def failing() -> asyncio.Future[str]:
            maker().set_exception(ValueError("told"))
            return maker.begun[-1]

        with pytest.raises(ValueError, match="told"):
            await cache.get("a", failing)
        assert await cache.get("a", at_once) == "made"
        assert await cache.get("a", failing) == "made"
        assert (cache.hits, cache.misses) == (1, 2)
        assert not cache._flights

    run(scenario)
