"""Turns pixels into the sequence that a Vision Transformer reads; knows no Transformer block."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from dual_encoder.towers.transformer import layer_norm

Tensor = Any


@keras.saving.register_keras_serializable("dual_encoder")
class PatchEmbedding(keras.layers.Layer):
    """Pixels (B, S, S, 3) to (B, L, W): a linear map of each square patch, plus learned positions.

    With `class_token`, a learned token comes first and the sum is layer-normalised, as in CLIP. Weights: patch_kernel
    (P P 3, W), a convolution's kernel (P, P, 3, W) flattened; positions (L, W); class_token (W,), norm_gamma and
    norm_beta (W,).
    """

    def __init__(self, patch: int, width: int, class_token: bool = True, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch, self.width, self.class_token, self.epsilon = patch, width, class_token, epsilon

    def build(self, pixels_shape: tuple[int | None, ...]) -> None:
        """Make the weights for (B, S, S, 3)."""
        side, channels = pixels_shape[1], pixels_shape[3]
        assert side is not None
        assert channels is not None
        self.side = side // self.patch
        values = self.patch**2 * channels
        # CLIP's scale: products with W-sized rows come out near 1.
        scale = keras.initializers.RandomNormal(stddev=self.width**-0.5)
        self.kernel = self.add_weight(shape=(values, self.width), initializer="glorot_uniform", name="patch_kernel")
        length = self.side**2 + self.class_token
        self.positions = self.add_weight(shape=(length, self.width), initializer=scale, name="positions")
        if self.class_token:
            self.token = self.add_weight(shape=(self.width,), initializer=scale.clone(), name="class_token")
            self.gamma = self.add_weight(shape=(self.width,), initializer="ones", name="norm_gamma")
            self.beta = self.add_weight(shape=(self.width,), initializer="zeros", name="norm_beta")

    def call(self, pixels: Tensor) -> Tensor:
        """One matrix product: patches do not overlap."""
        side, patch, channels = self.side, self.patch, pixels.shape[-1]
        patches = tf.reshape(pixels, (-1, side, patch, side, patch, channels))
        patches = tf.reshape(tf.transpose(patches, (0, 1, 3, 2, 4, 5)), (-1, patch * patch * channels))
        x = tf.matmul(patches, tf.convert_to_tensor(self.kernel))
        x = tf.reshape(x, (-1, side * side, self.width))
        if not self.class_token:
            return x + tf.convert_to_tensor(self.positions)
        token = tf.tile(tf.reshape(tf.convert_to_tensor(self.token), (1, 1, -1)), (tf.shape(x)[0], 1, 1))
        x = tf.concat([token, x], axis=1) + tf.convert_to_tensor(self.positions)
        return layer_norm(x, self.gamma, self.beta, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("patch", "width", "class_token", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def compute_output_shape(self, pixels_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(B, L, W)."""
        side = (pixels_shape[1] or 0) // self.patch
        return (pixels_shape[0], side**2 + self.class_token, self.width)
