"""What every `VectorStore` must do, whoever keeps it: subclass `VectorStoreContract` in a test module and give it a
fixture `opened`, a callable that opens one store, each time the same one, which holds `INITIAL` at first; and a fixture
`republish`, a callable that publishes what a job brings of that index, anew, while the given store is open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from data.errors import QueryError
from serving.catalog import ImageNotFound
from serving.filters import And, Compare, Contains, Exists, Filter, Ids, In, Not, Or, matches
from serving.vector_store import (
    BATCH_VERSION,
    Delete,
    KeyReused,
    StoredImage,
    Upsert,
    VectorStore,
    VersionConflict,
)

DIMENSION = 8
COLOURS = ("red", "green", "blue")
Opened = Callable[[], VectorStore]
Republish = Callable[[VectorStore, Iterable[Upsert]], None]


def unit_vector(seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """A vector of unit length, (D,) float32."""
    vector = np.random.default_rng(seed).normal(size=dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def upsert(image_id: str, seed: int, **fields: object) -> Upsert:
    """An upsert whose vector and attributes follow from `seed`."""
    attributes = {"colour": COLOURS[seed % 3], "number": seed, "tags": [COLOURS[seed % 3], "drawn"]}
    known = {"digest": f"{seed:064x}", "captions": (f"picture {seed}",), "attributes": attributes}
    return Upsert(image_id, unit_vector(seed), **{**known, **fields})


# What a batch job brought.
INITIAL = [upsert(f"img-{number:03}", number) for number in range(30)]
FILTERS: list[Filter] = [
    Compare("colour", "=", "red"),
    Compare("number", ">=", 12),
    And((Compare("number", ">", 3), Not(Compare("colour", "=", "blue")))),
    Or((Compare("number", "<", 2), Contains("tags", "green"))),
    In("number", (1, 5, 999)),
    Exists("number"),
    Not(Exists("number")),
    Ids(frozenset({"img-004", "img-011", "nobody"})),
    And(()),
    Or(()),
]


def exact_answer(images: dict[str, Upsert], query: np.ndarray, k: int, where: Filter | None = None) -> list:
    """The k best (score, id) by arithmetic in float64 on what the store keeps: float16."""
    found = [
        (-float(np.float32(image.vector.astype(np.float16).astype(np.float64) @ query.astype(np.float64))), image_id)
        for image_id, image in images.items()
        if where is None or matches(where, image_id, image.attributes)
    ]
    return sorted(found)[:k]


class VectorStoreContract:
    """See the module."""

    @pytest.fixture
    def store(self, opened: Opened):
        store = opened()
        yield store
        store.close()

    def check(self, store: VectorStore, images: dict[str, Upsert]) -> None:
        """The store holds exactly `images`, whichever way it is asked."""
        with store.view() as view:
            assert len(view) == len(images)
            ids = sorted(images)
            assert [image.image_id for image in view.page("", 1_000)] == ids
            for image_id, stored in zip(ids, view.get(ids), strict=True):
                expected = images[image_id]
                assert stored is not None
                assert stored == StoredImage(
                    image_id, expected.digest, expected.location, expected.captions, expected.attributes, stored.version
                )
            for seed in (1, 7, 500):
                query = unit_vector(seed)
                for exact in (False, True):
                    (found,) = view.search(query[np.newaxis], 10, exact=exact)
                    expected_hits = exact_answer(images, query, 10)
                    assert [hit.image_id for hit in found] == [image_id for _, image_id in expected_hits]
                    np.testing.assert_allclose(
                        [-hit.score for hit in found], [score for score, _ in expected_hits], atol=1e-6
                    )

    def test_holds_what_the_batch_job_brought(self, store: VectorStore):
        assert store.dimension == DIMENSION
        self.check(store, {image.image_id: image for image in INITIAL})
        with store.view() as view:
            assert view.get(["img-003"])[0].version == BATCH_VERSION

    def test_changes_are_seen_at_once_and_after_reopening(self, opened: Opened):
        images = {image.image_id: image for image in INITIAL}
        store = opened()
        for change in (
            upsert("img-003", 103),
            upsert("new", 104, location="/pictures/new.png"),
            Delete("img-007"),
            Delete("nobody"),
            upsert("img-007", 107),
            upsert("gone", 105),
            Delete("gone"),
        ):
            store.apply([change])
            if isinstance(change, Upsert):
                images[change.image_id] = change
            else:
                images.pop(change.image_id, None)
            self.check(store, images)
        store.close()
        store = opened()
        self.check(store, images)
        store.close()

    def test_a_batch_is_applied_in_its_order(self, store: VectorStore):
        receipt = store.apply([upsert("a", 1), Delete("a"), upsert("b", 2), upsert("b", 3), Delete("img-000")])
        assert list(receipt.versions) == sorted(set(receipt.versions))
        assert receipt.versions[-1] == receipt.sequence
        images = {image.image_id: image for image in INITIAL[1:]}
        self.check(store, {**images, "b": upsert("b", 3)})
        with store.view() as view:
            assert view.get(["b"])[0].version == receipt.versions[3]

    def test_a_view_does_not_move(self, store: VectorStore):
        query = unit_vector(4)[np.newaxis]
        with store.view() as view:
            revision, before = view.revision, view.search(query, 5)
            store.apply([upsert("close", 4), Delete(before[0][0].image_id)])
            assert view.search(query, 5) == before
            assert (view.revision, len(view)) == (revision, len(INITIAL))
            assert view.get(["close"]) == [None]
            assert "close" not in [image.image_id for image in view.page("", 100)]
        with store.view() as view:
            assert view.revision != revision
            assert view.search(query, 1)[0][0].image_id == "close"

    def test_a_revision_that_is_known_at_once_is_that_of_the_next_view(self, store: VectorStore):
        for number in range(3):
            store.apply([upsert("new", number)])
            known = store.known_revision
            with store.view() as view:
                assert known in (None, view.revision)
            assert known is None or store.at_hand

    def test_a_publication_undoes_no_change(self, opened: Opened, republish: Republish):
        store = opened()
        store.apply([Delete("img-001"), upsert("img-002", 102), upsert("own", 103), upsert("gone", 104)])
        store.apply([Delete("gone"), Delete("img-003")])
        store.apply([upsert("img-003", 105), upsert('quo"te', 106), upsert("back\\slash", 107)])

        def brought() -> Iterator[Upsert]:
            yield from INITIAL[:10]
            store.apply([Delete("img-004"), upsert("img-005", 108), upsert("meanwhile", 109), Delete("own")])
            yield from INITIAL[10:20]

        changed = {"img-002": 102, "img-003": 105, 'quo"te': 106, "back\\slash": 107, "img-005": 108, "meanwhile": 109}
        images = {image.image_id: image for image in INITIAL[:20]}
        images |= {name: upsert(name, seed) for name, seed in changed.items()}
        del images["img-001"], images["img-004"]
        for _ in range(3):  # what a publication took over, the next one takes over too
            republish(store, brought())
            self.check(store, images)
        store.close()
        self.check(reopened := opened(), images)
        reopened.close()

    def test_vectors_are_those_that_were_stored(self, store: VectorStore):
        store.apply([upsert("new", 104)])
        with store.view() as view:
            vectors = view.vectors(["new", "img-002"])
            assert vectors.dtype == np.float32
            for vector, seed in zip(vectors, (104, 2), strict=True):
                np.testing.assert_allclose(vector, unit_vector(seed), atol=1e-3)
            with pytest.raises(ImageNotFound, match="nobody"):
                view.vectors(["img-002", "nobody"])

    @pytest.mark.parametrize("where", FILTERS, ids=lambda where: type(where).__name__)
    def test_a_filter_gives_what_the_reference_gives(self, store: VectorStore, where: Filter):
        changes = [upsert("img-004", 4), upsert("img-005", 50), upsert("x", 31), upsert("y", 32, attributes={})]
        store.apply([*changes, Delete("img-011")])
        images = {image.image_id: image for image in [*INITIAL, *changes]}
        del images["img-011"]
        with store.view() as view:
            query = unit_vector(9)
            (found,) = view.search(query[np.newaxis], 100, where)
            assert [hit.image_id for hit in found] == [
                image_id for _, image_id in exact_answer(images, query, 100, where)
            ]
            chosen = sorted(name for name, image in images.items() if matches(where, name, image.attributes))
            assert [image.image_id for image in view.page("", 1_000, where)] == chosen

    def test_pages_follow_one_another(self, store: VectorStore):
        store.apply([upsert("a", 1), upsert("img-0045", 2), upsert("z", 3), Delete("img-005")])
        with store.view() as view:
            found, after = [], ""
            while page := view.page(after, 4):
                found += [image.image_id for image in page]
                after = found[-1]
        expected = {image.image_id for image in INITIAL} | {"a", "img-0045", "z"}
        assert found == sorted(expected - {"img-005"})

    def test_equal_scores_stand_in_the_order_of_their_ids(self, store: VectorStore):
        store.apply([upsert(name, 12) for name in ("zz", "img-0115", "aa")])
        with store.view() as view:
            for k in (1, 2, 3, 4):
                (found,) = view.search(unit_vector(12)[np.newaxis], k)
                assert [hit.image_id for hit in found] == ["aa", "img-0115", "img-012", "zz"][:k]

    def test_a_conditional_change_applies_to_the_version_it_names(self, store: VectorStore):
        with pytest.raises(VersionConflict) as conflict:
            store.apply([upsert("img-001", 201, if_version=0)])
        assert (conflict.value.image_id, conflict.value.current) == ("img-001", BATCH_VERSION)
        first = store.apply([upsert("img-001", 201, if_version=BATCH_VERSION), upsert("new", 202, if_version=0)])
        for stale in (0, BATCH_VERSION, first.versions[0] + 1):
            with pytest.raises(VersionConflict):
                store.apply([upsert("unrelated", 1), upsert("img-001", 203, if_version=stale)])
        with pytest.raises(VersionConflict):
            store.apply([Delete("new", if_version=BATCH_VERSION)])
        store.apply([Delete("new", if_version=first.versions[1]), upsert("img-001", 204, if_version=first.versions[0])])
        with pytest.raises(VersionConflict) as conflict:
            store.apply([Delete("new", if_version=first.versions[1])])
        assert conflict.value.current == 0
        images = {image.image_id: image for image in INITIAL}
        self.check(store, {**images, "img-001": upsert("img-001", 204)})

    def test_a_repeated_key_changes_nothing_and_returns_the_first_receipt(self, opened: Opened):
        store = opened()
        first = store.apply([upsert("a", 1), Delete("img-000")], key="once")
        store.apply([upsert("a", 2)])
        assert store.apply([upsert("a", 1), Delete("img-000")], key="once") == first
        with pytest.raises(KeyReused):
            store.apply([upsert("a", 3)], key="once")
        store.close()
        store = opened()
        assert store.apply([upsert("a", 1), Delete("img-000")], key="once") == first
        self.check(store, {**{image.image_id: image for image in INITIAL[1:]}, "a": upsert("a", 2)})
        store.close()

    def test_a_refused_key_can_be_used_again(self, store: VectorStore):
        with pytest.raises(VersionConflict):
            store.apply([upsert("img-001", 1, if_version=0)], key="k")
        store.apply([upsert("a", 1)], key="k")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            (Upsert("", unit_vector(1)), "image_id"),
            (Upsert("x" * 1_025, unit_vector(1)), "image_id"),
            (Upsert("\udcff", unit_vector(1)), "image_id"),
            (Upsert("a", unit_vector(1)[:-1]), "vector"),
            (Upsert("a", unit_vector(1) * 2), "vector"),
            (Upsert("a", unit_vector(1) * np.nan), "vector"),
            (Upsert("a", unit_vector(1), attributes={"x": float("nan")}), "attributes"),
        ],
        ids=str,
    )
    def test_what_cannot_be_kept_is_refused_whole(self, store: VectorStore, change: Upsert, field: str):
        with pytest.raises(QueryError) as refusal:
            store.apply([upsert("fine", 1), change])
        assert refusal.value.field == field
        self.check(store, {image.image_id: image for image in INITIAL})

    def test_no_changes_are_no_change(self, store: VectorStore):
        with store.view() as view:
            before = view.revision
        assert store.apply([]).versions == ()
        with store.view() as view:
            assert view.revision == before

    def test_everything_can_be_deleted_and_put_back(self, store: VectorStore):
        store.apply([Delete(image.image_id) for image in INITIAL])
        self.check(store, {})
        store.apply([INITIAL[3]])
        self.check(store, {"img-003": INITIAL[3]})
