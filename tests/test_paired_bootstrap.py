"""The paired bootstrap tells a real difference from luck, and never invents one; no model is involved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_encoder.metrics import RankedQueries, rank_both_directions
from dual_encoder.paired_bootstrap import METRICS, compare

DIRECTIONS = ("text_to_image", "image_to_text")


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def model(images: int, noise: float, seed: int, captions: int = 2) -> dict[str, RankedQueries]:
    """Ranks of a model that knows each image and adds `noise` to it: 0 is an oracle, infinity knows nothing."""
    generator = np.random.default_rng(99)
    truth = unit(generator.normal(size=(images, 16)))
    owners = np.repeat(np.arange(images), captions)
    disturbance = unit(np.random.default_rng(seed).normal(size=(len(owners), 16)))
    queries = disturbance if np.isinf(noise) else unit(truth[owners] + noise * disturbance)
    return rank_both_directions(truth, queries, owners)


def ranked(ranks: list[int], clusters: list[int]) -> dict[str, RankedQueries]:
    queries = RankedQueries(np.array(ranks), np.array(clusters), gallery=100)
    return {"text_to_image": queries, "image_to_text": queries}


@st.composite
def rank_lists(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Ranks of two models for the same queries, and the image of each query."""
    count = draw(st.integers(1, 40))
    ranks = st.lists(st.integers(1, 100), min_size=count, max_size=count)
    return draw(ranks), draw(ranks), draw(st.lists(st.integers(0, 10), min_size=count, max_size=count))


@settings(max_examples=40)
@given(rank_lists())
def test_a_model_against_itself_differs_by_exactly_nothing(lists: tuple[list[int], list[int], list[int]]) -> None:
    ranks, _, clusters = lists
    found = compare(ranked(ranks, clusters), ranked(ranks, clusters), resamples=50)
    for direction in DIRECTIONS:
        assert set(found[direction]) == set(METRICS)
        for figures in found[direction].values():
            assert figures["difference"] == 0
            assert figures["confidence_95"] == [0, 0]
            assert figures["p_value"] == 1
            assert figures["bundle"] == figures["against"]


@settings(max_examples=40)
@given(rank_lists())
def test_swapping_the_models_turns_the_sign_and_nothing_else(lists: tuple[list[int], list[int], list[int]]) -> None:
    one, other, clusters = lists
    forward = compare(ranked(one, clusters), ranked(other, clusters), resamples=200)["text_to_image"]
    back = compare(ranked(other, clusters), ranked(one, clusters), resamples=200)["text_to_image"]
    for name in METRICS:
        assert back[name]["difference"] == -forward[name]["difference"]
        assert back[name]["p_value"] == forward[name]["p_value"]
        assert [-x for x in reversed(back[name]["confidence_95"])] == pytest.approx(forward[name]["confidence_95"])


@settings(max_examples=40)
@given(rank_lists(), st.integers(2, 4))
def test_repeating_every_caption_of_an_image_is_no_further_evidence(
    lists: tuple[list[int], list[int], list[int]], times: int
) -> None:
    one, other, clusters = lists
    once = compare(ranked(one, clusters), ranked(other, clusters), resamples=200)["text_to_image"]
    repeated = compare(ranked(one * times, clusters * times), ranked(other * times, clusters * times), resamples=200)
    for name in METRICS:
        assert repeated["text_to_image"][name]["difference"] == pytest.approx(once[name]["difference"], abs=1e-12)
        assert repeated["text_to_image"][name]["confidence_95"] == pytest.approx(once[name]["confidence_95"], abs=1e-12)


@settings(max_examples=40)
@given(rank_lists())
def test_the_difference_is_that_of_the_two_means(lists: tuple[list[int], list[int], list[int]]) -> None:
    one, other, clusters = lists
    found = compare(ranked(one, clusters), ranked(other, clusters), resamples=50)["image_to_text"]
    for k in (1, 5, 10):
        mean = [sum(rank <= k for rank in ranks) / len(ranks) for ranks in (one, other)]
        figures = found[f"recall@{k}"]
        assert [figures["bundle"], figures["against"]] == pytest.approx(mean)
        assert figures["difference"] == pytest.approx(mean[0] - mean[1], abs=1e-12)
    reciprocal = [sum(1 / rank for rank in ranks) / len(ranks) for ranks in (one, other)]
    assert found["mean_reciprocal_rank"]["difference"] == pytest.approx(reciprocal[0] - reciprocal[1], abs=1e-12)
    for figures in found.values():
        assert 2 / 51 <= figures["p_value"] <= 1


def test_an_oracle_is_better_than_noise_beyond_doubt() -> None:
    found = compare(model(60, 0, 0), model(60, np.inf, 1))
    for direction in DIRECTIONS:
        for figures in found[direction].values():
            low, high = figures["confidence_95"]
            assert 0 < low <= figures["difference"] <= high
            assert figures["p_value"] == 2 / 5001, "the smallest that 5,000 resamples can show"


def test_two_runs_of_the_same_noise_are_seldom_called_different() -> None:
    comparisons = []
    for seed in range(40):
        found = compare(model(60, 1.0, 2 * seed), model(60, 1.0, 2 * seed + 1), resamples=400)
        comparisons.append(found["text_to_image"]["mean_reciprocal_rank"])
    wrong = sum(figures["p_value"] < 0.05 for figures in comparisons)
    covered = sum(figures["confidence_95"][0] <= 0 <= figures["confidence_95"][1] for figures in comparisons)
    # 5 % of 40 is 2; more than 7 would come about once in a thousand.
    assert wrong <= 7
    assert covered >= 33


def test_pairing_finds_a_small_steady_gain_that_two_separate_intervals_hide() -> None:
    generator = np.random.default_rng(5)
    theirs = generator.choice([1, 50], 200)
    ours = theirs.copy()
    ours[np.flatnonzero(theirs == 50)[:10]] = 1  # ten queries better, none worse
    found = compare(ranked(ours.tolist(), list(range(200))), ranked(theirs.tolist(), list(range(200))))
    paired = found["text_to_image"]["recall@1"]
    assert paired["confidence_95"][0] > 0
    assert paired["p_value"] < 0.01
    separate = [
        RankedQueries(ranks, np.arange(200), 100).summary()["confidence_95"]["recall@1"] for ranks in (ours, theirs)
    ]
    assert separate[0][0] < separate[1][1], "the separate intervals overlap"


def test_models_that_answered_other_queries_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same queries"):
        compare(ranked([1, 2], [0, 1]), ranked([1, 2], [1, 0]))


@given(st.lists(st.integers(1, 150), min_size=1, max_size=50))
def test_the_recall_curve_is_recall_at_each_k(ranks: list[int]) -> None:
    curve = RankedQueries(np.array(ranks), np.arange(len(ranks)), 150).recall_curve()
    assert curve == pytest.approx([sum(rank <= k for rank in ranks) / len(ranks) for k in range(1, 101)])
