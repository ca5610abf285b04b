"""Retrieval metrics equal a plain reference, and no defect of a model can make them better."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_encoder.metrics import _BLOCK, ranks, retrieval_metrics, summarise


def reference_rank(scores: list[float], right: list[int]) -> int:
    """Count, one by one, the wrong answers that are not clearly below the best right one."""
    best = max(scores[row] for row in right)
    return 1 + sum(1 for row, score in enumerate(scores) if row not in right and score >= best)


def reference_metrics(query_ranks: list[int]) -> dict[str, float]:
    count = len(query_ranks)
    ordered = sorted(query_ranks)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return {
        "recall@1": sum(rank <= 1 for rank in query_ranks) / count,
        "recall@5": sum(rank <= 5 for rank in query_ranks) / count,
        "recall@10": sum(rank <= 10 for rank in query_ranks) / count,
        "hits@100": sum(rank <= 100 for rank in query_ranks) / count,
        "mean_reciprocal_rank": sum(1 / rank for rank in query_ranks) / count,
        "median_rank": middle,
        "queries": count,
    }


@st.composite
def collections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, captions and whose they are: several captions an image, or none, and many ties.

    Components are multiples of 1/4, so that products are exact and a tie is a tie.
    """
    images = draw(st.integers(1, 14))
    owners = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=24))
    seed = draw(st.integers(0, 2**32 - 1))
    quarters = np.random.default_rng(seed).integers(-4, 5, (images + len(owners), 3)) / 4
    return quarters[:images].astype(np.float32), quarters[images:].astype(np.float32), np.array(owners)


@settings(max_examples=40)  # each resamples for its intervals
@given(collections())
def test_both_directions_equal_the_reference(collection: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, captions, owners = collection
    scores = (captions.astype(np.float64) @ images.T.astype(np.float64)).tolist()  # captions × images
    transposed = [list(column) for column in zip(*scores, strict=True)]
    to_image = [reference_rank(row, [owner]) for row, owner in zip(scores, owners.tolist(), strict=True)]
    captions_of = {image: [c for c, owner in enumerate(owners) if owner == image] for image in sorted(set(owners))}
    to_text = [reference_rank(transposed[image], own) for image, own in captions_of.items()]

    found = retrieval_metrics(images, captions, owners)
    for direction, reference, gallery in (
        ("text_to_image", to_image, len(images)),
        ("image_to_text", to_text, len(captions)),
    ):
        expected = {**reference_metrics(reference), "gallery": gallery}
        assert {name: found[direction][name] for name in expected} == pytest.approx(expected)


@given(collections(), st.integers(0, 10**6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_vector_that_is_no_number_never_helps(
    collection: tuple[np.ndarray, np.ndarray, np.ndarray], which: int, value: float
) -> None:
    images, captions, owners = collection
    right = [[owner] for owner in owners.tolist()]
    before = ranks(captions, images, right)
    both = np.concatenate([images, captions])
    both[which % len(both), which % 3] = value
    with np.errstate(invalid="ignore"):
        after = ranks(both[len(images) :], both[: len(images)], right)
    assert (after >= before).all()


def test_a_right_answer_that_is_no_number_is_the_worst_of_all() -> None:
    gallery = np.array([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    query = np.array([[1.0, 0.0]], np.float32)
    assert ranks(query, gallery, [[1]]).tolist() == [4]
    assert ranks(query, gallery, [[0]]).tolist() == [2]  # the NaN beside it counts against it too


def test_ties_count_against_the_model_also_where_float32_is_off_by_a_bit() -> None:
    generator = np.random.default_rng(0)
    vector = generator.normal(size=384)
    vector /= np.linalg.norm(vector)
    shuffled_sum = np.float32(vector) * np.float32(1 + 1e-7)  # the same image, rounded otherwise
    gallery = np.stack([np.float32(vector), shuffled_sum])
    assert ranks(np.float32(vector)[None], gallery, [[0]]).tolist() == [2]
    assert ranks(np.float32(vector)[None], gallery, [[1]]).tolist() == [2]


def test_an_oracle_scores_one_and_a_constant_model_the_worst_rank() -> None:
    generator = np.random.default_rng(1)
    images = generator.normal(size=(30, 16))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    owners = np.repeat(np.arange(20), 5)  # ten images have no caption
    oracle = retrieval_metrics(images, images[owners], owners)
    for direction in ("text_to_image", "image_to_text"):
        assert oracle[direction]["recall@1"] == oracle[direction]["mean_reciprocal_rank"] == 1.0
        assert oracle[direction]["median_rank"] == 1
    assert (oracle["text_to_image"]["gallery"], oracle["text_to_image"]["queries"]) == (30, 100)
    assert (oracle["image_to_text"]["gallery"], oracle["image_to_text"]["queries"]) == (100, 20)

    constant = retrieval_metrics(np.ones((30, 4)) / 2, np.ones((100, 4)) / 2, owners)
    assert constant["text_to_image"]["recall@10"] == 0
    assert constant["text_to_image"]["median_rank"] == 30
    assert constant["image_to_text"]["median_rank"] == 1 + 95


def test_distractors_make_the_task_harder() -> None:
    query = np.array([[1.0, 0.0]])
    own, closer = [0.6, 0.8], [0.8, 0.6]
    assert retrieval_metrics(np.array([own]), query, np.array([0]))["text_to_image"]["median_rank"] == 1
    crowded = retrieval_metrics(np.array([own, closer, closer]), query, np.array([0]))
    assert crowded["text_to_image"]["median_rank"] == 3
    assert crowded["image_to_text"]["queries"] == 1


def test_queries_beyond_one_block_are_ranked_like_the_first() -> None:
    generator = np.random.default_rng(2)
    queries, gallery = generator.normal(size=(2 * _BLOCK + 5, 8)), generator.normal(size=(50, 8))
    right = generator.integers(0, 50, len(queries))
    scores = queries @ gallery.T
    order = np.argsort(-scores, axis=1)
    expected = 1 + np.argmax(order == right[:, None], axis=1)
    found = ranks(queries, gallery, [[row] for row in right.tolist()])
    assert (found == expected).mean() > 0.999  # random products may fall within the tie by chance
    assert (found >= expected).all()


def test_right_answers_must_be_as_many_as_queries() -> None:
    with pytest.raises(ValueError, match="for 2 queries, received 1"):
        ranks(np.eye(2), np.eye(2), [[0]])
    with pytest.raises(ValueError, match="at least one query"):
        summarise(np.array([], np.int64), 5, np.array([], np.int64))


def coin(count: int, seed: int) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(count) < 0.5, 1, 50)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_mean_and_is_as_wide_as_the_theory_says(seed: int) -> None:
    summary = summarise(coin(400, seed), 100, np.arange(400))
    for name, (low, high) in summary["confidence_95"].items():
        assert low <= summary[name] <= high
    low, high = summary["confidence_95"]["recall@1"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.15)


def test_the_interval_shrinks_with_more_data_and_the_same_seed_repeats_it() -> None:
    def width(count: int) -> float:
        low, high = summarise(coin(count, 0), 100, np.arange(count))["confidence_95"]["recall@1"]
        return high - low

    assert width(1600) == pytest.approx(width(100) / 4, rel=0.3)
    assert width(200) == width(200)


def test_captions_of_one_image_do_not_count_as_independent_evidence() -> None:
    answers = np.repeat(coin(100, 3), 5)  # five captions of an image succeed or fail together
    independent = summarise(answers, 100, np.arange(500))["confidence_95"]["recall@1"]
    by_image = summarise(answers, 100, np.repeat(np.arange(100), 5))["confidence_95"]["recall@1"]
    assert (by_image[1] - by_image[0]) / (independent[1] - independent[0]) == pytest.approx(math.sqrt(5), rel=0.2)


def test_a_large_gallery_is_ranked_in_little_memory_and_the_same() -> None:
    generator = np.random.default_rng(0)
    gallery = generator.normal(size=(60_000, 8)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    right = [[row] for row in range(100)]
    tracemalloc.start()
    found = ranks(gallery[:100], gallery, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6, "100 queries at once would take 24 MB for the scores alone"
    assert found.tolist() == [1] * 100
