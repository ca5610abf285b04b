"""A process that prepares a data set and kills itself at a given decode or record; prints how many of each it made.

python prepare_driver.py SOURCE OUT SHARD_SIZE DECODES RECORDS    (0: it lives)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import checked_images, shards
from data.prepare import PrepareSettings, prepare
from data.sources import open_source


def counting(function: Callable[..., Any], last: int) -> tuple[Callable[..., Any], list[int]]:
    """`function`, whose call number `last` is the end of the process."""
    calls = [0]
    lock = threading.Lock()

    def counted(*arguments: object) -> Any:
        with lock:
            calls[0] += 1
            if calls[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return counted, calls


checked_images.decode, decodes = counting(checked_images.decode, int(sys.argv[4]))
shards._example, records = counting(shards._example, int(sys.argv[5]))
prepare(open_source(sys.argv[1]), Path(sys.argv[2]), PrepareSettings(shard_size=int(sys.argv[3])))
print(decodes[0], records[0])
