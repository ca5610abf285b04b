"""What requests may hold of the memory, from their first byte to the end of their call; knows no gRPC.

gRPC for Python tells of a request when all of it has come, so that its size cannot be refused before. What can be done:
whoever is not let in has nothing read (`call_guard`), but for the few of `core_server.REQUESTS_AHEAD`; what is there is
counted until it is answered; and while the process holds more than it may, requests that take their time to come are
given up, the oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serving.overload import Overloaded
from serving.settings_sources import setting

T = TypeVar("T")

_log = logging.getLogger(__name__)

MIB = 1 << 20
PATIENCE_SECONDS = 0.1  # a request that takes no longer is never given up
SWEEP_SECONDS = 0.1  # between two looks at what is coming
TELL_SECONDS = 60.0  # at least, between two lines in the log
TRIM_SECONDS = 1.0  # at least, between two times that free memory is handed back
_SHARE = 0.75  # of the machine's memory
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class MemorySettings:
    """What requests may make the server hold."""

    requests_mib: int = setting(
        512, "requests that are answered at one time, of all callers; as much again in streams", "MIB", 64
    )
    process_mib: int = setting(
        0, "memory above which requests that come slowly are given up; 0: three quarters of what there is", "MIB", 0
    )


class RequestMemory:
    """What all requests of a process hold. Belongs to one event loop; `used` gives the bytes that the process has."""

    def __init__(self, settings: MemorySettings, used: Callable[[], int] | None = None) -> None:
        self._limit = settings.process_mib * MIB or round(_SHARE * memory_there())
        self._most = settings.requests_mib * MIB
        self._used = used or process_memory
        self._coming: dict[asyncio.Timeout, float] = {}  # in the order of their beginnings
        self._calls = self._streams = 0
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._trimmed = self._told = -math.inf

    async def come(self, message: Awaitable[T]) -> T:
        """Wait for a message. `Overloaded` when it is given up because memory is short."""
        if isinstance(message, asyncio.Future) and message.done():
            return message.result()
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_SECONDS, self._sweep)
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._coming[patience] = loop.time()
                try:
                    return await message
                finally:
                    del self._coming[patience]
        except TimeoutError:
            if not patience.expired():
                raise
            raise Overloaded("memory is short, and this request came slowly", 1.0) from None

    def hold(self, size: int) -> None:
        """Count a call's request, until `release`. `Overloaded` when calls hold too much."""
        if self._calls and self._calls + size > self._most:
            raise Overloaded(f"{self._calls / MIB:,.0f} MiB of requests before this", 0.5)
        self._calls += size

    def release(self, size: int) -> None:
        """The call has ended."""
        self._calls -= size

    async def room_in_streams(self) -> None:
        """Wait until there is room for another message of a stream."""
        await self._room.wait()

    def hold_in_stream(self, size: int) -> None:
        """Count a message of a stream, until `release_in_stream`."""
        self._streams += size
        if self._streams >= self._most:
            self._room.clear()

    def release_in_stream(self, size: int) -> None:
        """The message has its answer, or its stream has ended."""
        self._streams -= size
        if self._streams < self._most:
            self._room.set()

    def give_up_slow(self) -> None:
        """While memory is short, give up the older half of what has been coming for long. The next time it is half of
        the rest: soon there is none, however much each of them holds."""
        now = asyncio.get_running_loop().time()
        slow = [each for each, since in self._coming.items() if now - since >= PATIENCE_SECONDS]
        if not slow or not self._short():
            return
        for each in slow[: (len(slow) + 1) // 2]:
            each.reschedule(now)
        if now - self._told > TELL_SECONDS:
            self._told = now
            _log.warning("more than %d MiB are used: requests that come slowly are given up", self._limit // MIB)

    def _sweep(self) -> None:
        self.give_up_slow()
        self._timer = None
        if self._coming:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _short(self) -> bool:
        """Whether the process has more than it may, also when what is free has been handed back."""
        if self._used() <= self._limit:
            return False
        now = time.monotonic()
        if now - self._trimmed < TRIM_SECONDS:
            return True
        self._trimmed = now
        hand_back()
        return self._used() > self._limit


def process_memory() -> int:
    """Bytes of this process's own: without files that are mapped, such as those of an index."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * _PAGE


def memory_there(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the machine has, or that a container or a service manager leaves of them."""
    limits = [os.sysconf("SC_PHYS_PAGES") * _PAGE]
    with contextlib.suppress(OSError):
        group = groups / own.read_text().rpartition("::")[2].strip().lstrip("/")
        for each in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                limits.append(int((each / "memory.max").read_text()))
    return min(limits)


def hand_back() -> None:
    """Give memory that was freed back to the system, which the C library keeps for the next time."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
