"""The embedded store does what every store does, and what a plain dictionary would, whatever is reopened, published,
compacted or rolled back in between."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stored_index import FINGERPRINT, publish_batch
from vector_store_contract import DIMENSION, INITIAL, VectorStoreContract, exact_answer, unit_vector, upsert

from data.errors import FingerprintMismatch, QueryError, SnapshotError
from serving.acknowledged_mark import MARK
from serving.change_log import ChangeLog
from serving.compaction import compact
from serving.embedded_store import EmbeddedStore
from serving.log_file import LOG
from serving.publish import roll_back
from serving.snapshot import current_name, snapshot_names
from serving.vector_store import Delete, StoreReadOnly, Upsert


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    index = tmp_path_factory.mktemp("published") / "index"
    publish_batch(index, INITIAL, DIMENSION)
    return index


@pytest.fixture
def index(published, tmp_path):
    shutil.copytree(published, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def store(index):
    opened = EmbeddedStore.open(index, FINGERPRINT)
    yield opened
    opened.close()


def contents(store: EmbeddedStore) -> dict[str, int]:
    """The ids there are, and the number of each image."""
    with store.view() as view:
        return {image.image_id: image.attributes["number"] for image in view.page("", 10_000)}


def republish(store, images, corrected=False):
    publish_batch(store.index, images, DIMENSION, corrected=corrected)
    store.refresh()


class TestEmbeddedStore(VectorStoreContract):
    @pytest.fixture
    def opened(self, index):
        return lambda: EmbeddedStore.open(index, FINGERPRINT)

    @pytest.fixture
    def republish(self):
        return republish


class TestStoreWithOffsets(VectorStoreContract):
    """A model with a hubness correction: whatever is not asked by text is as ever."""

    @pytest.fixture
    def opened(self, tmp_path):
        initial = [dataclasses.replace(image, offset=0.01 * number) for number, image in enumerate(INITIAL)]
        publish_batch(tmp_path / "index", initial, DIMENSION, corrected=True)
        return lambda: EmbeddedStore.open(tmp_path / "index", FINGERPRINT)

    @pytest.fixture
    def republish(self):
        return functools.partial(republish, corrected=True)


def test_queries_by_text_take_offsets_off_before_and_after_a_compaction(tmp_path):
    index = tmp_path / "index"
    images = {image.image_id: dataclasses.replace(image, offset=0.02 * n) for n, image in enumerate(INITIAL)}
    publish_batch(index, images.values(), DIMENSION, corrected=True)
    store = EmbeddedStore.open(index, FINGERPRINT)
    changed = [upsert("new", 101, offset=0.9), upsert("img-001", 102, offset=0.05), upsert("low", 103, offset=-0.3)]
    store.apply([*changed, Delete("img-002")])
    images = {**images, **{image.image_id: image for image in changed}}
    del images["img-002"]
    query = unit_vector(5)
    expected = {
        name: float(np.float64(query) @ image.vector.astype(np.float16)) - float(np.float16(image.offset))
        for name, image in images.items()
    }
    order = sorted(expected, key=lambda name: (-expected[name], name))

    def check():
        with store.view() as view:
            for exact in (False, True):
                (found,) = view.search(query[np.newaxis], 40, by_text=True, exact=exact)
                assert [hit.image_id for hit in found] == order
                np.testing.assert_allclose([hit.score for hit in found], [expected[name] for name in order], atol=1e-6)
            (plain,) = view.search(query[np.newaxis], 40)
            assert [hit.image_id for hit in plain] == [name for _, name in exact_answer(images, query, 40)]
            assert view.vectors(["new", "img-005"]).shape == (2, DIMENSION)
        return found, plain

    before = check()
    compact(index)
    store.refresh()
    assert check() == before
    for offset in (1.5, float("nan")):
        with pytest.raises(QueryError, match="hubness correction"):
            store.apply([upsert("x", 1, offset=offset)])
    store.close()


def test_a_compaction_changes_no_answer_and_empties_the_log(index, store):
    store.apply([upsert("new", 101), upsert("img-001", 102), Delete("img-002"), upsert("gone", 3), Delete("gone")])
    query = unit_vector(5)[np.newaxis]
    with store.view() as view:
        before, images = view.search(query, 40), view.page("", 100)
        vectors = view.vectors([image.image_id for image in images])
    former = current_name(index)
    name = compact(index)
    store.refresh()
    with store.view() as view:
        assert view.snapshot == name
        assert view.changes == 0
        assert view.search(query, 40) == before
        assert view.page("", 100) == images
        np.testing.assert_array_equal(view.vectors([image.image_id for image in images]), vectors)
    assert snapshot_names(index) == sorted([former, name])
    compact(index)
    store.refresh()
    store.apply([upsert("new", 105)])
    store.close()
    log = ChangeLog.open(index, writable=False)
    assert log.check() == 1  # both snapshots hold the rest
    log.close()


def test_enough_changes_start_a_compaction_by_themselves(index):
    first = current_name(index)
    store = EmbeddedStore.open(index, compact_after=50)
    number = 0
    while True:
        store.apply([upsert(f"new-{number % 70:02}", number)])
        number += 1
        with store.view() as view:
            if view.snapshot != first:
                break
    assert len(contents(store)) == len(INITIAL) + min(number, 70)
    store.close()


def test_changes_during_a_compaction_stand_above_it(index, store, monkeypatch):
    import serving.publish

    real = serving.publish.verify_snapshot

    def change_and_verify(*arguments):
        store.apply([upsert("meanwhile", 7), Delete("img-004")])
        real(*arguments)

    store.apply([upsert("before", 6)])
    monkeypatch.setattr(serving.publish, "verify_snapshot", change_and_verify)
    compact(index)
    store.refresh()
    with store.view() as view:
        assert view.changes == 2
    found = contents(store)
    assert found["before"] == 6
    assert found["meanwhile"] == 7
    assert "img-004" not in found


def test_a_rollback_loses_no_change(index, store):
    first = current_name(index)
    store.apply([upsert("a", 1)])
    compact(index)
    store.refresh()
    store.apply([upsert("b", 2), Delete("img-000")])
    before = contents(store)
    assert roll_back(index) == first
    store.refresh()
    with store.view() as view:
        assert view.snapshot == first
    assert contents(store) == before


def test_a_build_neither_brings_back_nor_replaces_what_was_changed_online(index, store):
    store.apply([Delete("img-001"), upsert("img-002", 202), upsert("own", 203)])
    for _ in range(2):  # the second finds the deletion and the upserts in the snapshot
        publish_batch(index, [upsert(f"img-{n:03}", n) for n in range(4)] + [upsert("more", 9)], DIMENSION)
        store.refresh()
        assert contents(store) == {"img-000": 0, "img-002": 202, "img-003": 3, "more": 9, "own": 203}
    publish_batch(index, [upsert(f"img-{n:03}", n) for n in range(4)], DIMENSION, replace_online=True)
    store.refresh()
    assert contents(store) == {"img-000": 0, "img-001": 1, "img-002": 2, "img-003": 3, "own": 203}


def test_a_view_outlives_the_snapshot_it_was_taken_from(index, store):
    query = unit_vector(3)[np.newaxis]
    with store.view() as view:
        before = view.search(query, 30)
        for number in range(3):
            store.apply([upsert(f"new-{number}", number)])
            compact(index)
            store.refresh()
        assert view.search(query, 30) == before
        assert view.snapshot in snapshot_names(index)
        assert view.get(["new-0"]) == [None]


def test_a_reader_follows_a_writer(index, store):
    reader = EmbeddedStore.open(index, writable=False)
    with pytest.raises(StoreReadOnly):
        reader.apply([Delete("img-000")])
    store.apply([Delete("img-000"), upsert("new", 1)])
    assert contents(reader) == contents(store)
    compact(index)
    store.refresh()
    store.apply([upsert("newer", 2)])
    reader.refresh()
    assert contents(reader) == contents(store)
    reader.close()


def test_a_reader_needs_no_writer(index):
    with EmbeddedStore.open(index, writable=False).view() as view:
        assert len(view) == len(INITIAL)


def test_one_process_writes(index, store):
    with pytest.raises(StoreReadOnly, match="running"):
        EmbeddedStore.open(index)
    store.close()
    EmbeddedStore.open(index).close()


def test_another_models_index_is_refused(index):
    with pytest.raises(FingerprintMismatch):
        EmbeddedStore.open(index, "another")
    EmbeddedStore.open(index).close()  # which a refused opening has not locked


def test_many_threads_change_and_search_at_once(index, store):
    ended = threading.Event()

    def search() -> None:
        while not ended.is_set():
            with store.view() as view:
                (found,) = view.search(unit_vector(1)[np.newaxis], 5)
                assert all(image is not None for image in view.get([hit.image_id for hit in found]))

    def change(worker: int) -> list[int]:
        receipts = [store.apply([upsert(f"w{worker}-{n}", n), upsert("shared", worker)]) for n in range(25)]
        return [version for receipt in receipts for version in receipt.versions]

    with ThreadPoolExecutor(10) as pool:
        searches = [pool.submit(search) for _ in range(2)]
        versions = [version for found in pool.map(change, range(8)) for version in found]
        ended.set()
        for searched in searches:
            searched.result()
    assert len(set(versions)) == len(versions) == 8 * 25 * 2
    found = contents(store)
    assert len(found) == len(INITIAL) + 8 * 25 + 1
    store.close()
    reopened = EmbeddedStore.open(index)
    assert contents(reopened) == found
    reopened.close()


def test_a_lost_or_altered_log_is_refused(index, store):
    store.apply([upsert(f"new-{number}", number) for number in range(50)])
    store.close()
    kept = (index / LOG).read_bytes()
    (index / LOG).unlink()
    with pytest.raises(SnapshotError, match="changes"):
        EmbeddedStore.open(index)
    place = kept.index(b"picture 31")
    (index / LOG).write_bytes(kept[:place] + b"PICTURE" + kept[place + 7 :])
    with pytest.raises(SnapshotError, match=r"missing or altered|refuses"):
        EmbeddedStore.open(index)
    (index / LOG).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(SnapshotError):
        EmbeddedStore.open(index)
    (index / LOG).write_bytes(kept)
    EmbeddedStore.open(index).close()


def test_a_log_that_ends_before_an_acknowledged_change_is_refused(index, store):
    store.apply([upsert("first", 1)])
    store.close()
    shutil.copy(index / LOG, index / "kept")
    store = EmbeddedStore.open(index)
    store.apply([upsert("second", 2)])
    store.close()
    (index / "kept").replace(index / LOG)
    with pytest.raises(SnapshotError, match="acknowledged"):
        EmbeddedStore.open(index)
    (index / MARK).unlink()
    EmbeddedStore.open(index).close()


IDS = st.sampled_from([f"img-{number:03}" for number in range(5)] + ["a", "b", "nul\x00", "é", "z" * 30])
SEEDS = st.integers(0, 60)


class StoreMachine(RuleBasedStateMachine):
    """The store against a dictionary of what was applied, and one of what sources hold."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.index = Path(self.directory.name) / "index"
        self.images: dict[str, Upsert] = {}
        self.online: dict[str, bool] = {}  # image_id → whether it is there, for those changed online
        self.versions: dict[str, int] = {}

    @initialize()
    def start(self) -> None:
        publish_batch(self.index, INITIAL[:6], DIMENSION)
        self.images = {image.image_id: image for image in INITIAL[:6]}
        self.versions = dict.fromkeys(self.images, 1)
        self.store = EmbeddedStore.open(self.index)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(changes=st.lists(st.tuples(IDS, st.one_of(st.none(), SEEDS), st.booleans()), min_size=1, max_size=4))
    def apply(self, changes: list) -> None:
        versions, batch = dict(self.versions), []
        for image_id, seed, conditional in changes:
            condition = {"if_version": versions.get(image_id, 0)} if conditional and image_id not in batch else {}
            batch.append(Delete(image_id, **condition) if seed is None else upsert(image_id, seed, **condition))
            versions[image_id] = 0 if seed is None else -1
        # A version within the batch is not known before; only the first change of an image may name one.
        seen: set[str] = set()
        batch = [c if c.image_id not in seen and not seen.add(c.image_id) else _unconditional(c) for c in batch]
        receipt = self.store.apply(batch)
        for change, version in zip(batch, receipt.versions, strict=True):
            self.online[change.image_id] = isinstance(change, Upsert)
            if isinstance(change, Upsert):
                self.images[change.image_id], self.versions[change.image_id] = change, version
            else:
                self.images.pop(change.image_id, None)
                self.versions.pop(change.image_id, None)

    @rule(count=st.integers(1, 12))
    def build(self, count: int) -> None:
        publish_batch(self.index, INITIAL[:count], DIMENSION)
        source = {image.image_id: image for image in INITIAL[:count] if image.image_id not in self.online}
        self.images = {name: image for name, image in self.images.items() if self.online.get(name)} | source
        self.versions = {name: version for name, version in self.versions.items() if self.online.get(name)}
        self.versions |= dict.fromkeys(source, 1)
        self.store.refresh()
        self.can_roll_back = False  # sources have changed: the former snapshot is another state

    can_roll_back = False

    @rule()
    def fold(self) -> None:
        compact(self.index)
        self.store.refresh()
        self.can_roll_back = True

    @precondition(lambda self: self.can_roll_back)
    @rule()
    def back(self) -> None:
        roll_back(self.index)
        self.store.refresh()
        self.can_roll_back = False

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = EmbeddedStore.open(self.index)

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.view() as view:
            assert len(view) == len(self.images)
            page = view.page("", 1_000)
            assert [image.image_id for image in page] == sorted(self.images)
            assert {image.image_id: image.version for image in page} == self.versions
            assert [image.attributes for image in page] == [self.images[i.image_id].attributes for i in page]
            query = unit_vector(3)
            (found,) = view.search(query[np.newaxis], 5)
            assert [hit.image_id for hit in found] == [name for _, name in exact_answer(self.images, query, 5)]


def _unconditional(change):
    return (
        Delete(change.image_id) if isinstance(change, Delete) else upsert(change.image_id, change.attributes["number"])
    )


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
