"""Averages of weights: over the steps of a run, and between its start and its end; knows no training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class MovingAverage:
    """Exponential moving average of `variables` over steps, after step t with decay min(`decay`, (1 + t) / (10 + t)).

    The warm-up (as TensorFlow's ExponentialMovingAverage with `num_updates`) lets the first steps, which are far from
    where training goes, be forgotten. A decay of 0 is no average: nothing is kept.
    """

    def __init__(self, variables: Sequence[Any], decay: float) -> None:
        self.decay = decay
        self.variables = list(variables) if decay else []
        self.averages = [tf.Variable(variable, trainable=False) for variable in self.variables]
        self._update = tf.function(self._move)

    def update(self, step: int) -> None:
        """Take in the weights after step `step` of the run, counted from 0."""
        if self.variables:
            decay = min(self.decay, (1 + step) / (10 + step))
            self._update(tf.constant(decay, tf.float32))

    def _move(self, decay: Any) -> None:
        for average, variable in zip(self.averages, self.variables, strict=True):
            value = tf.convert_to_tensor(variable)
            average.assign_add((1 - tf.cast(decay, value.dtype)) * (value - average))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in for the weights; afterwards the weights are back bit by bit."""
        kept = [np.asarray(variable) for variable in self.variables]
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(self.variables, kept, strict=True):
                variable.assign(value)


def interpolated(start: Mapping[str, np.ndarray], end: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """(1 - alpha) · start + alpha · end; what is no real number (states of generators) as at the end."""
    if alpha == 1:
        return dict(end)
    return {
        name: (start[name] + np.float32(alpha) * (array - start[name])).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in end.items()
    }


def best_interpolation(alphas: Sequence[float], score: Callable[[float], float]) -> tuple[float, dict[str, float]]:
    """The alpha of the highest score, the larger of two equal ones, and every score by alpha (empty for one alpha).

    WiSE-FT (Wortsman et al. 2021, arXiv:2109.01903): between the weights before and after fine-tuning there are often
    some that are better than both, on the data trained on and more so on other data.
    """
    if len(alphas) == 1:
        return alphas[0], {}
    scores = {alpha: score(alpha) for alpha in alphas}
    return max(scores, key=lambda alpha: (scores[alpha], alpha)), {f"{a:g}": value for a, value in scores.items()}
