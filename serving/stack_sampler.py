"""Profiles a running process on demand: what every thread was doing, many times a second; knows nothing of what runs.

The file has a line for each stack with the number of times it was seen, which flame graph tools read (the "collapsed"
format of Brendan Gregg's FlameGraph; speedscope.app opens it too).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from data.durable import write_atomic

SECONDS, INTERVAL = 10.0, 0.01


def start_profile(directory: Path, seconds: float = SECONDS) -> threading.Thread:
    """Write `profile-TIME.txt` to `directory` after some seconds; the thread ends then."""
    thread = threading.Thread(target=_profile, args=(directory, seconds), name="profile", daemon=True)
    thread.start()
    return thread


def _profile(directory: Path, seconds: float) -> None:
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    own = threading.get_ident()
    while time.monotonic() < end:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != own:
                seen[";".join([names.get(ident, "?"), *_stack(frame)])] += 1
        time.sleep(INTERVAL)
    lines = "".join(f"{stack} {count}\n" for stack, count in seen.most_common())
    write_atomic(directory / f"profile-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.txt", lines.encode())


def _stack(frame: FrameType | None) -> list[str]:
    """The functions of a stack, outermost first."""
    found = []
    while frame is not None:
        code = frame.f_code
        found.append(f"{Path(code.co_filename).stem}.{code.co_qualname}")
        frame = frame.f_back
    return found[::-1]
