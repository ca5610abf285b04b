"""How a backbone's many outputs become one feature vector; knows no backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def mean_over_mask(sequence: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    """Token outputs `(B, L, F)` averaged where `mask` `(B, L)` is 1, float32 `(B, F)`; zeros for an empty mask."""
    from keras import ops

    weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
    total = ops.sum(ops.cast(sequence, "float32") * weights, axis=1)
    return total / ops.maximum(ops.sum(weights, axis=1), 1e-9)


def mean_over_positions(features: keras.KerasTensor) -> keras.KerasTensor:
    """`(B, …, F)`, the positions of a picture or of its patches, averaged to float32 `(B, F)`."""
    from keras import ops

    features = ops.cast(features, "float32")
    positions = tuple(range(1, len(features.shape) - 1))
    return ops.mean(features, axis=positions) if positions else features
