import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from dual_encoder.towers.transformer import TransformerBlock, _gelu_slope, _quick_gelu_slope, gelu, quick_gelu

WIDTH, HEADS, LENGTH = 16, 4, 7
ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def block(**settings):
    """A block whose every weight is random, biases and norms too."""
    layer = TransformerBlock(HEADS, **settings)
    layer.build((None, LENGTH, WIDTH))
    generator = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape) * 0.3 + ("gamma" in weight.name))
    return layer


def sequences(rows=3):
    return np.random.default_rng(0).normal(size=(rows, LENGTH, WIDTH)).astype(np.float32)


def reference(layer, x, mask=None):
    """The block from its definition, one sequence and one head at a time, in float64."""
    weights = {weight.name: np.asarray(weight, np.float64) for weight in layer.weights}

    def norm(rows, name):
        centred = rows - rows.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(rows.var(-1, keepdims=True) + layer.epsilon)
        return scaled * weights[f"{name}_gamma"] + weights[f"{name}_beta"]

    def dense(rows, name):
        return rows @ weights[f"{name}_kernel"] + weights[f"{name}_bias"]

    results = []
    for number, rows in enumerate(np.asarray(x, np.float64)):
        query, key, value = np.split(dense(norm(rows, "attention_norm"), "qkv"), 3, axis=-1)
        seen = np.ones((len(rows), len(rows)), bool)
        if layer.causal:
            seen &= np.tri(len(rows), dtype=bool)
        if mask is not None:
            seen &= np.asarray(mask[number], bool)[None]
        heads = []
        size = WIDTH // HEADS
        for place in (slice(head * size, (head + 1) * size) for head in range(HEADS)):
            scores = np.where(seen, query[:, place] @ key[:, place].T / math.sqrt(size), -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(shares / shares.sum(-1, keepdims=True) @ value[:, place])
        rows = rows + dense(np.concatenate(heads, axis=-1), "output")
        hidden = ACTIVATIONS[layer.activation](dense(norm(rows, "mlp_norm"), "mlp_in"))
        results.append(rows + dense(hidden, "mlp_out"))
    return np.stack(results)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"causal": True}, {"activation": "quick_gelu", "mlp_ratio": 2.5, "epsilon": 1e-3}]
)
def test_it_computes_what_its_definition_says(settings, training):
    layer, x = block(**settings), sequences()
    mask = np.arange(LENGTH) < np.array([[LENGTH], [4], [1]])
    np.testing.assert_allclose(layer(x, training=training), reference(layer, x), atol=2e-5)
    with_padding = layer(x, padding_mask=mask.astype(np.int32), training=training)
    np.testing.assert_allclose(with_padding, reference(layer, x, mask), atol=2e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_gradients_of_training_are_those_of_automatic_differentiation(activation):
    layer, x = block(activation=activation), tf.constant(sequences())
    direction = tf.constant(np.random.default_rng(2).normal(size=x.shape), tf.float32)

    def gradients(training):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) * direction)
        return tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])

    for ours, automatic in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_allclose(ours, automatic, atol=1e-5 * max(1.0, np.abs(automatic).max()))


@pytest.mark.parametrize(("function", "slope"), [(gelu, _gelu_slope), (quick_gelu, _quick_gelu_slope)])
def test_the_slopes_agree_with_finite_differences(function, slope):
    x = tf.constant(np.linspace(-6, 6, 101))
    difference = (function(x + 1e-5) - function(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope(x, tf.ones_like(x)), difference, atol=1e-9)


def test_a_causal_block_sees_no_later_position():
    layer, x = block(causal=True), sequences()
    changed = x.copy()
    changed[:, 4:] += 1
    np.testing.assert_array_equal(layer(changed)[:, :4], layer(x)[:, :4])
    assert np.abs(layer(changed)[:, 4:] - layer(x)[:, 4:]).max() > 0.1


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_close_and_survives_padding_everywhere(dtype):
    layer = block()
    narrow = block(dtype=dtype)
    mask = np.array([[1] * LENGTH, [1] + [0] * (LENGTH - 1), [0] * LENGTH], np.int32)
    result = ops.cast(narrow(sequences(), padding_mask=mask, training=True), "float32")
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[:2], layer(sequences(), padding_mask=mask)[:2], atol=0.15)


def test_dropout_falls_on_both_branches_in_training_only():
    keras.utils.set_random_seed(0)
    layer, x = block(dropout=0.5), sequences()
    plain = block()
    np.testing.assert_array_equal(layer(x), plain(x))
    assert np.abs(layer(x, training=True) - layer(x, training=True)).max() > 0.1


def test_settings_round_trip():
    layer = TransformerBlock(2, mlp_ratio=2.0, activation="quick_gelu", causal=True, dropout=0.1, epsilon=1e-3)
    assert TransformerBlock.from_config(layer.get_config()).get_config() == layer.get_config()
