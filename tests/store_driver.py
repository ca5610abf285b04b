"""Changes, publishes, compacts and rolls back an index until it is killed, telling every step on standard output.

`store_driver.py` reads a line of JSON for each round, `{"index": …, "seed": …, "fail": [label, count] or null}`, forks
a child that works, and prints its process id; `tests/test_store_crashes.py` kills it and knows what it said. The
child's lines: `try N THREAD [[id, seed or null] …]` before a request, `ack N` after it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stored_index import publish_batch
from vector_store_contract import DIMENSION, INITIAL, upsert

import data.durable
from serving import change_log, compaction, publish, unused_images
from serving.change_log import ChangeLog
from serving.delta import Delta
from serving.embedded_store import EmbeddedStore
from serving.publish import roll_back
from serving.staged_snapshot import StagedSnapshot
from serving.vector_store import Delete, Upsert

THREADS = 3
GRACE_SECONDS = 5.0  # between keeping an image and the change that names it; here some milliseconds
IDS = 12  # of each thread; as many of what the batch job brings are its own too


def die() -> None:
    """What a power failure does to a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def killing(real: Callable[..., Any], when: str, count: int, chosen: Callable[..., bool]) -> Callable[..., Any]:
    """`real`, with an end before or after its `count`-th call among those that are `chosen`."""
    calls = itertools.count(1)

    @functools.wraps(real)
    def call(*arguments: Any, **options: Any) -> Any:
        last = chosen(*arguments) and next(calls) == count
        if last and when == "before":
            die()
        result = real(*arguments, **options)
        if last:
            die()
        return result

    return call


class KillingConnection(sqlite3.Connection):
    """Dies before or after the `count`-th commit, whichever thread it is of."""

    when, count, commits = "before", 0, itertools.count(1)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        last = statement == "COMMIT" and next(self.commits) == self.count
        if last and self.when == "before":
            die()
        cursor = super().execute(statement, *values)
        if last:
            die()
        return cursor


# What is called at each point where a process may die: the place, and which of the calls count.
PLACES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "mark": (ChangeLog, "_write_mark", lambda *_: True),
    "show": (Delta, "apply", lambda *_: True),
    "prune": (ChangeLog, "prune", lambda log, sequence: sequence > log.pruned),
    "finish staging": (StagedSnapshot, "finish", lambda *_: True),
    "digests": (publish, "directory_digests", lambda *_: True),
    "manifest": (publish, "write_atomic", lambda path, _: path.name == "manifest.json"),
    "rename": (data.durable, "move_directory", lambda *_: True),
    "verify": (publish, "verify_snapshot", lambda *_: True),
    "flip": (publish, "write_atomic", lambda path, _: path.name == "CURRENT"),
    "remove snapshot": (publish, "_remove_unread", lambda *_: True),
    "remove files": (publish.shutil, "rmtree", lambda path, *_: Path(path).parent.name == "snapshots"),
    "load snapshot": (EmbeddedStore, "_above", lambda *_: True),
    "remove image": (unused_images, "remove_image", lambda *_: True),
    "roll back": (publish, "_make_live", lambda *_: True),
}
LABELS = [f"{when} {place}" for place in (*PLACES, "COMMIT") for when in ("before", "after")]


def arm(label: str, count: int) -> None:
    """Let this process die at a place."""
    when, _, place = label.partition(" ")
    if place == "COMMIT":
        KillingConnection.when, KillingConnection.count = when, count
        real = sqlite3.connect
        change_log.sqlite3.connect = functools.partial(real, factory=KillingConnection)
        return
    owner, name, chosen = PLACES[place]
    setattr(owner, name, killing(getattr(owner, name), when, count, chosen))


def content(made: int) -> bytes:
    """The bytes of the image that an upsert uploads."""
    return f"image {made}".encode()


def uploaded(store: EmbeddedStore, name: str, made: int) -> Upsert:
    """An upsert; every third one uploads its image, as a server keeps it."""
    return upsert(name, made, **({} if made % 3 else {"digest": store.keep_image(content(made))}))


def work(index: Path, seed: int) -> None:
    """Change the index from several threads, and publish meanwhile, until the end."""
    unused_images.GRACE_SECONDS = GRACE_SECONDS
    store = EmbeddedStore.open(index)
    numbers, say = itertools.count(1), threading.Lock()

    def tell(line: str) -> None:
        with say:
            os.write(1, f"{line}\n".encode())

    def change(thread: int) -> None:
        rng = random.Random(f"{seed} {thread}")
        own = [f"t{thread}-{n}" for n in range(IDS)] + [i.image_id for i in INITIAL[thread::THREADS][:IDS]]
        while True:
            batch = [(rng.choice(own), rng.choice([None, rng.randrange(10_000)])) for _ in range(rng.choice([1, 1, 5]))]
            number = next(numbers)
            tell(f"try {number} {thread} {json.dumps(batch)}")
            store.apply([Delete(name) if made is None else uploaded(store, name, made) for name, made in batch])
            tell(f"ack {number}")

    for thread in range(THREADS):
        threading.Thread(target=change, args=[thread], daemon=True).start()
    rng = random.Random(seed)
    # Every place is reached within one turn; their order is the seed's.
    while True:
        steps = [lambda: compaction.compact(index), lambda: publish_batch(index, INITIAL, DIMENSION)]
        for step in rng.sample(steps, 2):
            step()
            store.refresh()
        roll_back(index)
        store.refresh()


def main() -> None:
    """Fork a child for each line."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            try:
                if order["fail"]:
                    arm(*order["fail"])
                work(Path(order["index"]), order["seed"])
            except BaseException:
                traceback.print_exc()
            os._exit(1)  # an error: nobody asked it to end
        print(f"child {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
