"""One job publishes in an index at a time: what is short is waited for, a build is not; knows no snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from data import console
from data.durable import only_process
from data.errors import SnapshotError

LOCK = "LOCK"
BUILD = "build"  # what `only_builder` does not wait for
_LOOK_SECONDS = 0.1


@contextmanager
def only_builder(index: Path, job: str = BUILD) -> Iterator[bool]:
    """Hold the lock of those who publish in `index`, which ends with the process; `job` says what for.

    Waits while another holds it for what is short, such as a compaction, and gives whether it had to; `SnapshotError`
    when a build holds it, which may take hours.
    """
    if not index.is_dir():
        raise SnapshotError("an index", f"nothing at {index}", "build one: python -m serving.build_index --help")
    lock = index / LOCK
    lock.touch()
    busy = SnapshotError(f"no other build in {index}", "one that is running", "wait for it, or choose another index")
    with ExitStack() as held:
        waited, before = False, ""
        while not _entered(held, only_process(lock, busy)):
            held_for = lock.read_text("utf-8", errors="replace")
            # Twice, for who has just taken the lock may not have written yet what for.
            if held_for == before == BUILD:
                raise busy
            if held_for != BUILD and not waited:
                console.say(f"waiting for a {held_for or 'job'} under way in {index}")
                waited = True
            before = held_for
            time.sleep(_LOOK_SECONDS)
        with suppress(OSError):  # of a full disk: it is only said for others
            lock.write_text(job, "utf-8")
        try:
            yield waited
        finally:
            with suppress(OSError):
                lock.write_text("", "utf-8")


def _entered(held: ExitStack, lock: AbstractContextManager[None]) -> bool:
    try:
        held.enter_context(lock)
    except SnapshotError:
        return False
    return True
