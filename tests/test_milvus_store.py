"""Milvus, in a file of Milvus Lite, keeps the contract of a store as far as it says that it does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_store_contract import DIMENSION, INITIAL, Opened, Republish, VectorStoreContract, unit_vector, upsert

from data.errors import FingerprintMismatch, QueryError, SnapshotError, UserError
from serving import milvus_publication
from serving.filters import And, Compare, Contains, Exists, Filter, In, Not, Or, matches
from serving.milvus_collection import ABOUT, deletions_of, note
from serving.milvus_connection import MilvusAddress
from serving.milvus_filter import decode_attributes, encode_attributes
from serving.milvus_publication import OnlineChanges
from serving.milvus_store import MilvusStore
from serving.vector_store import Delete, StoreSuperseded, StoreUnreachable, Upsert

pytestmark = pytest.mark.usefixtures("kept_streams")

DESCRIBED = {"model_fingerprint": "c0104a", "model_name": "colours", "dimension": DIMENSION}
DESCRIBED |= {"source": "colours:30", "corrected": False}


def address(directory: Path) -> str:
    return f"milvus://{directory}/store.db?name=pictures"


def publish(where: str, images: Iterable[Upsert], described: dict = DESCRIBED, **online: object) -> str:
    return milvus_publication.publish(where, images, described, OnlineChanges(**online)).collection


@pytest.fixture
def republish(tmp_path: Path) -> Republish:
    return lambda store, images: publish(address(tmp_path), images)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    publish(address(tmp_path), INITIAL)
    return lambda: MilvusStore.open(address(tmp_path), "c0104a")


class TestMilvus(VectorStoreContract):
    test_a_view_does_not_move = None  # Milvus has no states that stay: see the module
    test_a_conditional_change_applies_to_the_version_it_names = None  # refused, below
    test_a_repeated_key_changes_nothing_and_returns_the_first_receipt = None  # refused, below
    test_a_refused_key_can_be_used_again = None

    def test_searches_ask_a_service(self, store: MilvusStore):
        assert not store.at_hand

    def test_what_milvus_cannot_do_is_refused(self, store: MilvusStore):
        with pytest.raises(QueryError, match="leave it out"):
            store.apply([upsert("img-001", 1, if_version=1)])
        with pytest.raises(QueryError, match="leave it out"):
            store.apply([upsert("img-001", 1)], key="once")
        with store.view() as view:
            assert view.get(["img-001"])[0].digest == f"{1:064x}"


def test_publishing_moves_the_name_and_keeps_one_way_back(tmp_path: Path):
    where = address(tmp_path)
    names = [publish(where, INITIAL[:count], DESCRIBED) for count in (10, 20, 30)]
    store = MilvusStore.open(where, "c0104a")
    with store.view() as view:
        assert (view.snapshot, len(view)) == (names[2], 30)
        described = view.describe()
    assert (described.model_name, described.source, described.image_count) == ("colours", "colours:30", 30)
    assert sorted(set(store._client.list_collections()) - {ABOUT, deletions_of("pictures")}) == names[1:]
    store.close()


def found(where: str) -> dict[str, int]:
    """The number of each image's vector."""
    store = MilvusStore.open(where, "c0104a", writable=False)
    with store.view() as view:
        images = {image.image_id: image.attributes["number"] for image in view.page("", 1_000)}
        assert len(view) == len(images)
        expected = np.stack([unit_vector(number).astype(np.float16) for number in images.values()])
        np.testing.assert_array_equal(view.vectors(list(images)), expected)
    store.close()
    return images


def test_what_is_acknowledged_while_the_name_moves_holds(opened: Opened, tmp_path: Path, monkeypatch):
    """A change that comes between the last copy and the new name is acknowledged when it stands in the new one."""
    store, pending = opened(), []
    real = milvus_publication._Copying.copy

    def copy_and_change(copying, after):
        count = real(copying, after)
        if not pending and milvus_publication.noted(copying._client, "pictures"):  # the flip is announced
            pending.append(store.submit([Delete("img-001"), upsert("img-002", 102)]))
            with pytest.raises(TimeoutError):
                pending[0].result(timeout=0.3)
        return count

    monkeypatch.setattr(milvus_publication._Copying, "copy", copy_and_change)
    publish(address(tmp_path), INITIAL)
    pending[0].result(timeout=30)
    images = found(address(tmp_path))
    assert "img-001" not in images
    assert images["img-002"] == 102
    store.close()


def test_publications_under_changes_undo_none_that_was_acknowledged(opened: Opened, tmp_path: Path):
    store = opened()
    left = {image.image_id: number for number, image in enumerate(INITIAL)}
    ended = threading.Event()

    def change(thread: int) -> None:
        rng = random.Random(thread)
        own = [f"t{thread}-{n}" for n in range(3)] + [image.image_id for image in INITIAL[thread::2]]
        while not ended.is_set():
            name, number = rng.choice(own), rng.choice([None, rng.randrange(1_000)])
            store.apply([Delete(name) if number is None else upsert(name, number)])
            left[name] = number

    threads = [threading.Thread(target=change, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        publish(address(tmp_path), INITIAL)
    ended.set()
    for thread in threads:
        thread.join()
    assert found(address(tmp_path)) == {name: number for name, number in left.items() if number is not None}
    publish(address(tmp_path), INITIAL)
    assert found(address(tmp_path)) == {name: number for name, number in left.items() if number is not None}
    store.close()


def test_a_publication_that_died_stops_changes_for_its_lease_only(opened: Opened, monkeypatch):
    store = opened()
    note(store._client, "pictures", {"flip": "of a dead process"})
    monkeypatch.setattr(milvus_publication, "LEASE_SECONDS", 0.1)
    store.apply([Delete("img-001")])
    monkeypatch.setattr(milvus_publication, "LEASE_SECONDS", 1e6)
    store.apply([Delete("img-002")])  # not a second time
    with store.view() as view:
        assert view.get(["img-001", "img-002"]) == [None, None]
    store.close()


def test_of_two_builds_at_once_the_later_is_refused(opened: Opened, tmp_path: Path):
    def brought():
        yield from INITIAL[:5]
        publish(address(tmp_path), INITIAL[:7])

    with pytest.raises((SnapshotError, StoreUnreachable)):
        publish(address(tmp_path), brought())
    assert len(found(address(tmp_path))) == 7


def test_a_publication_that_cannot_keep_up_leaves_what_was_live(opened: Opened, tmp_path: Path, monkeypatch):
    store = opened()
    store.apply([upsert("img-001", 101)])
    monkeypatch.setattr(milvus_publication, "LEASE_SECONDS", -1.0)
    with pytest.raises(StoreUnreachable, match="pause who makes them"):
        publish(address(tmp_path), INITIAL[:5])
    monkeypatch.undo()
    store.apply([Delete("img-002")])
    images = found(address(tmp_path))
    assert (len(images), images["img-001"]) == (29, 101)
    store.close()


def test_what_the_job_brings_may_replace_what_was_changed_online(opened: Opened, tmp_path: Path):
    store = opened()
    store.apply([Delete("img-001"), Delete("img-025"), upsert("img-002", 102), upsert("own", 103)])
    before = datetime.now(UTC)
    store.apply([Delete("img-003")])
    publish(address(tmp_path), INITIAL[:20], replaced_before=before)
    expected = {image.image_id: number for number, image in enumerate(INITIAL[:20])} | {"own": 103}
    del expected["img-003"]
    assert found(address(tmp_path)) == expected
    publish(address(tmp_path), INITIAL)  # deletions that were replaced are forgotten, the others not
    assert found(address(tmp_path)).keys() == {i.image_id for i in INITIAL} - {"img-003", "img-025"} | {"own"}
    store.close()


def test_another_model_gets_what_was_changed_online_embedded_anew(opened: Opened, tmp_path: Path):
    store = opened()
    store.apply([upsert("own", 103, location="/own"), upsert("lost", 104), Delete("img-001")])
    other = {**DESCRIBED, "model_fingerprint": "another"}
    with pytest.raises(SnapshotError, match="2 with another's"):
        publish(address(tmp_path), INITIAL, other)
    publish(
        address(tmp_path), INITIAL, other,
        embed=lambda entries: [unit_vector(1) if entry.location == "/own" else None for entry in entries],
    )  # fmt: skip
    with pytest.raises(StoreSuperseded, match="another"):
        store.apply([upsert("late", 105)])
    store.close()
    store = MilvusStore.open(address(tmp_path), "another")
    with store.view() as view:
        assert view.get(["img-001", "lost", "late"]) == [None, None, None]
        np.testing.assert_array_equal(view.vectors(["own"])[0], unit_vector(1).astype(np.float16))
    store.close()


def test_another_model_or_nothing_there_is_refused(tmp_path: Path):
    with pytest.raises(SnapshotError, match="an index pictures in Milvus"):
        MilvusStore.open(address(tmp_path), "c0104a")
    publish(address(tmp_path), INITIAL[:3], DESCRIBED)
    with pytest.raises(FingerprintMismatch, match="one of model c0104a"):
        MilvusStore.open(address(tmp_path), "another")


@pytest.mark.parametrize(
    "text", ["milvus://", "http://localhost", "milvus://h?name=a b", "milvus://h?nmae=a", "milvus://h?name=a;drop"]
)
def test_what_is_no_address_is_told(text: str):
    with pytest.raises(UserError, match="milvus://HOST:PORT"):
        MilvusAddress.parse(text)


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(StoreUnreachable):
        MilvusStore.open("milvus://127.0.0.1:1?name=pictures", "c0104a")


MOMENT = datetime(2024, 5, 1, 12, tzinfo=UTC)
NAMES = st.sampled_from(["a", "b", 'quo"te', "back\\slash", "ünïcode", "with space"])
SCALARS = st.one_of(
    st.sampled_from(["", "x", "yy", 'say "hi"', "back\\slash", "日本"]),
    st.integers(-5, 5),
    st.sampled_from([0.5, 1.0, -2.25]),
    st.booleans(),
    st.sampled_from([MOMENT, MOMENT + timedelta(microseconds=1), MOMENT.astimezone(timezone(timedelta(hours=2)))]),
)
VALUES = st.one_of(SCALARS, st.lists(st.sampled_from(["x", "yy"]), max_size=2))
LEAVES = st.one_of(
    st.builds(Compare, NAMES, st.sampled_from(["=", "<", "<=", ">", ">="]), SCALARS),
    st.builds(lambda name, values: In(name, tuple(values)), NAMES, st.lists(SCALARS, max_size=3)),
    st.builds(Contains, NAMES, st.sampled_from(["x", "yy"])),
    st.builds(Exists, NAMES),
)
WHERE = st.recursive(
    LEAVES,
    lambda terms: st.one_of(
        st.builds(Not, terms),
        *(
            st.builds(lambda several, made=made: made(tuple(several)), st.lists(terms, max_size=3))
            for made in (And, Or)
        ),
    ),
    max_leaves=5,
)


@given(attributes=st.dictionaries(NAMES, VALUES, max_size=4))
def test_attributes_come_back_as_they_were(attributes: dict):
    back = decode_attributes(encode_attributes(attributes))
    assert back == attributes
    assert {name: type(value) for name, value in back.items()} == {n: type(v) for n, v in attributes.items()}


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> tuple[MilvusStore, dict]:
    """Images with all kinds of attributes, and what they hold."""
    rng = np.random.default_rng(0)
    choices = ["", "x", "yy", 'say "hi"', "back\\slash", "日本", -2, 0, 3, 0.5, 1.0, True, False, MOMENT, ["x"], []]
    names = ["a", "b", 'quo"te', "back\\slash", "ünïcode", "with space"]
    held = {
        f"img-{number:03}": {name: choices[rng.integers(len(choices))] for name in names if rng.random() < 0.6}
        for number in range(120)
    }
    images = [upsert(image_id, number, attributes=given) for number, (image_id, given) in enumerate(held.items())]
    where = address(tmp_path_factory.mktemp("milvus"))
    publish(where, images, DESCRIBED)
    return MilvusStore.open(where, "c0104a"), held


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=WHERE)
def test_a_filter_means_in_milvus_what_it_means_everywhere(varied: tuple[MilvusStore, dict], where: Filter):
    store, held = varied
    expected = {image_id for image_id, attributes in held.items() if matches(where, image_id, attributes)}
    with store.view() as view:
        (found,) = view.search(unit_vector(1)[np.newaxis], 200, where)
    assert {hit.image_id for hit in found} == expected
