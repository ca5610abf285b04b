"""One job publishes in an index at a time: what is short is waited for, a build is not."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from stored_index import publish_batch
from vector_store_contract import DIMENSION, INITIAL, upsert

from data.errors import SnapshotError
from serving.builder_lock import only_builder
from serving.compaction import compact, rebuild
from serving.embedded_store import EmbeddedStore
from serving.publish import roll_back
from serving.snapshot import current_name


@pytest.fixture
def index(tmp_path):
    for count in (9, 10):
        publish_batch(tmp_path / "index", INITIAL[:count], DIMENSION)
    return tmp_path / "index"


@pytest.fixture
def waits(monkeypatch):
    """An event for each time that somebody says that he waits."""
    event = threading.Event()
    monkeypatch.setattr("serving.builder_lock.console.say", lambda text: event.set() if "waiting" in text else None)
    return event


def while_held(index, job: str, waits: threading.Event, work) -> list:
    """What `work` returns, which begins while another holds the lock for `job` and waits until that ends."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    with only_builder(index, job):
        thread.start()
        assert waits.wait(30)
        assert not results
    thread.join()
    return results


@pytest.mark.parametrize(
    "work",
    [compact, roll_back, rebuild, lambda index: publish_batch(index, INITIAL[:11], DIMENSION)],
    ids=["compact", "rollback", "rebuild", "build"],
)
def test_a_compaction_under_way_is_waited_for(index, waits, work):
    with closing(EmbeddedStore.open(index)) as store:
        store.apply([upsert("new", 1)])
    before = current_name(index)
    assert while_held(index, "compaction", waits, lambda: work(index)) == [current_name(index)]
    assert current_name(index) != before


@pytest.mark.parametrize("work", [compact, roll_back, rebuild, lambda index: publish_batch(index, [], DIMENSION)])
def test_a_build_under_way_is_told(index, work):
    before = current_name(index)
    with only_builder(index), pytest.raises(SnapshotError, match="one that is running"):
        work(index)
    assert current_name(index) == before
    compact(index)  # once it has ended


def test_a_compaction_that_waited_for_one_that_took_everything_along_makes_no_other(index, waits):
    before = current_name(index)
    assert while_held(index, "compaction", waits, lambda: compact(index)) == [before] == [current_name(index)]
