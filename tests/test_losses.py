"""Objectives equal formulas written anew in float64 NumPy, value and gradient, and treat true matches as such."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from data.errors import TrainingError
from dual_encoder.losses import InfoNCE, KerasExampleLoss, Matches, SigmoidLoss, l2_normalise, positive_mask


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


def value_and_gradients(objective, image, text, log_scale, positives, *bias):
    variables = [tf.Variable(value, dtype=tf.float32) for value in (image, text, log_scale, *bias)]
    with tf.GradientTape() as tape:
        loss = objective(*variables[:3], positives, *variables[3:])
    gradients = tape.gradient(loss, variables)
    return float(loss), [None if g is None else np.asarray(tf.convert_to_tensor(g)) for g in gradients]


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


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weighted_info_nce(
    image: np.ndarray,
    text: np.ndarray,
    scale: float,
    positives: np.ndarray,
    *,
    multi_positive: bool = False,
    beta: float = 0.0,
    soft: float = 0.0,
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Row by row, term by term; soft targets are made of the vectors of `teacher`, which are constants to gradients."""
    image, text = unit(image), unit(text)
    one, other = map(unit, teacher) if teacher else (image, text)
    own = scale * (one @ one.T + other @ other.T) / 2
    losses = []
    for table, matches in ((scale * image @ text.T, positives), (scale * text @ image.T, positives.T)):
        for row in range(len(table)):
            hits = [column for column in range(len(table)) if column == row or matches[row, column]]
            misses = [column for column in range(len(table)) if column not in hits]
            targets = hits if multi_positive else [row]
            hardness = np.exp(beta * table[row, misses])
            weights = hardness / hardness.mean()
            mass = np.exp(table[row, targets]).sum() + (weights * np.exp(table[row, misses])).sum()
            compared = targets + misses
            likeness = np.exp(own[row, compared] - own[row, compared].max())
            likeness /= likeness.sum()
            for place, column in enumerate(compared):
                target = (1 - soft) * (column in targets) / len(targets) + soft * likeness[place]
                losses.append(-target * (table[row, column] - math.log(mass)))
    return float(sum(losses) / (2 * len(image)))


def sigmoid_loss(image: np.ndarray, text: np.ndarray, scale: float, bias: float, positives: np.ndarray) -> float:
    """One question a pair, one at a time."""
    image, text = unit(image), unit(text)
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            logit = (1 if positives[i, j] else -1) * (scale * image[i] @ text[j] + bias)
            total += math.log1p(math.exp(-logit))
    return total / len(image)


@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize(("beta", "soft"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.4), (0.5, 0.3)])
def test_info_nce_s_options_equal_the_reference_value_and_gradient(
    multi_positive: bool, beta: float, soft: float
) -> None:
    image, text, mask = batch()
    objective = InfoNCE(multi_positive=multi_positive, hard_negatives=beta, soft_targets=soft)
    log_scale = math.log(6)
    loss, (by_image, by_text, by_scale) = value_and_gradients(objective, image, text, log_scale, mask)

    def reference(i: np.ndarray, t: np.ndarray) -> float:
        options = {"multi_positive": multi_positive, "beta": beta, "soft": soft}
        return weighted_info_nce(i, t, 6.0, mask, **options, teacher=(image, text))

    assert loss == pytest.approx(reference(image, text), rel=1e-5)
    np.testing.assert_allclose(by_image, numeric_gradient(lambda i: reference(i, text), image), atol=3e-5)
    np.testing.assert_allclose(by_text, numeric_gradient(lambda t: reference(image, t), text), atol=3e-5)
    assert abs(by_scale) > 1e-4


def test_every_option_changes_the_loss_and_off_is_the_plain_one() -> None:
    image, text, mask = batch()
    plain = float(InfoNCE()(image, text, 2.0, mask))
    assert plain == pytest.approx(info_nce(image, text, 2.0, mask, 100, 0), rel=1e-5)
    for changed in (InfoNCE(multi_positive=True), InfoNCE(hard_negatives=0.5), InfoNCE(soft_targets=0.5)):
        assert abs(float(changed(image, text, 2.0, mask)) - plain) > 1e-3, changed


@pytest.mark.parametrize("settings", [{"soft_targets": 0.6, "label_smoothing": 0.5}, {"hard_negatives": -1.0}])
def test_settings_that_are_no_objective_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match="hard_negatives"):
        InfoNCE(**settings)


def test_hard_negatives_pull_at_the_nearest_wrong_row() -> None:
    """Text 1 is close to image 0 and text 2 is far: a larger share of the push falls on text 1."""
    image = np.eye(3, 4)
    text = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0.1, 0, 1, 0]], float)
    share = []
    for beta in (0.0, 1.0):
        objective = InfoNCE(hard_negatives=beta)
        _, (_, by_text, _) = value_and_gradients(objective, image, text, math.log(5), np.eye(3, dtype=bool))
        push = np.linalg.norm(by_text, axis=1)
        share.append(push[1] / push.sum())
    assert share[1] > 1.05 * share[0]


OBJECTIVES = [
    InfoNCE(label_smoothing=0.1),
    InfoNCE(multi_positive=True),
    InfoNCE(multi_positive=True, hard_negatives=0.5, soft_targets=0.3),
    SigmoidLoss(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_objective_cares_which_tower_is_which_nor_about_order(objective: InfoNCE | SigmoidLoss) -> None:
    image, text, mask = batch()
    loss = float(objective(image, text, 2.0, mask, -3.0))
    assert float(objective(text, image, 2.0, mask.T, -3.0)) == pytest.approx(loss, rel=1e-5)
    order = np.random.default_rng(1).permutation(len(image))
    permuted = float(objective(image[order], text[order], 2.0, mask[np.ix_(order, order)], -3.0))
    assert permuted == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("times", [2, 3])
def test_duplicated_rows_leave_the_gradient_of_the_multi_positive_loss_as_it_is(times: int) -> None:
    """The whole batch again: log k more loss for InfoNCE, k times the loss for the sigmoid; the direction stays."""
    image, text, _ = batch()
    images, captions = np.array([9, 1, 2, 9, 4, 5]), np.array([0, 7, 7, 3, 4, 5])
    again = (np.tile(image, (times, 1)), np.tile(text, (times, 1)), 2.0)
    repeated = Matches(np.tile(images, times), np.tile(captions, times))

    def summed(gradient: np.ndarray) -> np.ndarray:
        return gradient.reshape(times, *image.shape).sum(axis=0)

    objective = InfoNCE(multi_positive=True)
    once, (by_image, by_text, by_scale) = value_and_gradients(objective, image, text, 2.0, Matches(images, captions))
    more, (more_image, more_text, more_scale) = value_and_gradients(objective, *again, repeated)
    assert more - once == pytest.approx(math.log(times), rel=1e-4)
    np.testing.assert_allclose(summed(more_image), by_image, atol=1e-6)
    np.testing.assert_allclose(summed(more_text), by_text, atol=1e-6)
    np.testing.assert_allclose(more_scale, by_scale, atol=1e-5)
    left_out, _ = value_and_gradients(InfoNCE(), image, text, 2.0, Matches(images, captions))
    left_out_more, _ = value_and_gradients(InfoNCE(), *again, repeated)
    assert abs(left_out_more - left_out - math.log(times)) > 1e-2, "the default has no such invariance"

    once, (by_image, *_) = value_and_gradients(SigmoidLoss(), image, text, 2.0, Matches(images, captions), -3.0)
    more, (more_image, *_) = value_and_gradients(SigmoidLoss(), *again, repeated, -3.0)
    assert more == pytest.approx(times * once, rel=1e-5)
    np.testing.assert_allclose(summed(more_image), times * by_image, rtol=1e-4, atol=1e-6)


def test_the_sigmoid_loss_and_its_gradients_equal_the_reference() -> None:
    image, text, mask = batch()
    loss, gradients = value_and_gradients(SigmoidLoss(), image, text, math.log(4), mask, -2.0)

    def reference(i: np.ndarray = image, t: np.ndarray = text, s: float = math.log(4), b: float = -2.0) -> float:
        return sigmoid_loss(i, t, math.exp(s), b, mask)

    assert loss == pytest.approx(reference(), rel=1e-5)
    expected = [
        numeric_gradient(lambda i: reference(i=i), image),
        numeric_gradient(lambda t: reference(t=t), text),
        numeric_gradient(lambda s: reference(s=float(s)), np.array(math.log(4))),
        numeric_gradient(lambda b: reference(b=float(b)), np.array(-2.0)),
    ]
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-5)


def test_the_sigmoid_loss_starts_as_its_paper_does_and_stays_finite() -> None:
    objective = SigmoidLoss()
    assert (objective.initial_scale, objective.initial_bias) == (10.0, -10.0)
    image, text, mask = batch()
    image[0] = 0
    loss, gradients = value_and_gradients(objective, 1e4 * image, text, 20.0, mask, -10.0)
    assert math.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_an_accidental_hit_is_a_yes_to_the_sigmoid_loss() -> None:
    """The same pair twice: a model that answers yes everywhere has almost no loss, and no wish to part them."""
    same = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert float(SigmoidLoss()(same, same, math.log(20), Matches(np.array([3, 3]), np.array([0, 1])), -10.0)) < 1e-3
    assert float(SigmoidLoss()(same, same, math.log(20), np.eye(2, dtype=bool), -10.0)) > 9


WEIGHTS = [1.0, 0.3, 2, 0, 0.5, 1]  # of pairs


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize(
    ("graph", "weights", "chunk"),
    [
        (False, None, 1),
        (False, None, 4),
        (True, WEIGHTS, 4),
        *(pytest.param(True, *others, marks=pytest.mark.slow) for others in ((None, 1), (None, 4), (WEIGHTS, 1))),
    ],
)
def test_chunks_of_rows_change_neither_value_nor_gradient(
    objective: InfoNCE | SigmoidLoss, graph: bool, weights: list[float] | None, chunk: int
) -> None:
    image, text, _ = batch()
    # A caption shared by two images whose numbers differ, an image shared by two captions.
    matches = Matches(
        tf.constant([9, 1, 2, 9, 4, 5]), tf.constant([0, 7, 7, 3, 4, 5]), weights and tf.constant(weights)
    )
    whole = dataclasses.replace(objective, chunk_rows=0)
    expected, wanted = value_and_gradients(whole, image, text, 2.0, matches, -3.0)
    parted = dataclasses.replace(objective, chunk_rows=chunk)
    # In a graph whose batch size is not known either.
    shape = tf.TensorSpec((None, 4), tf.float32)
    scalar = tf.TensorSpec((), tf.float32)

    @tf.function(input_signature=[shape, shape, scalar, scalar])
    def in_graph(image, text, log_scale, bias):
        return parted(image, text, log_scale, matches, bias)

    def run(image, text, log_scale, positives, bias):
        return (in_graph if graph else parted)(*(image, text, log_scale), *([] if graph else [positives]), bias)

    loss, found = value_and_gradients(run, image, text, 2.0, matches, -3.0)
    assert loss == pytest.approx(expected, rel=1e-6)
    for one, other in zip(found, wanted, strict=True):
        if other is None:  # InfoNCE has no bias
            assert one is None or not np.any(one)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# Rows 0 and 3 show one image, rows 1 and 2 have one caption.
IMAGES, CAPTIONS = np.array([9, 1, 2, 9, 4, 5]), np.array([0, 7, 7, 3, 4, 5])
WEIGHTS = np.array([1.0, 0.25, 3.0, 0.0, 0.5, 1.0])


def weighted(weights: np.ndarray | None) -> Matches:
    return Matches(IMAGES, CAPTIONS, None if weights is None else np.float32(weights))


@pytest.mark.parametrize("objective", [*OBJECTIVES, KerasExampleLoss()], ids=str)
def test_a_row_s_weight_is_its_share_of_the_mean_of_both_directions(objective) -> None:
    """The loss is linear in the shares: that of any weights is the mean of the losses of one row at a time."""
    image, text, _ = batch()
    loss, gradients = value_and_gradients(objective, image, text, 2.0, weighted(WEIGHTS), -3.0)
    single = [value_and_gradients(objective, image, text, 2.0, weighted(row), -3.0) for row in np.eye(6)]
    shares = WEIGHTS / WEIGHTS.sum()
    assert loss == pytest.approx(sum(share * one for share, (one, _) in zip(shares, single, strict=True)), rel=1e-5)
    for number, gradient in enumerate(gradients):
        if gradient is not None:
            mean = sum(share * parts[number] for share, (_, parts) in zip(shares, single, strict=True))
            np.testing.assert_allclose(gradient, mean, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("objective", [*OBJECTIVES, KerasExampleLoss()], ids=str)
def test_equal_weights_are_no_weights(objective) -> None:
    image, text, _ = batch()
    expected, wanted = value_and_gradients(objective, image, text, 2.0, weighted(None), -3.0)
    for weight in (1.0, 0.125, 40.0):
        loss, found = value_and_gradients(objective, image, text, 2.0, weighted(np.full(6, weight)), -3.0)
        assert loss == pytest.approx(expected, rel=1e-5)
        for one, other in zip(found, wanted, strict=True):
            if other is not None:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_weighted_losses_and_gradients_equal_the_reference() -> None:
    image, text, mask = batch()
    scale, bias, weights = math.log(4), -2.0, WEIGHTS / WEIGHTS.sum()

    def info_nce_of(i: np.ndarray, t: np.ndarray) -> float:
        """Each row's cross-entropy over its allowed columns, by both tables, written out."""
        logits, total = math.exp(scale) * unit(i) @ unit(t).T, 0.0
        for table, matches in ((logits, mask), (logits.T, mask.T)):
            for row in range(6):
                allowed = [column for column in range(6) if column == row or not matches[row, column]]
                total += weights[row] * (np.log(np.exp(table[row, allowed]).sum()) - table[row, row]) / 2
        return total

    def sigmoid_of(i: np.ndarray, t: np.ndarray) -> float:
        answers = np.where(mask, 1, -1) * (math.exp(scale) * unit(i) @ unit(t).T + bias)
        return float(((weights[:, None] + weights[None, :]) / 2 * np.log1p(np.exp(-answers))).sum())

    for objective, reference in ((InfoNCE(), info_nce_of), (SigmoidLoss(), sigmoid_of)):
        loss, found = value_and_gradients(objective, image, text, scale, weighted(WEIGHTS), bias)
        assert loss == pytest.approx(reference(image, text), rel=1e-5)
        by_image = numeric_gradient(lambda i, f=reference: f(i, text), image)
        by_text = numeric_gradient(lambda t, f=reference: f(image, t), text)
        np.testing.assert_allclose(found[0], by_image, atol=2e-5)
        np.testing.assert_allclose(found[1], by_text, atol=2e-5)


def test_a_row_of_no_weight_stays_a_negative_of_the_others() -> None:
    image, text, _ = batch()
    rows = np.arange(6)
    loss, (_, by_text, _) = value_and_gradients(InfoNCE(), image, text, 2.0, Matches(rows, rows, np.float32(rows != 5)))
    without, _ = value_and_gradients(InfoNCE(), image[:5], text[:5], 2.0, Matches(rows[:5], rows[:5]))
    assert loss > without, "it is one more column for everybody"
    assert np.abs(by_text[5]).max() > 1e-4


@pytest.mark.parametrize("objective", [InfoNCE(), SigmoidLoss(), KerasExampleLoss()], ids=str)
def test_a_batch_without_any_weight_has_no_loss(objective) -> None:
    image, text, _ = batch()
    loss, gradients = value_and_gradients(objective, image, text, 2.0, weighted(np.zeros(6)), -3.0)
    assert loss == 0
    assert all(gradient is None or not np.any(gradient) for gradient in gradients)


def test_matches_take_a_batch_s_weights() -> None:
    rows = {"image_row": np.array([5, 6]), "caption_group": np.array([1, 2])}
    assert Matches.of_batch(rows).weights is None
    assert Matches.of_batch({**rows, "weight": np.float32([1, 0.5])}).weights.tolist() == [1, 0.5]


def test_matches_by_group_are_the_mask_of_the_same_rows() -> None:
    rows = {"image_row": np.array([5, 6, 7]), "caption_group": np.array([1, 2, 2])}
    np.testing.assert_array_equal(
        np.asarray(Matches.of_batch(rows).of_rows(np.array([0, 2]))),
        np.asarray(positive_mask(rows["image_row"], rows["caption_group"]))[[0, 2]],
    )
    grouped = Matches.of_batch({**rows, "image_group": np.array([5, 5, 7])})  # images 5 and 6 are near-duplicates
    assert np.asarray(grouped.of_rows(np.arange(3))).tolist() == [[True, True, False], [True] * 3, [False, True, True]]
