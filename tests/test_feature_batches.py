"""An epoch of feature batches is fair, repeatable, and can be entered anywhere: exact resume stands on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dual_encoder.feature_batches import FeatureBatches, caption_groups
from dual_encoder.feature_store import FeatureStore, digests_of

CAPTIONS_OF = [[0], [1, 2, 3], [4, 5], [6], [7, 8, 9, 10], [11], [12]]
CAPTIONS = ["a dog", "cat one", "cat two", "cat three", "tree", "oak", " a  dog ", "w", "x", "y", "z", "e\u0301", "é"]
VIEWS_OF_3 = [np.arange(3, dtype=np.float32)[:, None] + offset for offset in (0, 100)]
VIEWS = [np.arange(7, dtype=np.float32)[:, None] + offset for offset in (0, 100)]  # row n of view v is n + 100 v
TEXTS = np.arange(13, dtype=np.float32)[:, None]


def batches(batch_size: int = 2, seed: int = 5) -> FeatureBatches:
    return FeatureBatches(VIEWS, TEXTS, CAPTIONS_OF, CAPTIONS, batch_size, seed)


def flat(epoch) -> dict[str, np.ndarray]:
    epoch = list(epoch)
    return {key: np.concatenate([batch[key] for batch in epoch]) for key in epoch[0]}


def assert_equal(one, other) -> None:
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 2**31))
def test_every_image_comes_at_most_once_with_a_caption_and_a_view_of_its_own(
    batch_size: int, epoch: int, seed: int
) -> None:
    source = batches(batch_size, seed)
    found = list(source.epoch(epoch))
    assert len(found) == source.steps_per_epoch == 7 // min(batch_size, 7)
    rows = flat(found)
    assert {len(batch["image_row"]) for batch in found} == {min(batch_size, 7)}
    assert len(set(rows["image_row"])) == len(rows["image_row"])
    for image, features, text in zip(rows["image_row"], rows["image_features"], rows["text_features"], strict=True):
        assert features[0] % 100 == image
        assert int(text[0]) in CAPTIONS_OF[image]


@given(st.integers(0, 9), st.integers(0, 4))
def test_an_epoch_entered_late_equals_its_tail(epoch: int, start: int) -> None:
    assert_equal(batches().epoch(epoch, start), list(batches().epoch(epoch))[start:])


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not() -> None:
    assert_equal(batches().epoch(3), batches().epoch(3))
    same_source = batches()
    list(same_source.epoch(0))
    assert_equal(same_source.epoch(3), batches().epoch(3))
    order = flat(batches(7).epoch(3))["image_row"].tolist()
    assert flat(batches(7).epoch(4))["image_row"].tolist() != order
    assert flat(batches(7, seed=6).epoch(3))["image_row"].tolist() != order


def test_over_epochs_every_image_caption_and_view_is_used() -> None:
    rows = [flat(batches(3).epoch(epoch)) for epoch in range(60)]
    assert {int(text) for epoch in rows for text in epoch["text_features"][:, 0]} == set(range(13))
    assert {int(value) for epoch in rows for value in epoch["image_features"][:, 0]} == {
        n + 100 * v for n in range(7) for v in range(2)
    }


def test_captions_of_an_image_are_drawn_evenly() -> None:
    drawn = [flat(batches(7, seed).epoch(0)) for seed in range(400)]
    of_image_4 = [int(epoch["text_features"][epoch["image_row"] == 4, 0].item()) for epoch in drawn]
    counts = np.bincount(np.array(of_image_4) - 7, minlength=4)
    assert counts.sum() == 400
    assert (np.abs(counts - 100) < 40).all()  # more than four standard deviations


def test_equal_captions_share_a_group_however_they_are_spelt() -> None:
    groups = caption_groups(CAPTIONS).tolist()
    assert groups[0] == groups[6]
    assert groups[11] == groups[12]
    assert len(set(groups)) == 11
    rows = flat(batches(7).epoch(0))
    group_of = dict(zip(rows["image_row"].tolist(), rows["caption_group"].tolist(), strict=True))
    assert group_of[0] == group_of[3]
    assert group_of[5] == group_of[6]
    assert len(set(group_of.values())) == 5


def test_dtypes_are_those_the_training_step_expects() -> None:
    batch = next(iter(batches().epoch(0)))
    assert {key: value.dtype.name for key, value in batch.items()} == {
        "image_features": "float32",
        "text_features": "float32",
        "image_row": "int32",
        "caption_group": "int32",
    }


def test_near_duplicate_groups_of_images_go_along_with_their_rows() -> None:
    groups = np.arange(len(CAPTIONS_OF)) // 2 + 10
    grouped = FeatureBatches(VIEWS, TEXTS, CAPTIONS_OF, CAPTIONS, 2, 0, image_groups=groups.tolist())
    for batch in grouped.epoch(0):
        np.testing.assert_array_equal(batch["image_group"], groups[batch["image_row"]])
    assert "image_group" not in next(iter(batches().epoch(0)))


def test_the_weight_of_a_row_is_that_of_its_caption() -> None:
    weights = np.arange(len(CAPTIONS)) / len(CAPTIONS)
    weighted = FeatureBatches(VIEWS, TEXTS, CAPTIONS_OF, CAPTIONS, 7, 0, caption_weights=weights.tolist())
    for epoch in range(4):
        for batch in weighted.epoch(epoch):
            assert batch["weight"].dtype == np.float32
            np.testing.assert_array_equal(
                batch["weight"], np.float32(weights)[batch["text_features"][:, 0].astype(int)]
            )
    assert "weight" not in next(iter(batches().epoch(0)))


def test_prototypes_come_like_images_whatever_the_view() -> None:
    captions_of = [[0], [1], [2], [3, 4]]
    prototypes = np.array([[-3.0]], np.float32)
    source = FeatureBatches(VIEWS_OF_3, TEXTS, captions_of, CAPTIONS[:5], 4, 0, prototypes=prototypes)
    for epoch in range(5):
        rows = flat(source.epoch(epoch))
        found = dict(zip(rows["image_row"].tolist(), rows["image_features"][:, 0].tolist(), strict=True))
        assert found.pop(3) == -3.0
        assert {image: value % 100 for image, value in found.items()} == {0: 0, 1: 1, 2: 2}


def test_rows_of_a_file_are_the_same_batches_as_rows_in_memory(tmp_path: Path) -> None:
    names = digests_of([f"{number:064x}" for number in range(1, 21)])
    mapped = []
    for number, array in enumerate((*VIEWS, TEXTS)):
        store = FeatureStore(tmp_path / str(number))
        backwards = np.arange(len(array))[::-1]
        store.add(names[backwards], array[backwards], np.zeros(len(array), bool))
        mapped.append(store.rows(names[: len(array)]))
    source = FeatureBatches(mapped[:2], mapped[2], CAPTIONS_OF, CAPTIONS, 3, 5)
    for epoch in range(3):
        assert_equal(source.epoch(epoch), batches(3).epoch(epoch))
