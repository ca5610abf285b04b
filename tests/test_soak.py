"""An hour of a server's life in minutes: everybody searches, changes, publishes, gives up and sends nonsense while
models come and go and the server is stopped and killed; every answer is the exact reference's for the state it names.

SOAK_SECONDS sets how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fakes import COLOURS, ColourRuntime, ListSource, TurnedRuntime, picture
from server_process import running

from data.errors import SnapshotError
from serving.async_client import AsyncSearchClient
from serving.client_errors import ServiceError
from serving.client_values import Upload
from serving.embedded_store import EmbeddedStore
from serving.index_job import build_index

SECONDS = float(os.environ.get("SOAK_SECONDS", 600))
LIFE, PAUSE = 25.0, 7.0  # seconds of one server process; between publications
SEARCHERS, WRITERS = 4, 3
TEXTS = [f"{first} and {second}" for first in COLOURS for second in COLOURS]
IDS = [f"new-{number:03}" for number in range(300)]
# What a client may be told while servers come and go, deadlines pass and requests make no sense.
FORGIVEN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"}
NONSENSE = frozenset({"INVALID_ARGUMENT", "UNIMPLEMENTED"})
RUNTIME = ColourRuntime()


@dataclass
class Answer:
    """A search and what came back."""

    text: str
    revision: str
    ids: list[str]
    scores: list[float]


@dataclass
class Journal:
    """What the clients were told: answers, and each acknowledged change by its number (None: a deletion)."""

    answers: list[Answer] = field(default_factory=list)
    changes: dict[int, tuple[str, np.ndarray | None]] = field(default_factory=dict)
    ended: Counter = field(default_factory=Counter)
    growth: list[dict[str, tuple[int, int]]] = field(default_factory=list)  # of each life: early and late

    def refused(self, who: str, code: str, text: str, also: frozenset[str] = frozenset()) -> None:
        """A refusal that is part of such a life; any other fails."""
        assert code in FORGIVEN | also, (who, code, text)
        self.ended[who, code] += 1


class Clients:
    """Everybody who uses the server, whichever process it is just now, until `ended` is set."""

    def __init__(self, address: str, index: Path, journal: Journal) -> None:
        self.journal, self.ended = journal, asyncio.Event()
        self._address, self._index = address, index

    def all(self) -> list[Coroutine[Any, Any, None]]:
        """What each of them does."""
        several = [self._searcher(n) for n in range(SEARCHERS)] + [self._writer(n) for n in range(WRITERS)]
        return [*several, self._nonsense(), self._leaver(), self._impatient(), self._publisher(), self._changer()]

    async def _forgiven(self, who: str, error: ServiceError) -> None:
        self.journal.refused(who, error.code, f"{error.reason} {error}")
        await asyncio.sleep(0.02)  # nobody asks without a pause for what is away

    async def _searcher(self, number: int) -> None:
        drawn = random.Random(f"searcher {number}")
        async with AsyncSearchClient(self._address, timeout=20) as client:
            while not self.ended.is_set():
                text, k = drawn.choice(TEXTS), drawn.choice((1, 5, 20))
                try:
                    found = await client.search(text, k=k, exact=drawn.random() < 0.2)
                except ServiceError as error:
                    await self._forgiven("search", error)
                    continue
                self.journal.ended["search", "OK"] += 1
                ids, scores = [hit.image_id for hit in found], [hit.score for hit in found]
                self.journal.answers.append(Answer(text, found.index_revision, ids, scores))

    async def _writer(self, number: int) -> None:
        """Changes images of its own share of the ids, each until it is acknowledged."""
        drawn = random.Random(f"writer {number}")
        async with AsyncSearchClient(self._address, timeout=20) as client:
            while not self.ended.is_set():
                image_id, colour = drawn.choice(IDS[number::WRITERS]), drawn.choice(list(COLOURS))
                data = picture(colour, seed=drawn.randrange(10_000)) if drawn.random() < 0.8 else None
                await self._change(client, image_id, data, str(uuid.UUID(int=drawn.getrandbits(128))))

    async def _change(self, client: AsyncSearchClient, image_id: str, data: bytes | None, request_id: str) -> None:
        vector = None if data is None else stored(RUNTIME.embed_images([data])[0])
        while True:
            try:
                if data is None:
                    version = await client.delete_image(image_id, request_id=request_id)
                else:
                    upload = Upload(image_id, data, captions=("new",), request_id=request_id)
                    version = (await client.upsert_image(upload)).version
            except ServiceError as error:
                await self._forgiven("write", error)
                continue
            assert self.journal.changes.setdefault(version, (image_id, vector))[0] == image_id
            self.journal.ended["write", "OK"] += 1
            return

    async def _nonsense(self) -> None:
        drawn = random.Random("nonsense")
        async with grpc.aio.insecure_channel(self._address) as channel:
            while not self.ended.is_set():
                service, method = drawn.choice((("Search", "Search"), ("Image", "UpsertImage"), ("Index", "Invented")))
                call = channel.unary_unary(f"/imageretrieval.v1.{service}Service/{method}")
                try:
                    await call(drawn.randbytes(drawn.choice((0, 1, 40, 5_000))), timeout=20)
                except grpc.aio.AioRpcError as error:
                    self.journal.refused("nonsense", error.code().name, error.details(), NONSENSE)

    async def _leaver(self) -> None:
        """Goes away in the middle of streams."""
        drawn = random.Random("leaver")
        while not self.ended.is_set():
            async with AsyncSearchClient(self._address, timeout=20) as client:
                taken = 0
                try:
                    async with contextlib.aclosing(client.stream_search(drawn.choices(TEXTS, k=200))) as answers:
                        async for _, result in answers:
                            if isinstance(result, ServiceError):
                                self.journal.refused("stream", result.code, f"{result.reason} {result}")
                            taken += 1
                            if taken == 20:
                                break
                except ServiceError as error:
                    await self._forgiven("stream", error)
                self.journal.ended["stream", "left"] += 1

    async def _impatient(self) -> None:
        async with AsyncSearchClient(self._address) as client:
            while not self.ended.is_set():
                try:
                    await client.search("red and blue", k=3, timeout=0.002)
                except ServiceError as error:
                    await self._forgiven("impatient", error)

    async def _publisher(self) -> None:
        async with AsyncSearchClient(self._address, timeout=20) as client:
            while not self.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), PAUSE)
                try:
                    done = await client.wait(await client.publish(), timeout=60)
                    self.journal.ended["publish", "OK"] += done.done and done.error is None
                except ServiceError as error:
                    if error.code == "FAILED_PRECONDITION" and "one that is running" in error.message:
                        self.journal.ended["publish", "later"] += 1  # the other model is being published
                    elif error.code != "NOT_FOUND":  # the operations of a server end with it
                        await self._forgiven("publish", error)

    async def _changer(self) -> None:
        """Publishes the index by the other model, which the server goes over to."""
        for model in itertools.cycle((TurnedRuntime(), RUNTIME)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 2 * PAUSE)
            if self.ended.is_set():
                return
            try:
                await asyncio.to_thread(build_index, model, ListSource(), self._index)
                self.journal.ended["other model", "OK"] += 1
            except SnapshotError:  # a publication is under way
                self.journal.ended["other model", "later"] += 1


def stored(vector: np.ndarray) -> np.ndarray:
    """A vector as an index keeps it."""
    return vector.astype(np.float16).astype(np.float32)


def held(process) -> dict[str, int]:
    """What a process has of what it must not gather."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return {
        "megabytes": int(status["VmRSS"].split()[0]) // 1024,
        "threads": int(status["Threads"]),
        "files": len(list(Path(f"/proc/{process.pid}/fd").iterdir())),
    }


async def held_in_peace(process) -> dict[str, int]:
    """The least that a process has within some seconds: while it goes over to another model, it has two of them."""
    seen = []
    for _ in range(8):
        seen.append(held(process))
        await asyncio.sleep(0.5)
    return {name: min(one[name] for one in seen) for name in seen[0]}


def states(journal: Journal, base: dict[str, np.ndarray], wanted: set[int]):
    """The images after each of the changes in `wanted`, by the number of the change."""
    images = dict(base)
    first = min(journal.changes, default=1)
    numbers = sorted(journal.changes)
    for number in sorted(wanted):
        while numbers and numbers[0] <= number:
            image_id, vector = journal.changes[numbers.pop(0)]
            images.pop(image_id, None)
            if vector is not None:
                images[image_id] = vector
        assert number < first or number in journal.changes or number == first - 1, number
        yield number, images


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_no_answer_is_wrong_and_nothing_acknowledged_is_lost(tmp_path):
    index = tmp_path / "index"
    build_index(RUNTIME, ListSource(), index)
    with contextlib.closing(EmbeddedStore.open(index, writable=False)) as store, store.view() as view:
        ids = [image.image_id for image in view.page("", 1_000)]
        base = dict(zip(ids, view.vectors(ids), strict=True))
    journal = Journal()
    asyncio.run(live(index, journal))
    check(journal, base, index)


async def live(index: Path, journal: Journal) -> None:
    """Servers come and go, by SIGTERM and by SIGKILL in turn, while the clients go on."""
    address = free_address()
    clients = Clients(address, index, journal)
    end = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        for work in clients.all():
            group.create_task(work)
        tasks, lives = set(group._tasks), 0
        while not clients.ended.is_set():
            with running(index, "writable", address=address) as (process, _):
                async with AsyncSearchClient(address, timeout=20) as client:
                    await client.wait_until_ready(60)
                await asyncio.sleep(LIFE / 3)
                early = await held_in_peace(process)
                await asyncio.sleep(LIFE * 2 / 3)
                late = await held_in_peace(process)
                journal.growth.append({name: (early[name], late[name]) for name in late})
                if time.monotonic() >= end:
                    clients.ended.set()
                    await asyncio.wait(tasks)
                await stop(process, kill=lives % 2 == 1)
            lives += 1


async def stop(process, kill: bool) -> None:
    """End a server as an operator does, or as a power cut does."""
    if kill:
        process.kill()
        return
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.to_thread(process.communicate, timeout=40)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors


def check(journal: Journal, base: dict[str, np.ndarray], index: Path) -> None:
    """Compare every answer with the exact one, and the last state with what was acknowledged."""
    print(dict(journal.ended), journal.growth)
    by_sequence: dict[int, list[Answer]] = {}
    for answer in journal.answers:
        by_sequence.setdefault(int(answer.revision.rpartition("-")[2]), []).append(answer)
    for number, images in states(journal, base, set(by_sequence)):
        names, matrix = list(images), np.stack(list(images.values()))
        for answer in by_sequence[number]:
            scores = matrix @ RUNTIME.embed_texts([answer.text])[0]
            order = np.lexsort((names, -scores))[: len(answer.ids)]
            np.testing.assert_allclose(answer.scores, scores[order], atol=1e-5)
            found = dict(zip(names, scores, strict=True))
            np.testing.assert_allclose([found[image_id] for image_id in answer.ids], answer.scores, atol=1e-5)
    ((_, images),) = states(journal, base, {max(journal.changes)})
    with contextlib.closing(EmbeddedStore.open(index, writable=False)) as store, store.view() as view:
        assert {image.image_id for image in view.page("", 10_000)} == set(images)
        turned = 3 if store.fingerprint == TurnedRuntime().fingerprint else 0
        np.testing.assert_allclose(
            view.vectors(list(images)), np.roll(list(images.values()), turned, axis=1), atol=1e-3
        )
    assert journal.ended["other model", "OK"]
    assert journal.ended["publish", "OK"]
    assert journal.ended["search", "OK"] > 50 * len(journal.growth)
    assert journal.ended["write", "OK"] > 50 * len(journal.growth)
    for early_and_late in journal.growth:
        assert early_and_late["threads"][1] <= early_and_late["threads"][0] + 4, early_and_late
        assert early_and_late["files"][1] <= early_and_late["files"][0] + 16, early_and_late
        assert early_and_late["megabytes"][1] <= early_and_late["megabytes"][0] + 64, early_and_late
