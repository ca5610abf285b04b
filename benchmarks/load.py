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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

TICK = 0.004  # to wake for each call by itself would take as much of the cores as making it

# Begins call number n, and gives how it ended when it has: "ok", or the reason of a refusal.
Call = Callable[[int], Awaitable[str]]


@dataclass
class Outcome:
    """What came of some seconds of load: seconds from the intended moment to the end, by how a call ended."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=dict)

    def add(self, ended: str, latency: float) -> None:
        """Note one call."""
        self.latencies.setdefault(ended, []).append(latency)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies.get("ok", ())) / self.seconds

    @property
    def counts(self) -> dict[str, int]:
        """How many calls ended how."""
        return dict(Counter({ended: len(found) for ended, found in self.latencies.items()}))

    def quantile(self, share: float, ended: str = "ok") -> float:
        """Milliseconds that `share` of the calls that ended so took at most; NaN where none did."""
        found = self.latencies.get(ended)
        return 1_000 * float(np.quantile(found, share)) if found else float("nan")


async def closed_loop(call: Call, clients: int, seconds: float) -> Outcome:
    """`clients` that each make the next call when the last is answered."""
    outcome, numbers = Outcome(), itertools.count()
    began = time.perf_counter()

    async def client() -> None:
        while (now := time.perf_counter()) < began + seconds:
            outcome.add(await call(next(numbers)), time.perf_counter() - now)

    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def open_loop(call: Call, rate: float, seconds: float, seed: int = 0) -> Outcome:
    """`rate` calls a second at random moments (a Poisson process), made whether or not earlier ones are answered.

    Every `TICK` seconds those that are due are made; their latency counts from their own moment all the same.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    outcome, running = Outcome(), set()
    began = time.perf_counter()

    def begin(number: int, intended: float) -> None:
        def ended(call: asyncio.Future[str]) -> None:
            running.discard(call)
            outcome.add(call.result(), time.perf_counter() - intended)

        running.add(begun := asyncio.ensure_future(call(number)))
        begun.add_done_callback(ended)

    for number, moment in enumerate((began + np.cumsum(gaps)).tolist()):
        if (ahead := moment - time.perf_counter()) > 0:
            await asyncio.sleep(max(ahead, TICK))
        begin(number, moment)
    outcome.seconds = time.perf_counter() - began
    while running:
        await asyncio.wait(running)
    return outcome


def without(outcome: Outcome, endings: Sequence[str]) -> dict[str, int]:
    """The calls that ended in another way than these."""
    return {ended: count for ended, count in outcome.counts.items() if ended not in endings}
