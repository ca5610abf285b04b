"""Makes load on a service and keeps what came back: so many clients that wait for their answers, or so many calls a
second whether answers come or not; knows no service.

Latency is counted from the moment at which a call was meant to be made. A generator that waits for a slow answer
before it makes the next call would hide what everybody else waits for (Tene, "How NOT to measure latency", 2015).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

TICK = 0.01  # to wake for each call by itself would take as much of the cores as making it
LEAD = 0.5  # seconds of a load before its answers count in its rate: no queue is full yet

# Begins call number n, and gives how it ended when it has: "ok", or the reason of a refusal, which may be `Later`.
Call = Callable[[int], Awaitable[str]]


class Later(str):
    """How a call ended that may be made again after `delay` seconds."""

    delay: float

    def __new__(cls, ended: str, delay: float) -> Later:
        """Equal to the text."""
        made = super().__new__(cls, ended)
        made.delay = delay
        return made


@dataclass
class Outcome:
    """What came of some `seconds` of load: seconds from the intended moment to the end, by how a call ended.

    Calls that ended in the `LEAD` before these seconds, or after them, are among the latencies, and not in the rate.
    """

    seconds: float
    latencies: dict[str, list[float]] = field(default_factory=dict)
    answered: int = 0
    spent: float = 0.0  # seconds in which calls were made
    began: float = field(default_factory=lambda: time.perf_counter() + LEAD)

    def __post_init__(self) -> None:
        self.spent = self.spent or (self.seconds and LEAD + self.seconds)

    @property
    def until(self) -> float:
        """When no more calls are made, by `time.perf_counter`."""
        return self.began + self.seconds

    def add(self, ended: str, intended: float) -> None:
        """Note one call that ends now."""
        now = time.perf_counter()
        self.latencies.setdefault(ended, []).append(now - intended)
        self.answered += ended == "ok" and self.began <= now <= self.until

    def extend(self, other: Outcome) -> None:
        """Count what came of some more of the same load."""
        self.seconds, self.answered = self.seconds + other.seconds, self.answered + other.answered
        self.spent += other.spent
        for ended, found in other.latencies.items():
            self.latencies.setdefault(ended, []).extend(found)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    @property
    def counts(self) -> dict[str, int]:
        """How many calls ended how."""
        return dict(Counter({ended: len(found) for ended, found in self.latencies.items()}))

    def quantile(self, share: float, ended: str = "ok") -> float:
        """Milliseconds that `share` of the calls that ended so took at most; NaN where none did."""
        found = self.latencies.get(ended)
        return 1_000 * float(np.quantile(found, share)) if found else float("nan")


async def closed_loop(call: Call, clients: int, seconds: float) -> Outcome:
    """`clients` that each make the next call when the last is answered, or after the delay that they were told."""
    outcome, numbers = Outcome(seconds), itertools.count()

    async def client() -> None:
        while (now := time.perf_counter()) < outcome.until:
            ended = await call(next(numbers))
            outcome.add(ended, now)
            if isinstance(ended, Later):
                await asyncio.sleep(ended.delay)

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcome


async def one_after_another(call: Call, numbers: Iterable[int]) -> Outcome:
    """One client that makes the calls of these numbers, each when the last is answered."""
    began = time.perf_counter()
    outcome = Outcome(0.0, began=began)
    for number in numbers:
        intended = time.perf_counter()
        ended = await call(number)
        outcome.latencies.setdefault(ended, []).append(time.perf_counter() - intended)
        outcome.answered += ended == "ok"
    outcome.seconds = outcome.spent = time.perf_counter() - began
    return outcome


async def open_loop(call: Call, rate: float, seconds: float, seed: int = 0) -> Outcome:
    """`rate` calls a second at random moments (a Poisson process), made whether or not earlier ones are answered.

    Every `TICK` seconds those that are due are made; their latency counts from their own moment all the same.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * (LEAD + seconds)) + 10)
    outcome, running = Outcome(seconds), set()

    def begin(number: int, intended: float) -> None:
        def ended(call: asyncio.Future[str]) -> None:
            running.discard(call)
            outcome.add(call.result(), intended)

        running.add(begun := asyncio.ensure_future(call(number)))
        begun.add_done_callback(ended)

    moments = outcome.began - LEAD + np.cumsum(gaps)
    for number, moment in enumerate(moments[moments < outcome.until].tolist()):
        if (ahead := moment - time.perf_counter()) > 0:
            await asyncio.sleep(max(ahead, TICK))
        begin(number, moment)
    while running:
        await asyncio.wait(running)
    return outcome


def without(outcome: Outcome, endings: Sequence[str]) -> dict[str, int]:
    """The calls that ended in another way than these."""
    return {ended: count for ended, count in outcome.counts.items() if ended not in endings}
