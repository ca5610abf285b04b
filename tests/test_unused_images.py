"""Uploaded images are removed when nothing names them any more, and never while something does."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stored_index import publish_batch
from vector_store_contract import DIMENSION, INITIAL, upsert

from serving import unused_images
from serving.backup import back_up, restore
from serving.change_log import ChangeLog
from serving.compaction import compact
from serving.embedded_store import EmbeddedStore
from serving.publish import roll_back
from serving.snapshot import SNAPSHOTS, open_snapshot, snapshot_names
from serving.unused_images import remove_unused_images
from serving.uploaded_images import IMAGES, image_path, keep_image
from serving.vector_store import Delete


def content(number: int) -> bytes:
    return f"image {number}".encode()


def age(index: Path) -> None:
    """As if a day had passed since every upload."""
    for path in (index / IMAGES).glob("??/*"):
        os.utime(path, (0, 0))


def kept(index: Path) -> set[str]:
    return {path.name for path in (index / IMAGES).glob("??/*")}


def named(index: Path) -> set[str]:
    """The digests of all that can be searched, or gone back to."""
    found = set()
    for name in snapshot_names(index):
        with closing(open_snapshot(index, name=name)) as snapshot:
            found |= {entry.digest for entry in snapshot.catalog}
            with closing(ChangeLog.open(index, writable=False)) as log:
                found |= {change.digest for change in log.after(snapshot.manifest.sequence)}
    return found


@pytest.fixture
def index(tmp_path):
    publish_batch(tmp_path / "index", INITIAL[:10], DIMENSION)
    return tmp_path / "index"


def add(store: EmbeddedStore, name: str, number: int) -> str:
    digest = store.keep_image(content(number))
    store.apply([upsert(name, number, digest=digest)])
    return digest


def fold(store: EmbeddedStore) -> None:
    compact(store.index)
    store.refresh()


def test_an_image_goes_with_the_last_snapshot_that_names_it(index):
    with closing(EmbeddedStore.open(index)) as store:
        digest, other = add(store, "a", 1), add(store, "b", 2)
        fold(store)
        store.apply([Delete("a")])
        age(index)
        fold(store)
        assert digest in kept(index), "a rollback needs it"
        fold(store)
        assert kept(index) == {other}


def test_what_was_uploaded_of_late_stays_although_no_change_names_it_yet(index):
    with closing(EmbeddedStore.open(index)) as store:
        old, young = store.keep_image(b"old"), store.keep_image(b"young")
        age(index)
        os.utime(image_path(index, young))
        assert remove_unused_images(index) == len(b"old")
        assert kept(index) == {young}
        store.apply([upsert("late", 1, digest=young)])
        assert store.keep_image(b"old") == old
        assert kept(index) == {old, young}


def test_an_image_that_is_uploaded_again_is_young_again(index):
    digest = keep_image(index, b"again")
    age(index)
    keep_image(index, b"again")
    assert remove_unused_images(index) == 0
    assert kept(index) == {digest}


def test_an_upload_in_the_middle_of_a_removal_keeps_its_image(index, monkeypatch):
    digest = keep_image(index, b"again")
    age(index)
    real = unused_images.remove_image

    def upload_first(*arguments):
        keep_image(index, b"again")
        return real(*arguments)

    monkeypatch.setattr(unused_images, "remove_image", upload_first)
    assert remove_unused_images(index) == 0
    assert kept(index) == {digest}


@pytest.mark.parametrize("file", ["manifest.json", "catalog.sqlite", "changes.sqlite"])
def test_nothing_is_removed_where_it_cannot_be_told_what_is_named(index, file):
    keep_image(index, b"unused")
    age(index)
    path = index / file if file == "changes.sqlite" else index / SNAPSHOTS / snapshot_names(index)[0] / file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if file != "changes.sqlite" else b"damage" * 1_000)
    assert remove_unused_images(index) == 0
    assert len(kept(index)) == 1


def test_what_a_killed_upload_left_goes_too(index):
    digest = keep_image(index, b"used")
    (image_path(index, digest).parent / f".{digest}.x.part").write_bytes(b"us")
    remove_unused_images(index)
    assert len(kept(index)) == 2
    age(index)
    with closing(EmbeddedStore.open(index)) as store:
        store.apply([upsert("a", 1, digest=digest)])
    remove_unused_images(index)
    assert kept(index) == {digest}


def test_a_backup_made_meanwhile_holds_what_it_names(index, tmp_path, monkeypatch):
    with closing(EmbeddedStore.open(index)) as store:
        digest, _ = add(store, "a", 1), add(store, "b", 2)
        store.apply([Delete("b")])
        fold(store)
        fold(store)
        age(index)
        real = ChangeLog.back_up

        def back_up_and_remove(log, path):
            real(log, path)
            remove_unused_images(index)

        monkeypatch.setattr(ChangeLog, "back_up", back_up_and_remove)
        back_up(index, tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "restored")
    assert kept(tmp_path / "restored") == {digest}


def test_uploads_and_removals_at_once_lose_nothing(index):
    """Images grow old between two removals, never in the middle of an upload or of a removal."""
    lost: list[str] = []
    between = threading.Lock()
    with closing(EmbeddedStore.open(index)) as store:

        def change(thread: int) -> None:
            for number in range(40):
                digest = add(store, f"t{thread}", 10 * thread + number % 7)
                if not image_path(index, digest).is_file():
                    lost.append(digest)
                if number % 3:
                    with between:
                        os.utime(image_path(index, digest), (0, 0))

        threads = [threading.Thread(target=change, args=[n]) for n in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with between:
                remove_unused_images(index)
        for thread in threads:
            thread.join()
    assert not lost
    assert named(index) - {image.digest for image in INITIAL} <= kept(index)


class UploadMachine(RuleBasedStateMachine):
    """Uploads, changes, publications and removals in any order: what can be searched or gone back to has its image."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.index = self.directory / "index"
        publish_batch(self.index, INITIAL[:3], DIMENSION)
        self.store = EmbeddedStore.open(self.index)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    @rule(name=st.sampled_from("abc"), number=st.integers(0, 5))
    def add(self, name: str, number: int) -> None:
        add(self.store, name, number)

    @rule(number=st.integers(0, 5))
    def upload_alone(self, number: int) -> None:
        self.store.keep_image(content(number))

    @rule(name=st.sampled_from("abc"))
    def delete(self, name: str) -> None:
        self.store.apply([Delete(name)])

    @rule()
    def a_day_passes(self) -> None:
        age(self.index)

    @rule()
    def fold(self) -> None:
        fold(self.store)

    @rule()
    def collect(self) -> None:
        remove_unused_images(self.index)

    @rule()
    def back(self) -> None:
        if len(snapshot_names(self.index)) > 1:
            other = next(n for n in snapshot_names(self.index) if n != self.snapshot())
            roll_back(self.index, other)
            self.store.refresh()

    @rule()
    def fold_until_nothing_is_left_over(self) -> None:
        age(self.index)
        fold(self.store)
        fold(self.store)
        fold(self.store)
        with self.store.view() as view:
            digests = {image.digest for image in view.page("", 100)} - {image.digest for image in INITIAL}
        assert kept(self.index) == digests

    def snapshot(self) -> str:
        with self.store.view() as view:
            return view.snapshot

    @invariant()
    def what_is_named_is_there(self) -> None:
        for digest in named(self.index) - {image.digest for image in INITIAL} - {""}:
            assert image_path(self.index, digest).is_file()


TestUploadMachine = UploadMachine.TestCase
TestUploadMachine.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
