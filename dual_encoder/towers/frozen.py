"""Keeps a frozen network in inference mode whatever its surroundings do; knows no network."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def apply_network(network: keras.Model, inputs: Any, trainable: bool) -> Any:
    """`network(inputs)`; a frozen one without dropout or stochastic depth also while the model around it trains."""
    return network(inputs) if trainable else _inference_layer()(network)(inputs)


@functools.cache
def _inference_layer() -> type:
    """Defined at first use, so that naming a backbone does not import TensorFlow."""
    import keras

    class Inference(keras.layers.Layer):
        """Calls `network` with `training=False`."""

        def __init__(self, network: keras.Model) -> None:
            super().__init__(name=f"frozen_{network.name}")
            self.network = network

        def build(self, inputs_shape: Any) -> None:
            """Nothing to do: the network is built."""

        def call(self, inputs: Any) -> Any:
            """See the class."""
            return self.network(inputs, training=False)

        def compute_output_spec(self, inputs: Any) -> Any:
            """The network's own."""
            return self.network.compute_output_spec(inputs)

    return Inference
