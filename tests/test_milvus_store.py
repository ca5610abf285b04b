"""Milvus, in a file of Milvus Lite, keeps the contract of a store as far as it says that it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_store_contract import DIMENSION, INITIAL, Opened, VectorStoreContract, unit_vector, upsert

from data.errors import FingerprintMismatch, QueryError, SnapshotError, UserError
from serving.filters import And, Compare, Contains, Exists, Filter, In, Not, Or, matches
from serving.milvus_filter import decode_attributes, encode_attributes
from serving.milvus_store import ABOUT, MilvusAddress, MilvusStore, StoreUnreachable, publish

pytestmark = pytest.mark.usefixtures("kept_streams")

DESCRIBED = {"model_fingerprint": "c0104a", "model_name": "colours", "dimension": DIMENSION}
DESCRIBED |= {"source": "colours:30", "corrected": False}


def address(directory: Path) -> str:
    return f"milvus://{directory}/store.db?name=pictures"


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    publish(address(tmp_path), INITIAL, DESCRIBED)
    return lambda: MilvusStore.open(address(tmp_path), "c0104a")


class TestMilvus(VectorStoreContract):
    test_a_view_does_not_move = None  # Milvus has no states that stay: see the module
    test_a_conditional_change_applies_to_the_version_it_names = None  # refused, below
    test_a_repeated_key_changes_nothing_and_returns_the_first_receipt = None  # refused, below
    test_a_refused_key_can_be_used_again = None

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
    assert sorted(set(store._client.list_collections()) - {ABOUT}) == names[1:]
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
