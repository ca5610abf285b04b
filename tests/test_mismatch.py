"""Captions that were moved to other images are found, their share is estimated, and clean data is left in peace."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import SourceError
from dual_encoder.mismatch import find_mismatched
from dual_encoder.pair_scores import PairFeatures


def auroc(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(suspicion)) + 1
    positive = wrong.sum()
    return float((ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * (len(wrong) - positive)))


def pairs(share: float, images: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of images and captions of one hidden meaning, with a share of captions moved on by one."""
    generator = np.random.default_rng(1)
    meaning = generator.normal(size=(images, 12))
    image = meaning @ generator.normal(size=(12, 40)) + generator.normal(size=(images, 40))
    caption = meaning @ generator.normal(size=(12, 24)) + generator.normal(size=(images, 24))
    moved = generator.permutation(images)[: round(share * images)]
    owner = np.arange(images)
    owner[moved] = np.roll(moved, 1)
    wrong = owner != np.arange(images)
    return image, caption[owner], np.arange(images), np.arange(images), wrong


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_moved_captions_are_found_and_their_share_is_estimated(share: float) -> None:
    *features, wrong = pairs(share)
    found = find_mismatched(PairFeatures(*features))
    assert auroc(-found.log_odds, wrong) > 0.95
    assert abs(found.share - share) < 0.06
    flagged = found.probability > 0.5
    assert wrong[flagged].mean() > 0.8
    assert flagged[wrong].mean() > 0.7


def test_a_large_set_is_judged_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dual_encoder.pair_scores.PART", 200)
    *features, wrong = pairs(0.3)
    found = find_mismatched(PairFeatures(*features))
    assert auroc(-found.log_odds, wrong) > 0.95
    assert abs(found.share - 0.3) < 0.06


def test_clean_data_is_left_in_peace() -> None:
    *features, _ = pairs(0.0)
    found = find_mismatched(PairFeatures(*features))
    assert found.share < 0.03
    assert (found.probability > 0.5).mean() < 0.02


def test_a_pair_is_judged_without_its_group() -> None:
    """Ten copies of one wrong pair agree with each other; in one group they cannot vouch for each other."""
    image, caption, rows, groups, _ = pairs(0.0)
    image[:10], caption[:10] = image[0], caption[300]
    apart = find_mismatched(PairFeatures(image, caption, rows, groups)).log_odds[:10].mean()
    groups[:10] = 0
    together = find_mismatched(PairFeatures(image, caption, rows, groups)).log_odds[:10].mean()
    assert together < apart - 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("images", [150, 300])
def test_what_images_are_taken_for_tells_where_pairs_are_few_or_mostly_wrong(share: float, images: int) -> None:
    image, caption, rows, groups, wrong = pairs(share, images=images)
    own = pairs(0.0, images=images)[1]
    named = own + own.std() * np.random.default_rng(5).normal(size=own.shape)
    alone, told = (find_mismatched(PairFeatures(image, caption, rows, groups, n)) for n in (None, named))
    assert auroc(-told.log_odds, wrong) > min(0.98, auroc(-alone.log_odds, wrong) + 0.005)
    assert abs(told.share - share) < 0.12


def test_the_same_data_gives_the_same_verdict() -> None:
    image, caption, rows, groups, _ = pairs(0.3, images=200)
    one, again = (find_mismatched(PairFeatures(image, caption, rows, groups)).probability for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_too_few_images_are_refused() -> None:
    *features, _ = pairs(0.0, images=10)
    with pytest.raises(SourceError, match="at least 20 images"):
        find_mismatched(PairFeatures(*features))
