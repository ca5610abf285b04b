"""Pre-norm Transformer block that both kinds of scratch tower are made of; knows neither pixels nor captions.

Written for TensorFlow's kernels: matrix products fold batch and positions into rows, query, key and value come out of
one product, and GELU in training is one pass forwards and one backwards.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import keras
import tensorflow as tf

Tensor = Any
Activation = Literal["gelu", "quick_gelu"]

# Penalty of a position that must not be attended to: its weight is exactly 0 in float32.
UNSEEN = -1e9


@keras.saving.register_keras_serializable("dual_encoder")
class TransformerBlock(keras.layers.Layer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`: (B, L, W) to (B, L, W) (Xiong et al. 2020, arXiv:2002.04745).

    `mlp_ratio` is the width of the hidden layer over W. A `causal` block sees no later position. Dropout falls on what
    attention and MLP add. "gelu" is the exact one; "quick_gelu" is `x * sigmoid(1.702 x)`, as in CLIP.

    Weights, in this order: attention_norm_gamma, attention_norm_beta (W,), qkv_kernel (W, 3W), qkv_bias (3W,) with
    query before key before value and heads in order inside each, output_kernel (W, W), output_bias (W,),
    mlp_norm_gamma, mlp_norm_beta (W,), mlp_in_kernel (W, H), mlp_in_bias (H,), mlp_out_kernel (H, W) and
    mlp_out_bias (W,).
    """

    def __init__(
        self,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        causal: bool = False,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heads, self.mlp_ratio, self.activation = heads, mlp_ratio, activation
        self.causal, self.dropout, self.epsilon = causal, dropout, epsilon
        self.attention_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="attention_dropout")
        self.mlp_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="mlp_dropout")

    def build(self, sequence_shape: tuple[int | None, ...]) -> None:
        """Make the weights for (B, L, W)."""
        width = sequence_shape[-1]
        assert width is not None
        hidden = int(width * self.mlp_ratio)
        self.attention_norm = self._norm(width, "attention_norm")
        self.qkv = self._dense(width, 3 * width, "qkv")
        self.output_projection = self._dense(width, width, "output")
        self.mlp_norm = self._norm(width, "mlp_norm")
        self.mlp_in = self._dense(width, hidden, "mlp_in")
        self.mlp_out = self._dense(hidden, width, "mlp_out")

    def call(self, sequence: Tensor, padding_mask: Tensor = None, training: bool = False) -> Tensor:
        """`padding_mask` (B, L) is 1 for positions to attend to and 0 for padding."""
        shape = tf.shape(sequence)
        length = sequence.shape[1] or shape[1]
        width = sequence.shape[-1]
        rows = tf.reshape(sequence, (-1, width))
        normed = layer_norm(rows, *self.attention_norm, self.epsilon)
        attended = self._attend(matmul_bias(normed, *self.qkv), length, padding_mask)
        rows += self.attention_dropout(matmul_bias(attended, *self.output_projection), training=training)
        normed = layer_norm(rows, *self.mlp_norm, self.epsilon)
        hidden = _activations(training)[self.activation](matmul_bias(normed, *self.mlp_in))
        rows += self.mlp_dropout(matmul_bias(hidden, *self.mlp_out), training=training)
        return tf.reshape(rows, (-1, length, width))

    def _attend(self, qkv: Tensor, length: Tensor, mask: Tensor) -> Tensor:
        """Attention of rows (B L, 3 W) within each sequence: (B L, W)."""
        width = qkv.shape[-1] // 3
        size = width // self.heads
        parts = tf.reshape(qkv, (-1, length, 3, self.heads, size))
        query, key, value = tf.unstack(tf.transpose(parts, (2, 0, 3, 1, 4)))  # (B, heads, L, size) each
        scores = tf.cast(tf.matmul(query * (size**-0.5), key, transpose_b=True), tf.float32)
        if self.causal:
            scores += UNSEEN * (1.0 - tf.linalg.band_part(tf.ones((length, length)), -1, 0))
        if mask is not None:
            scores += UNSEEN * (1.0 - tf.cast(mask, tf.float32)[:, tf.newaxis, tf.newaxis, :])
        weights = tf.cast(tf.nn.softmax(scores), qkv.dtype)
        return tf.reshape(tf.transpose(tf.matmul(weights, value), (0, 2, 1, 3)), (-1, width))

    def _dense(self, inputs: int, outputs: int, name: str) -> tuple[Tensor, Tensor]:
        kernel = self.add_weight(shape=(inputs, outputs), initializer="glorot_uniform", name=f"{name}_kernel")
        return kernel, self.add_weight(shape=(outputs,), initializer="zeros", name=f"{name}_bias")

    def _norm(self, width: int, name: str) -> tuple[Tensor, Tensor]:
        gamma = self.add_weight(shape=(width,), initializer="ones", name=f"{name}_gamma")
        return gamma, self.add_weight(shape=(width,), initializer="zeros", name=f"{name}_beta")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("heads", "mlp_ratio", "activation", "causal", "dropout", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def compute_output_shape(self, sequence_shape: tuple[int | None, ...], **kwargs: Any) -> tuple[int | None, ...]:
        """As the input's."""
        return sequence_shape


def matmul_bias(rows: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Rows (N, F) x (F, G) + (G,), in the rows' precision."""
    return tf.nn.bias_add(tf.matmul(rows, tf.cast(kernel, rows.dtype)), tf.cast(bias, rows.dtype))


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation of the last axis (Ba et al. 2016, arXiv:1607.06450), computed in float32."""
    wide = tf.cast(x, tf.float32)
    centred = wide - tf.reduce_mean(wide, axis=-1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, axis=-1, keepdims=True)
    normed = centred / tf.sqrt(variance + epsilon) * tf.cast(gamma, tf.float32) + tf.cast(beta, tf.float32)
    return tf.cast(normed, x.dtype)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), by the formula that ONNX Runtime fuses."""
    return 0.5 * x * (1.0 + tf.math.erf(x / math.sqrt(2.0)))


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU."""
    return x * tf.sigmoid(1.702 * x)


def _gelu_slope(x: Tensor, upstream: Tensor) -> Tensor:
    density = math.sqrt(0.5 / math.pi) * tf.exp(-0.5 * x * x)
    return upstream * (0.5 * (1.0 + tf.math.erf(x / math.sqrt(2.0))) + x * density)


def _quick_gelu_slope(x: Tensor, upstream: Tensor) -> Tensor:
    share = tf.sigmoid(1.702 * x)
    return upstream * share * (1.0 + 1.702 * x * (1.0 - share))


def _in_one_pass(function: Any, slope: Any) -> Any:
    """`function` for training: compiled, so that its many elementwise steps touch memory once; so is its gradient.

    Only the input is kept for the gradient, where TensorFlow would keep every intermediate result.
    """
    forward = tf.function(function, jit_compile=True, autograph=False)
    backward = tf.function(slope, jit_compile=True, autograph=False)

    @tf.custom_gradient
    def compute(x: Tensor) -> tuple[Tensor, Any]:
        return forward(x), lambda upstream: backward(x, upstream)

    return compute


_INFERENCE = {"gelu": gelu, "quick_gelu": quick_gelu}
_TRAINING = {
    "gelu": _in_one_pass(gelu, _gelu_slope),
    "quick_gelu": _in_one_pass(quick_gelu, _quick_gelu_slope),
}


def _activations(training: bool) -> dict[str, Any]:
    """Compiled functions convert to no other runtime, and compile anew for every shape: only training has them."""
    return _TRAINING if training else _INFERENCE
