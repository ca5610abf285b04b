"""Where the threads that a session has of its own run: on other cores than the thread that they work for; knows no
model.

Linux prefers an idle core for a thread that is woken, but on a virtual machine it takes a core that sleeps for one
that the host has given to others (`available_idle_cpu` and `vcpu_is_preempted` in its scheduler). After a pause, the
thread that runs a model and the one that it wakes to help then share a core, until Linux divides them some
milliseconds later: a text takes twice as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_TASKS = Path("/proc/self/task")
_numbers = itertools.count()


class WorkerThreads:
    """Threads of this process, by the system's numbers."""

    def __init__(self, threads: Sequence[int]) -> None:
        self._threads = threads
        self._cores: set[int] = os.sched_getaffinity(0) if threads else set()
        self._left: int | None = None  # the core that they keep off

    @classmethod
    def begun_by(cls, make: Callable[[], T]) -> tuple[T, WorkerThreads]:
        """What `make` returns, and the threads that it began; none where they cannot be told."""
        if sys.platform != "linux":
            return make(), cls(())
        made: list[T] = []
        failed: list[BaseException] = []
        name = f"tower-{next(_numbers)}"

        def named() -> None:  # in a thread of its own: those that it begins have its name too
            try:
                with contextlib.suppress(OSError):
                    (_TASKS / str(threading.get_native_id()) / "comm").write_text(name)
                made.append(make())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=named)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0], cls([number for number in _called(name) if number != thread.native_id])

    def leave_core(self) -> None:
        """Let them run on any core but that of this thread, which is about to wake them."""
        if not self._threads:
            return
        core = _this_core()
        others = self._cores - {core}
        if core == self._left or not others:
            return
        try:
            for thread in self._threads:
                os.sched_setaffinity(thread, others)
        except OSError:  # they have ended, or the cores are others now
            self._threads = ()
        self._left = core


def _called(name: str) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if (task / "comm").read_text().strip() == name:
                    found.append(int(task.name))
    return found


try:
    _this_core: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
except (AttributeError, OSError, TypeError):  # another system
    _this_core = int
