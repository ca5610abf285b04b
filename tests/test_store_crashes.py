"""Whenever the process dies, nothing acknowledged is lost, nothing deleted returns, and the store opens: checked
against a journal of what the process said before it died."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from store_driver import LABELS, content
from stored_index import publish_batch
from vector_store_contract import DIMENSION, INITIAL, unit_vector

from data.durable import digest_bytes
from serving.embedded_store import EmbeddedStore
from serving.inspection import verify
from serving.uploaded_images import image_path

ROOT = Path(__file__).resolve().parent.parent

# What a change leaves of an image: the seed of its vector, or None for none.
Left = dict[str, "int | None"]


class Journal:
    """What a store must hold: by image, what acknowledged changes left, and what unacknowledged ones may have left."""

    def __init__(self) -> None:
        self.certain: Left = {image.image_id: number for number, image in enumerate(INITIAL)}
        self.acknowledged = 0

    def check(self, index: Path, said: list[str]) -> None:
        """The store is what the journal and the lines of one more round allow; the journal then follows it."""
        open_requests: dict[int, list] = {}
        for line in said:
            word, _, rest = line.partition(" ")
            if word == "try":
                number, _, batch = rest.split(" ", 2)
                open_requests[int(number)] = json.loads(batch)
            elif word == "ack":
                self.certain.update(open_requests.pop(int(rest)))
                self.acknowledged += 1
        with closing(EmbeddedStore.open(index)) as store, store.view() as view:
            found = {image.image_id: image.attributes["number"] for image in view.page("", 10_000)}
            assert len(view) == len(found)
            for batch in open_requests.values():  # each whole or not at all
                after = self.certain | dict(batch)
                if any(found.get(name) != self.certain.get(name) for name, _ in batch):
                    assert all(found.get(name) == after[name] for name, _ in batch), batch
                    self.certain = after
            assert found == {name: left for name, left in self.certain.items() if left is not None}
            names = sorted(found)
            for image in view.page("", 10_000):
                if image.digest == digest_bytes(content(image.attributes["number"])):  # not what the batch job brought
                    assert image_path(index, image.digest).read_bytes() == content(image.attributes["number"])
            expected = np.stack([unit_vector(found[name]).astype(np.float16) for name in names])
            np.testing.assert_array_equal(view.vectors(names), expected)
            for name in random.sample(names, 5):
                best = view.search(unit_vector(found[name])[np.newaxis], 30)[0]
                assert found[best[0].image_id] == found[name]
                assert {hit.image_id for hit in best} <= found.keys()


class Driver:
    """The process that forks the children that die."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "store_driver.py")], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def round(self, index: Path, seed: int, fail: tuple[str, int] | None, seconds: float) -> tuple[list[str], int]:
        """Let a child work until it dies at `fail`, or `seconds` after its first acknowledgement.

        Returns what it said, and its exit code.
        """
        print(json.dumps({"index": str(index), "seed": seed, "fail": fail}), file=self.process.stdin, flush=True)
        child = int(self.process.stdout.readline().removeprefix("child "))
        # A child that does not die where it should is no reason to wait for ever.
        timer = threading.Timer(
            60.0 if fail else seconds, os.kill, (child, signal.SIGKILL if not fail else signal.SIGTERM)
        )
        said: list[str] = []
        for line in self.process.stdout:
            line = line.rstrip("\n")
            if line.startswith("ended "):
                timer.cancel()
                return said, int(line.removeprefix("ended "))
            said.append(line)
            if line.startswith("ack ") and timer.ident is None:
                timer.start()
        raise AssertionError("the driver ended")

    def close(self) -> None:
        """End the driver."""
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def driver():
    started = Driver()
    yield started
    started.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("crashes") / "index"
    publish_batch(place, INITIAL, DIMENSION)
    return place


@pytest.fixture(scope="module")
def journal():
    return Journal()


@pytest.mark.parametrize("time", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("label", LABELS)
def test_nothing_acknowledged_is_lost_wherever_the_process_dies(driver, index, journal, label, time):
    said, code = driver.round(index, LABELS.index(label), (label, time), seconds=0)
    assert code == -signal.SIGKILL, "it died where it should"
    journal.check(index, said)


def run_rounds(driver: Driver, index: Path, journal: Journal, rounds: int) -> None:
    rng = random.Random(rounds)
    before = journal.acknowledged
    for number in range(rounds):
        said, code = driver.round(index, number, None, seconds=rng.uniform(0, 0.4))
        assert code == -signal.SIGKILL
        journal.check(index, said)
    assert journal.acknowledged > before + rounds
    assert all(not problem for _, problem in verify(index)), verify(index)


def test_nothing_acknowledged_is_lost_at_random_moments(driver, index, journal):
    run_rounds(driver, index, journal, 20)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_at_two_hundred_random_moments(driver, index, journal):
    run_rounds(driver, index, journal, 200)
