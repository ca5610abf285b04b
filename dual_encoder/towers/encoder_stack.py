"""What CLIP's and SigLIP's towers share: KerasHub's encoder layers called anew in groups; knows neither architecture.

KerasHub's encoders are models of one piece with some settings fixed. Their layers are called again here, so that groups
can be told apart (`Layered`) and the published settings hold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from data.errors import UserError

if TYPE_CHECKING:
    import keras

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
MOST_LAYERS = 1000  # ten times what any published model has
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")


def check_settings(backbone: Any, counts: Iterable[str]) -> None:
    """Refuse settings of which nothing can be built; `counts` names the fields that must be positive."""
    values = {name: getattr(backbone, name) for name in counts}
    wrong = [f"{name} {value!r}" for name, value in values.items() if type(value) is not int or value < 1]
    if not wrong and backbone.layers > MOST_LAYERS:
        wrong = [f"layers {backbone.layers:,}"]
    if not wrong and backbone.width % backbone.heads:
        wrong = [f"width {backbone.width} for {backbone.heads} heads"]
    if not wrong and "patch" in values and backbone.patch > backbone.size:
        wrong = [f"patch {backbone.patch} of size {backbone.size}"]
    if backbone.activation not in ACTIVATIONS:
        wrong.append(f"activation {backbone.activation!r}")
    if not 0 < backbone.epsilon < 1:
        wrong.append(f"epsilon {backbone.epsilon!r}")
    if wrong:
        raise UserError(
            f"positive whole numbers, at most {MOST_LAYERS} layers, a width that heads divides, "
            f"and an activation of {', '.join(ACTIVATIONS)}",
            ", ".join(wrong),
            "correct the settings",
        )


def activation_of(name: Activation, tanh: Any) -> Any:
    """What KerasHub's layers take for an activation: a name that they know, or for "gelu_tanh" what `tanh` is."""
    return tanh if name == "gelu_tanh" else name


def set_epsilon(layers: Iterable[keras.Layer], epsilon: float) -> None:
    """Give every layer normalisation inside `layers` its published epsilon; KerasHub has 1e-5 and 1e-6 built in."""
    import keras

    for outer in layers:
        for layer in outer._flatten_layers():
            if isinstance(layer, keras.layers.LayerNormalization):
                layer.epsilon = epsilon


def group_ends(first: str, layers: int) -> dict[str, str]:
    """Group → the layer that ends it: the embeddings, then each encoder layer."""
    return {name: f"after_{name}" for name in (first, *(f"layer{number}" for number in range(layers)))}


def run_stack(ends: Iterable[str], x: Any, layers: Sequence[keras.Layer]) -> Any:
    """`layers` in a row, each behind a layer that marks where the group before it ends."""
    import keras

    for end, layer in zip(ends, layers, strict=False):
        x = layer(keras.layers.Identity(name=end)(x))
    return x


def last_token(sequence: Any, mask: Any) -> Any:
    """Token outputs `(B, L, F)` at the last position where `mask` `(B, L)` is 1, as `(B, F)`."""
    from keras import ops

    mask = ops.cast(mask, sequence.dtype)
    following = ops.pad(mask[:, 1:], ((0, 0), (0, 1)))
    return ops.sum(sequence * ops.expand_dims(mask - following, -1), axis=1)


@functools.cache
def fixed_length_layer() -> type:
    """Defined at first use, so that naming a backbone does not import TensorFlow."""
    import keras
    import tensorflow as tf

    class FixedLength(keras.layers.Layer):
        """Ids `(B, L)` and their mask to ids `(B, length)`, with `pad_id` wherever no token stands."""

        def __init__(self, length: int, pad_id: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.length, self.pad_id = length, pad_id

        def call(self, ids: Any, mask: Any) -> Any:
            """See the class."""
            ids = tf.where(tf.cast(mask, tf.bool), ids, self.pad_id)[:, : self.length]
            padding = tf.fill((tf.shape(ids)[0], self.length), tf.constant(self.pad_id, ids.dtype))
            return tf.ensure_shape(tf.concat([ids, padding], axis=1)[:, : self.length], (None, self.length))

        def compute_output_spec(self, ids: Any, mask: Any) -> Any:
            """Known, whatever the length of the batch."""
            return keras.KerasTensor((ids.shape[0], self.length), ids.dtype)

    return FixedLength
