"""Vectors that the index benchmark makes lie as the real ones do, and none is a copy."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.enlarged_vectors import enlarge, likeness, nearest


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Embeddings of a sort: a few centres, and variance that falls from direction to direction."""
    rng = np.random.default_rng(0)
    spread = np.linspace(1, 0.1, 32)
    return unit(rng.normal(size=(25, 32))[rng.integers(0, 25, 1_500)] + rng.normal(size=(1_500, 32)) * spread)


def test_a_row_is_its_own_nearest_and_then_by_similarity(real):
    near = nearest(real, 5)
    similarity = real.astype(np.float64) @ real.T
    np.fill_diagonal(similarity, 2)
    expected = np.sort(similarity, axis=1)[:, ::-1][:, :6]
    np.testing.assert_array_equal(near[:, 0], np.arange(len(real)))
    np.testing.assert_allclose(np.take_along_axis(similarity, near, 1), expected, atol=1e-6)


def test_made_vectors_are_of_unit_length_repeatable_and_no_copies(real):
    made = enlarge(real, 2_000, seed=3)
    assert (made.shape, made.dtype) == ((2_000, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(made, enlarge(real, 2_000, seed=3))
    assert (made @ real.T).max() < 0.9999


def test_made_vectors_lie_like_real_ones(real):
    base, images = real[:1_000], real[1_000:]
    texts = unit(images + np.random.default_rng(1).normal(size=images.shape) * 0.3)
    true, made = likeness(base, images, texts), likeness(enlarge(base, len(base)), images, texts)
    assert abs(true.image_nearest - made.image_nearest) < 0.05
    assert abs(true.text_tenth - made.text_tenth) < 0.05
    assert made.image_local_dimension == pytest.approx(true.image_local_dimension, rel=0.3)
    assert made.effective_rank == pytest.approx(true.effective_rank, rel=0.3)
