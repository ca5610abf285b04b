"""A caller's share: the rate holds whatever comes when, the told delay is the true one, places are given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.caller_limits import CallerLimits, LimitExceeded, LimitSettings


class Clock:
    """Stands still until it is moved."""

    now = 1_000.0

    def __call__(self):
        return self.now


@given(
    rate=st.floats(0.1, 1_000),
    burst=st.floats(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 64)), min_size=1, max_size=50),
)
def test_no_caller_gets_more_than_its_rate_and_the_told_delay_is_enough(rate, burst, steps):
    clock = Clock()
    limits = CallerLimits(LimitSettings(rate=rate, burst=burst), clock)
    account = limits.enter("a", bulk=False)
    admitted, largest = 1, 1
    for pause, items in steps:
        clock.now += pause
        try:
            limits.charge(account, items)
        except LimitExceeded as refusal:
            clock.now += refusal.retry_after
            limits.charge(account, items)  # as told, there is enough now
        admitted, largest = admitted + items, max(largest, items)
    assert admitted <= (burst + rate * (clock.now - Clock.now) + largest) * (1 + 1e-6)


def test_a_batch_above_the_burst_is_let_in_and_paid_for_afterwards():
    clock = Clock()
    limits = CallerLimits(LimitSettings(rate=10, burst=5), clock)
    account = limits.enter("a", bulk=True)
    clock.now += 1
    limits.charge(account, 25)
    with pytest.raises(LimitExceeded) as refusal:
        limits.charge(account, 1)
    assert refusal.value.retry_after == pytest.approx(2.1)  # from -20 to 1, at 10 a second


def test_callers_do_not_share_what_they_may():
    limits = CallerLimits(LimitSettings(rate=1, burst=1), Clock())
    limits.enter("a", bulk=False)
    limits.enter("b", bulk=False)
    with pytest.raises(LimitExceeded):
        limits.enter("a", bulk=False)


def test_places_are_given_back_and_bulk_calls_have_fewer():
    limits = CallerLimits(LimitSettings(concurrent_calls=3, concurrent_bulk_calls=1))
    bulk = limits.enter("a", bulk=True)
    with pytest.raises(LimitExceeded, match="this caller asks for too much: 1 calls with much work"):
        limits.enter("a", bulk=True)
    one = limits.enter("a", bulk=False)
    limits.enter("a", bulk=False)
    with pytest.raises(LimitExceeded, match="3 calls"):
        limits.enter("a", bulk=False)
    limits.leave(one, bulk=False, seconds=2.0)
    limits.enter("a", bulk=False)
    limits.leave(bulk, bulk=True, seconds=2.0)
    limits.enter("a", bulk=True)


def test_the_delay_for_a_place_follows_how_long_the_callers_calls_take():
    limits = CallerLimits(LimitSettings(concurrent_calls=4))
    limits.leave(limits.enter("a", bulk=False), bulk=False, seconds=2.0)
    for _ in range(4):
        limits.enter("a", bulk=False)
    with pytest.raises(LimitExceeded) as refusal:
        limits.enter("a", bulk=False)
    assert refusal.value.retry_after == pytest.approx(0.5)  # one of four ends in a quarter of the time that one takes


def test_the_table_of_callers_is_bounded_and_forgets_no_running_call():
    limits = CallerLimits(LimitSettings(callers=3, concurrent_calls=1))
    running = limits.enter("running", bulk=False)
    for number in range(100):
        limits.leave(limits.enter(number, bulk=False), bulk=False, seconds=0.1)
    assert len(limits) == 3
    with pytest.raises(LimitExceeded):
        limits.enter("running", bulk=False)
    for number in range(2):
        limits.enter(f"also {number}", bulk=False)
    with pytest.raises(LimitExceeded, match="callers"):
        limits.enter("one more", bulk=False)
    limits.leave(running, bulk=False, seconds=0.1)
    limits.enter("one more", bulk=False)
