"""What was changed online follows to another model by its image, whenever it was changed; no vector is ever searched by
a model that did not make it."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from fakes import ColourRuntime, ListSource, TurnedRuntime, colour_pair, picture

import serving.publish
from data.errors import SourceError
from serving.embedded_store import EmbeddedStore
from serving.index_job import BuildSettings, build_index
from serving.publish import roll_back
from serving.reembedding import Reembedding
from serving.uploaded_images import image_path, keep_image
from serving.vector_store import Delete, StoreReadOnly, Upsert

OLD, NEW = ColourRuntime(), TurnedRuntime()
SOURCE = ListSource([colour_pair(number) for number in range(10)], "colours:10")


@pytest.fixture
def index(tmp_path):
    build_index(OLD, SOURCE, tmp_path)
    return tmp_path


def uploaded(index, name: str, colour: str, runtime=OLD) -> Upsert:
    data = picture(colour, seed=77)
    return Upsert(name, runtime.embed_images([data])[0], keep_image(index, data))


def opened(index, runtime):
    return closing(EmbeddedStore.open(index, runtime.fingerprint))


def assert_vectors(index, runtime, expected: dict[str, str]) -> None:
    """The images of these names have the vectors that `runtime` gives pictures of these colours."""
    with opened(index, runtime) as store, store.view() as view:
        wanted = runtime.embed_images([picture(colour, seed=77) for colour in expected.values()])
        np.testing.assert_array_equal(view.vectors(list(expected)), wanted.astype(np.float16))


def test_uploaded_images_are_embedded_by_the_new_model(index, tmp_path):
    with opened(index, OLD) as store:
        store.apply([uploaded(index, "own", "red"), uploaded(index, "red-0000", "blue"), Delete("green-0001")])
    report = build_index(NEW, SOURCE, index)
    assert (report.indexed, report.embedded, report.discarded) == (10, 10, 0)
    assert_vectors(index, NEW, {"own": "red", "red-0000": "blue"})
    with opened(index, NEW) as store, store.view() as view:
        assert view.get(["green-0001"]) == [None]


def test_a_vector_alone_cannot_follow_and_is_given_up_only_when_asked(index):
    with opened(index, OLD) as store:
        store.apply([uploaded(index, "own", "red"), Upsert("vector", OLD.embed_images([picture("red")])[0])])
    with pytest.raises(SourceError, match=r"1 vectors without an image, 'vector' first.*--discard-vectors"):
        build_index(NEW, SOURCE, index)
    with opened(index, OLD) as store, store.view() as view:
        assert len(view) == 12
    assert build_index(NEW, SOURCE, index, BuildSettings(discard_vectors=True)).discarded == 1
    with opened(index, NEW) as store, store.view() as view:
        assert len(view) == 11


def test_an_image_whose_file_has_changed_is_not_at_hand(index):
    with opened(index, OLD) as store:
        change = uploaded(index, "own", "red")
        store.apply([change])
    image_path(index, change.digest).write_bytes(picture("blue"))
    with pytest.raises(SourceError, match="1 vectors without an image"):
        build_index(NEW, SOURCE, index)


def test_changes_during_the_build_follow_and_the_old_writer_is_stopped(index, monkeypatch):
    store = EmbeddedStore.open(index, OLD.fingerprint)
    real = serving.publish.verify_snapshot

    def change_and_verify(*arguments):
        store.apply([uploaded(index, "meanwhile", "purple"), Delete("blue-0002")])
        real(*arguments)

    monkeypatch.setattr(serving.publish, "verify_snapshot", change_and_verify)
    build_index(NEW, SOURCE, index)
    with pytest.raises(StoreReadOnly, match="another one"):
        store.apply([uploaded(index, "late", "red")])
    store.refresh()
    assert store.superseded is not None
    with store.view() as view:  # searches go on with the former model
        assert view.get(["meanwhile"])[0] is not None
        assert len(view) == 10
    store.close()
    assert_vectors(index, NEW, {"meanwhile": "purple"})
    with opened(index, NEW) as store, store.view() as view:
        assert view.get(["blue-0002", "late"]) == [None, None]


def test_a_rollback_to_the_former_model_takes_later_changes_along(index):
    build_index(NEW, SOURCE, index)
    with opened(index, NEW) as store:
        store.apply([uploaded(index, "own", "red", NEW), Delete("green-0001")])
    roll_back(index, embed_by=lambda _: Reembedding(index, lambda: OLD))
    assert_vectors(index, OLD, {"own": "red"})
    with opened(index, OLD) as store, store.view() as view:
        assert view.get(["green-0001"]) == [None]
        assert len(view) == 10
