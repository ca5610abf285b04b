"""AdamW with a rate, a decay and a first step for each variable; knows no model and no schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import ops

# Last part of the name of a weight that is a shift or a scale; positions and kinds of token, by the path's parts.
_SPARED_NAME = re.compile(r"(^|[/_])(bias|gamma|beta|scale|log_scale)$")
_SPARED_PATH = re.compile(r"(^|[/_])(position|segment|token_type|class_token|cls_token)")


def decays(variable: Any) -> bool:
    """Whether weight decay is usual: not for biases, norms, scales, or the embeddings of positions and segments."""
    path = getattr(variable, "path", variable.name).lower()
    return len(variable.shape) > 1 and not _SPARED_NAME.search(path) and not _SPARED_PATH.search(path)


@dataclass(frozen=True)
class VariableSettings:
    """One variable: its share of the learning rate, its weight decay, and the step of the run that first moves it."""

    rate: float = 1.0
    weight_decay: float = 0.0
    first_step: int = 0


class GroupedAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) whose `settings` follow the variables it is built with.

    Decay is decoupled and multiplied by the variable's rate. A variable that starts late has Adam's bias correction
    from its own first step, not from the run's, which would make its first steps several times too long.

    The formulas are Keras's, in TensorFlow's own kernel: Keras moves a weight by a dozen operations, each of which
    reads and writes all of it. Where a gradient comes by row, as an embedding's does, Keras 3.15 adds up the squares of
    a row's several gradients; here it is the square of their sum, as for any other weight.
    """

    def __init__(self, settings: Sequence[VariableSettings], learning_rate: float = 1e-3) -> None:
        super().__init__(learning_rate=learning_rate, name="grouped_adamw")
        self.settings = list(settings)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See `keras.optimizers.Optimizer`."""
        settings = self.settings[self._get_variable_index(variable)]
        rate = ops.cast(learning_rate, variable.dtype) * settings.rate
        if settings.weight_decay:
            self.assign_sub(variable, variable * rate * settings.weight_decay)
        if settings.first_step:
            run = ops.cast(self.iterations + 1, variable.dtype)
            rate = rate * self._correction(ops.maximum(run - settings.first_step, 1.0)) / self._correction(run)
        self._move(variable, tf.convert_to_tensor(gradient), rate)

    def _move(self, variable: Any, gradient: Any, rate: Any) -> None:
        """One step of Adam on a weight and its two moments, in place."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        beta_1, beta_2 = tf.cast(self.beta_1, dtype), tf.cast(self.beta_2, dtype)
        step = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )

    def _correction(self, step: Any) -> Any:
        return ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
