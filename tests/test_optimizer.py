"""AdamW for groups of weights: shares of the rate, who decays, and a late start as if it were the first step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from dual_encoder.optimizer import GroupedAdamW, VariableSettings, decays
from dual_encoder.towers.efficientnet_lite import EfficientNetLite
from dual_encoder.towers.minilm import MiniLM
from dual_encoder.towers.scratch import ScratchImage, ScratchText
from dual_encoder.towers.vision_transformer import VisionTransformer


def adamw(gradients: np.ndarray, rate: float, decay: float, weight: float = 1.0) -> list[float]:
    """Algorithm 2 of Loshchilov & Hutter 2019 in float64, decay times the rate; the weight after each step."""
    m = v = 0.0
    weights = []
    for step, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight -= rate * decay * weight
        weight -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-7)
        weights.append(weight)
    return weights


GRADIENTS = np.random.default_rng(0).normal(size=40)


def run(settings: list[VariableSettings], first_steps: list[int]) -> np.ndarray:
    """Weights (steps, variables) of variables that join at `first_steps` and then all have the same gradients."""
    variables = [keras.Variable(1.0) for _ in settings]
    optimizer = GroupedAdamW(settings)
    optimizer.build(variables)
    optimizer.learning_rate = 0.01
    found = []
    for step, gradient in enumerate(GRADIENTS):
        joined = [v for v, first in zip(variables, first_steps, strict=True) if first <= step]
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")] * len(joined), joined)
        found.append([float(v) for v in variables])
    return np.array(found)


def test_rate_and_decay_are_each_variable_s_own() -> None:
    settings = [VariableSettings(), VariableSettings(0.25, 0.5), VariableSettings(1.0, 0.5)]
    found = run(settings, [0, 0, 0])
    for column, (rate, decay) in enumerate(((0.01, 0.0), (0.0025, 0.5), (0.01, 0.5))):
        np.testing.assert_allclose(found[:, column], adamw(GRADIENTS, rate, decay), rtol=2e-5)


def test_a_late_start_is_like_a_first_step() -> None:
    late = 25
    found = run([VariableSettings(), VariableSettings(first_step=late)], [0, late])
    assert (found[:late, 1] == 1.0).all()
    # As float64 AdamW that began there, though Keras counts the run's steps; both corrections are float32.
    np.testing.assert_allclose(found[late:, 1], adamw(GRADIENTS[late:], 0.01, 0.0), rtol=2e-4)


@pytest.mark.parametrize(
    ("backbone", "decayed", "spared"),
    [
        (EfficientNetLite(trainable=True), {"kernel"}, {"gamma", "beta"}),
        (ScratchImage(size=16, width=8), {"kernel"}, {"bias", "gamma", "beta"}),
        (ScratchText(vocabulary_size=50, width=16), {"kernel", "token_embedding"}, {"bias", "gamma", "beta"}),
        (VisionTransformer(size=32, width=16, heads=2, layers=1), {"kernel"}, {"bias", "gamma", "beta"}),
        (MiniLM(trainable=True), {"kernel", "token_embedding"}, {"bias", "gamma", "beta", "segment_embedding"}),
    ],
    ids=["lite0", "scratch image", "scratch text", "vision transformer", "minilm"],
)
def test_only_kernels_and_token_embeddings_of_the_towers_decay(backbone, decayed: set, spared: set) -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for variable in backbone.build(load_weights=False).trainable_variables:
        *_, parent, name = variable.path.split("/")
        found[decays(variable)].add(parent if name == "embeddings" else name.rpartition("_")[2])
    assert found[True] == decayed
    assert found[False] - {"position_embedding", "positions", "token"} == spared
    assert ("position_embedding" in found[False]) == ("token_embedding" in decayed)


def test_scale_and_bias_of_the_logits_do_not_decay() -> None:
    for name in ("log_scale", "logit_bias"):
        assert not decays(keras.Variable(1.0, name=name))


SHAPES = {"kernel": (3, 4), "bias": (4,), "embeddings": (5, 2)}


def moved(optimizer: keras.optimizers.Optimizer, sparse: bool = False) -> list[np.ndarray]:
    """Weights and moments after five steps; `sparse` gives the table's gradient by row, one row twice."""
    weights = [keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in SHAPES.items()]
    optimizer.build(weights)
    generator = np.random.default_rng(0)

    @tf.function
    def step(kernel, bias, rows):
        table = tf.IndexedSlices(rows, tf.constant([3, 1, 3]), tf.constant([5, 2]))
        optimizer.apply_gradients(
            zip([kernel, bias, table if sparse else tf.convert_to_tensor(table)], weights, strict=True)
        )

    for number in range(5):
        optimizer.learning_rate.assign(0.1 / (number + 1))
        step(*(tf.constant(generator.normal(size=shape), tf.float32) for shape in ((3, 4), (4,), (3, 2))))
    return [np.asarray(variable) for variable in (*weights, *optimizer.variables)]


def test_it_moves_weights_and_moments_as_keras_does() -> None:
    ours = moved(GroupedAdamW([VariableSettings(weight_decay=0.3)] * 3))
    for found, expected in zip(ours, moved(keras.optimizers.AdamW(weight_decay=0.3)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_row_that_a_batch_uses_twice_moves_by_the_sum_of_its_gradients() -> None:
    by_row, dense = (moved(GroupedAdamW([VariableSettings()] * 3), sparse) for sparse in (True, False))
    for found, expected in zip(by_row, dense, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_loss_scale_of_float16_is_taken_out() -> None:
    weights = [keras.Variable(np.ones(3, np.float32)) for _ in range(2)]
    for weight, inner in zip(weights, (GroupedAdamW([VariableSettings()]), keras.optimizers.Adam()), strict=True):
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
        optimizer.build([weight])
        for _ in range(3):
            optimizer.apply_gradients([(tf.constant([8.0, -4.0, 2.0]), weight)])
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-6)
