"""Objectives equal formulas written anew in float64 NumPy, value and gradient, and treat true matches as such."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dual_encoder.losses import InfoNCE, KerasExampleLoss, l2_normalise, positive_mask


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def info_nce(
    image: np.ndarray, text: np.ndarray, log_scale: float, positives: np.ndarray, limit: float, smoothing: float
) -> float:
    """Row by row: the matching column against the columns that are no accidental hit, both ways round."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    logits = min(math.exp(log_scale), limit) * image @ text.T
    losses = []
    for table, matches in ((logits, positives), (logits.T, positives.T)):
        for row in range(len(table)):
            allowed = [column for column in range(len(table)) if column == row or not matches[row, column]]
            chances = log_softmax(table[row : row + 1, allowed])[0]
            hit = chances[allowed.index(row)]
            losses.append(-(1 - smoothing) * hit - smoothing * chances.mean())
    return float(np.mean(losses))


def keras_example(image: np.ndarray, text: np.ndarray, temperature: float = 0.05) -> float:
    """`DualEncoder.compute_loss` of keras.io/examples/vision/nl_image_search, line by line."""
    logits = text @ image.T / temperature
    images_similarity, captions_similarity = image @ image.T, text @ text.T
    targets = np.exp(log_softmax((captions_similarity + images_similarity) / (2 * temperature)))
    captions_loss = -(targets * log_softmax(logits)).sum(axis=1)
    images_loss = -(targets.T * log_softmax(logits.T)).sum(axis=1)
    return float(((captions_loss + images_loss) / 2).mean())


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences, component by component."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        for sign in (1, -1):
            moved = at.copy()
            moved[place] += sign * 1e-5
            gradient[place] += sign * function(moved) / 2e-5
    return gradient


def batch(seed: int = 0, rows: int = 6, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image = spread * generator.normal(size=(rows, 4))
    text = 0.5 * image + spread * generator.normal(size=(rows, 4))
    # Rows 0 and 3 show one image, rows 1 and 2 have one caption.
    mask = positive_mask(np.array([9, 1, 2, 9, 4, 5]), np.array([0, 7, 7, 3, 4, 5]))
    return image, text, np.asarray(mask)


def value_and_gradients(objective, image, text, log_scale, positives):
    variables = [tf.Variable(value, dtype=tf.float32) for value in (image, text, log_scale)]
    with tf.GradientTape() as tape:
        loss = objective(*variables, positives)
    return float(loss), [None if g is None else np.asarray(g) for g in tape.gradient(loss, variables)]


def test_the_mask_holds_the_diagonal_equal_images_and_equal_captions() -> None:
    mask = np.asarray(positive_mask(np.array([5, 6, 5]), np.array([1, 2, 2])))
    assert mask.dtype == bool
    assert mask.tolist() == [[True, False, True], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("log_scale", [0.0, math.log(20)])
def test_info_nce_and_its_gradients_equal_the_reference(smoothing: float, log_scale: float) -> None:
    image, text, mask = batch()
    objective = InfoNCE(max_scale=100.0, label_smoothing=smoothing)
    loss, (by_image, by_text, by_scale) = value_and_gradients(objective, image, text, log_scale, mask)
    assert loss == pytest.approx(info_nce(image, text, log_scale, mask, 100, smoothing), rel=1e-5)

    def reference(i: np.ndarray, t: np.ndarray, s: np.ndarray) -> float:
        return info_nce(i, t, float(s), mask, 100, smoothing)

    scale = np.array(log_scale)
    np.testing.assert_allclose(by_image, numeric_gradient(lambda i: reference(i, text, scale), image), atol=2e-5)
    np.testing.assert_allclose(by_text, numeric_gradient(lambda t: reference(image, t, scale), text), atol=2e-5)
    np.testing.assert_allclose(by_scale, numeric_gradient(lambda s: reference(image, text, s), scale), atol=2e-5)


def test_info_nce_does_not_care_which_tower_is_which_nor_about_order() -> None:
    image, text, mask = batch()
    objective = InfoNCE(label_smoothing=0.1)
    loss = float(objective(image, text, 2.0, mask))
    assert float(objective(text, image, 2.0, mask.T)) == pytest.approx(loss, rel=1e-6)
    order = np.random.default_rng(1).permutation(len(image))
    permuted = float(objective(image[order], text[order], 2.0, mask[np.ix_(order, order)]))
    assert permuted == pytest.approx(loss, rel=1e-6)


def test_info_nce_sees_directions_and_not_lengths() -> None:
    image, text, mask = batch()
    lengths = np.random.default_rng(2).uniform(0.1, 50, (len(image), 1))
    objective = InfoNCE()
    assert float(objective(lengths * image, text, 2.0, mask)) == pytest.approx(
        float(objective(image, text, 2.0, mask)), rel=1e-5
    )


def test_an_accidental_hit_is_no_negative() -> None:
    """The same pair twice: nothing is left to tell apart, so a perfect model has no loss and no gradient."""
    same = np.array([[1.0, 0.0], [1.0, 0.0]])
    twice = np.asarray(positive_mask(np.array([3, 3]), np.array([0, 0])))
    loss, (by_image, _, _) = value_and_gradients(InfoNCE(), same, same, 4.0, twice)
    assert loss == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(by_image, 0, atol=1e-6)
    assert float(InfoNCE()(same, same, 4.0, np.eye(2, dtype=bool))) == pytest.approx(math.log(2), rel=1e-5)


def test_the_scale_is_clamped_and_can_still_fall_from_its_limit() -> None:
    image, text, mask = batch()
    objective = InfoNCE(max_scale=50.0)
    limit = float(np.float32(math.log(50.0)))
    at_limit, (_, _, slope_at_limit) = value_and_gradients(objective, image, text, limit, mask)
    beyond, _ = value_and_gradients(objective, image, text, limit + 3, mask)
    assert beyond == pytest.approx(at_limit, rel=1e-6)
    assert at_limit == pytest.approx(info_nce(image, text, limit, mask, 50, 0), rel=1e-4)
    assert abs(slope_at_limit) > 1e-3


def test_large_scales_and_zero_vectors_stay_finite() -> None:
    image, text, mask = batch()
    image[0] = 0
    loss, gradients = value_and_gradients(InfoNCE(max_scale=1e4), image, text, math.log(1e4), mask)
    assert math.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_projections_are_compared_in_float32() -> None:
    image, text, mask = batch()
    exact = info_nce(np.float16(image).astype(float), np.float16(text).astype(float), 4.0, mask, 100, 0)
    assert float(InfoNCE()(np.float16(image), np.float16(text), 4.0, mask)) == pytest.approx(exact, rel=1e-5)
    assert l2_normalise(np.float16(image)).dtype == "float32"


def test_the_keras_example_s_loss_is_the_published_formula_with_gradients_through_its_targets() -> None:
    image, text, mask = batch(spread=0.2)
    loss, (by_image, by_text, by_scale) = value_and_gradients(KerasExampleLoss(), image, text, 0.0, mask)
    assert loss == pytest.approx(keras_example(image, text), rel=1e-5)
    np.testing.assert_allclose(
        by_image, numeric_gradient(lambda i: keras_example(i, text), image), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(by_text, numeric_gradient(lambda t: keras_example(image, t), text), rtol=1e-3, atol=1e-4)
    assert by_scale is None  # its temperature is fixed


def test_the_keras_example_s_loss_ignores_the_mask_and_the_scale() -> None:
    image, text, mask = batch()
    assert float(KerasExampleLoss()(image, text, 0.0, mask)) == float(KerasExampleLoss()(image, text, 5.0, ~mask))
