"""A calibration is fitted on honest searches, finds the map that made the data, and is measured as it should be."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from data.errors import SourceError
from dual_encoder.calibration import Calibration
from dual_encoder.calibration_fit import (
    Retrievals,
    _covariates,
    _most_likely,
    auroc,
    fit_calibration,
    gallery_sizes,
    measure,
    play,
)


def embedded(images: int, noise: float, seed: int = 0, dim: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random images (N, D), two captions (2N, D) near each, and the captions' images."""
    generator = np.random.default_rng(seed)
    vectors = unit(generator.normal(size=(images, dim)))
    rows = np.repeat(np.arange(images), 2)
    return vectors, unit(vectors[rows] + noise * generator.normal(size=(len(rows), dim))), rows


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_searches_are_those_of_a_sort_by_hand() -> None:
    images, captions, rows = embedded(30, 0.4)
    groups = np.arange(30) // 3  # every image has two near-duplicates
    played = play(images, captions, rows, groups, gallery=30, depth=4)
    scores = captions @ images.T
    for query, row in enumerate(rows):
        rivals = [image for image in range(30) if groups[image] != groups[row]]
        for offset, gallery in ((0, [*rivals, row]), (len(rows), rivals)):
            order = sorted(gallery, key=lambda image: -scores[query, image])[:4]
            found = played.scores[query + offset]
            assert found == pytest.approx(scores[query, order], abs=1e-6)
            assert played.right[query + offset] == (order.index(row) if row in order else -1)
    assert played.answerable.tolist() == [True] * 60 + [False] * 60
    assert played.images.tolist() == [*rows, *rows]


def test_a_part_of_the_gallery_and_of_the_queries_is_drawn_and_a_tie_counts_against_the_model() -> None:
    images, captions, rows = embedded(40, 0.4)
    played = play(images, captions, rows, range(40), gallery=12, most=10, depth=4)
    assert (played.scores.shape, played.gallery) == ((20, 4), 12)
    same = np.ones((5, 3), np.float32) / np.float32(3**0.5)
    tied = play(same, same, np.arange(5), range(5), gallery=5, depth=4)
    assert tied.right.tolist() == [-1] * 10, "four others come before it"


def test_a_gallery_smaller_than_the_depth_and_no_number_break_nothing() -> None:
    images, captions, rows = embedded(3, 0.4)
    captions[0] = np.nan
    played = play(images, captions, rows, range(3), gallery=3, depth=10)
    assert played.right[0] == -1
    assert np.isneginf(played.scores[0]).all()
    assert np.isfinite(played.scores[1]).sum() == 3


def test_the_fit_finds_the_map_that_made_the_data() -> None:
    """Hits drawn from a known conditional logit give back its weights."""
    truth = Calibration(bias=-2.0, slope=12.0, context=4.0, gallery=0.8, smallest=1, largest=1, queries=1)
    generator = np.random.default_rng(0)
    played = []
    for gallery in (30, 300, 3000):
        scores = -np.sort(-generator.normal(0.3, 0.15, size=(20_000, 10)), axis=1)
        chances = truth.probability(scores, gallery)
        drawn = (generator.random((len(scores), 1)) > np.cumsum(chances, axis=1)).sum(axis=1)
        right = np.where(drawn < 10, drawn, -1)
        played.append(Retrievals(scores, right, right >= 0, np.arange(len(scores)), gallery))
    x = np.concatenate([_covariates(p) for p in played])
    weights = _most_likely(x, np.concatenate([p.hits for p in played]), vary_gallery=True)
    assert weights == pytest.approx([-2.0, 12.0, -4.0, -0.8], rel=0.15)


def test_probabilities_hold_on_pairs_and_gallery_sizes_that_were_not_fitted() -> None:
    images, captions, rows = embedded(600, 0.3)
    first, second = rows < 300, rows >= 300
    calibration = fit_calibration(images[:300], captions[first], rows[first], range(300))
    assert (calibration.smallest, calibration.largest) == (37, 300)
    for gallery in (60, 300):
        played = play(images[300:], captions[second], rows[second] - 300, range(300), gallery, seed=9)
        found = measure(calibration, played)
        assert found["first_hit"]["expected_calibration_error"] < 0.07
        assert found["first_hit"]["brier"] < 0.8 * found["first_hit"]["brier_of_the_base_rate"]
        assert found["first_hits"]["mean_probability"] == pytest.approx(found["first_hits"]["right"], rel=0.15)
        best = found["unanswerable"]["by_probability"]
        assert best["auroc_confidence_95"][0] < best["auroc"] < best["auroc_confidence_95"][1]


def test_a_model_that_separates_perfectly_gets_finite_numbers_and_sure_answers() -> None:
    images, captions, rows = embedded(100, 0.0)
    calibration = fit_calibration(images, captions, rows, range(100))
    found = measure(calibration, play(images, captions, rows, range(100), 100))
    assert found["unanswerable"]["by_probability"]["auroc"] == 1
    assert found["unanswerable"]["by_probability"]["false_positive_rate_at_95_true_positive_rate"] == 0
    assert found["first_hit"]["brier"] < 0.01
    assert np.isfinite(list(calibration.to_config().values())).all()


def test_too_little_and_hopeless_data_are_refused() -> None:
    images, captions, rows = embedded(24, 0.3)
    with pytest.raises(SourceError, match="received 48 captions of 24 images"):
        fit_calibration(images, captions, rows, range(24))
    images, captions, rows = embedded(60, 0.3)
    with pytest.raises(SourceError, match="score higher"):
        fit_calibration(images, captions, np.roll(rows, 31), range(60))


def test_reliability_is_that_of_a_count_by_hand() -> None:
    stated = Calibration(bias=0.0, slope=0.0, context=0.0, gallery=0.0, smallest=1, largest=9, queries=1, depth=1)
    right = np.array([0] * 30 + [-1] * 10)
    played = Retrievals(np.zeros((40, 1)), right, np.arange(40) < 20, np.arange(40) % 20, 5)
    found = measure(stated, played)["first_hit"]
    assert found["mean_probability"] == pytest.approx(0.5)  # exp 0 / (1 + exp 0)
    assert found["right"] == 0.75
    assert found["brier"] == pytest.approx(0.25)
    assert found["brier_of_the_base_rate"] == pytest.approx(0.1875)
    assert sum(b["count"] for b in found["bins"]) == 40
    expected = np.mean([abs(0.5 - part.mean()) for part in np.array_split((right == 0).astype(float), 10)])
    assert found["expected_calibration_error"] == pytest.approx(expected)


def test_auroc_is_that_of_all_comparisons() -> None:
    generator = np.random.default_rng(0)
    yes, no = generator.integers(0, 6, 40).astype(float), generator.integers(0, 5, 30).astype(float)
    expected = np.mean([[1.0 if a > b else 0.5 if a == b else 0.0 for b in no] for a in yes])
    assert auroc(yes, no) == pytest.approx(expected)


def test_gallery_sizes_halve_down_to_what_a_page_of_hits_leaves() -> None:
    assert gallery_sizes(330) == [330, 165, 82, 41]
    assert gallery_sizes(100_000) == [100_000, 50_000, 25_000, 12_500, 6_250]
    assert gallery_sizes(20) == [20]


def test_one_gallery_size_leaves_its_influence_out() -> None:
    images, captions, rows = embedded(26, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration = fit_calibration(images, captions, rows, range(26))
    assert calibration.gallery == 0
    assert dataclasses.replace(calibration, gallery=0.5).probability(np.ones((1, 10)), 26).shape == (1, 10)
