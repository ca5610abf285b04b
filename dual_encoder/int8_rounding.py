"""Rounds a matrix product to int8 so that its outputs change least on given inputs; knows no graph and no model.

Activations become unsigned bytes by one scale that is fixed beforehand: what a text gives does not depend on the texts
that run with it. Weights become signed bytes with a scale for each column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 127  # of a weight
LARGEST_SUM = 128  # of two neighbouring weights of one sign: 255 · 128 is the most that 16 bits hold
# Shares of the largest activation at which channels begin to be divided, 1 leaves all as they are.
THRESHOLDS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
WORTH_DIVIDING = 2e-4  # of the squared outputs lost without: dividing takes another pass over the inputs
DAMPING = 0.01  # of the mean of the inputs' second moments, as in GPTQ
BLOCK = 64  # rows whose error is carried on one by one before the rest sees it


@dataclass(frozen=True)
class Int8Input:
    """How inputs (T, K) become bytes: divided by `factors` (K,), if any, then by `scale`, plus `zero_point`."""

    scale: np.float32
    zero_point: np.uint8
    factors: np.ndarray | None

    def divided(self, inputs: np.ndarray) -> np.ndarray:
        """The inputs that are rounded."""
        return inputs if self.factors is None else inputs / self.factors

    def rounded(self, inputs: np.ndarray) -> np.ndarray:
        """What the bytes of inputs (T, K) stand for."""
        zero = np.float32(self.zero_point)
        return (np.clip(np.rint(self.divided(inputs) / self.scale) + zero, 0, 255) - zero) * self.scale


@dataclass(frozen=True)
class Int8Weight:
    """Weights (K, N) int8 with scales (N,), and what to add to the bias (N,) for the mean error of the product."""

    values: np.ndarray
    scales: np.ndarray
    correction: np.ndarray


def fit_input(inputs: np.ndarray, weight: np.ndarray) -> Int8Input:
    """Scale and factors by which the product of `inputs` (T, K) and all weights that read them (K, N) changes least.

    A few channels of a transformer are many times as large as the others, and one scale for all leaves these few steps.
    Channels above a threshold are divided by what they exceed it by, and their weights multiplied, as in SmoothQuant
    (Xiao et al. 2022); the lower the threshold, the finer the activations and the coarser the weights, and the more
    channels of other inputs leave the range.
    """
    exact = inputs @ weight
    unnoticed = WORTH_DIVIDING * float(np.square(exact).sum())
    best: tuple[float, Int8Input] | None = None
    for threshold in THRESHOLDS:
        found = _divided_above(threshold, inputs)
        scaled = weight if found.factors is None else weight * found.factors[:, None]
        scales = column_scales(scaled)
        error = float(np.square(found.rounded(inputs) @ (np.rint(scaled / scales) * scales) - exact).sum())
        if best is None or error < best[0]:
            best = error, found
        if found.factors is None and error <= unnoticed:
            break
    assert best is not None
    return best[1]


def _divided_above(threshold: float, inputs: np.ndarray) -> Int8Input:
    """Bytes for everything that `inputs` hold, channels divided down to a share of the largest."""
    lows, highs = inputs.min(axis=0), inputs.max(axis=0)
    largest = np.maximum(-lows, highs)
    factors = np.maximum(largest / (threshold * max(float(largest.max()), 1e-6)), 1).astype(np.float32)
    low, high = min(0.0, float((lows / factors).min())), max(1e-6, float((highs / factors).max()))
    scale = np.float32((high - low) / 255)
    return Int8Input(scale, np.uint8(np.rint(-low / scale)), factors if (factors > 1).any() else None)


def fit_weight(inputs: np.ndarray, weight: np.ndarray, chosen: Int8Input) -> Int8Weight:
    """Round `weight` (K, N) for inputs (T, K) that are rounded as `chosen`."""
    scaled = weight if chosen.factors is None else weight * chosen.factors[:, None]
    scales = column_scales(scaled)
    rounded = chosen.rounded(inputs)
    values = round_compensated(scaled, scales, rounded.T @ rounded)
    error = inputs.mean(axis=0, dtype=np.float64) @ weight - rounded.mean(axis=0, dtype=np.float64) @ (values * scales)
    return Int8Weight(values.astype(np.int8), scales, error.astype(np.float32))


def column_scales(weight: np.ndarray) -> np.ndarray:
    """The finest scales (N,) for which no sum of two products overflows.

    Processors without VNNI multiply bytes two by two and add both products in 16 bits, which saturate. The usual way
    out is weights of seven bits, up to 63; but all that has to hold is that two neighbours of one sign sum to no more
    than `LARGEST_SUM`. The scales are about 0.6 times as large then.
    """
    pairs = np.concatenate([weight, np.zeros_like(weight[: len(weight) % 2])]).reshape(-1, 2, weight.shape[1])
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0)
    return np.maximum(np.maximum(np.abs(weight).max(axis=0) / LARGEST, sums / LARGEST_SUM), 1e-9).astype(np.float32)


def round_compensated(weight: np.ndarray, scales: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Round row by row, each row's error made up for by the rows to come: GPTQ (Frantar et al. 2022).

    `moments` (K, K) is the sum of the outer products of the inputs. Returns whole numbers (K, N) whose neighbours keep
    to `LARGEST_SUM`.
    """
    rows = len(weight)
    damped = moments.astype(np.float64)
    damped[np.diag_indices(rows)] += DAMPING * max(float(np.trace(damped)) / rows, 1e-9)
    order = np.argsort(-np.diag(damped), kind="stable")  # largest first: their error finds most to make up for it
    carried = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T
    left = weight[order].astype(np.float64)
    values = np.zeros(weight.shape)
    for begin in range(0, rows, BLOCK):
        end = min(rows, begin + BLOCK)
        errors = np.empty((end - begin, weight.shape[1]))
        for row in range(begin, end):
            place = order[row]
            values[place] = np.clip(np.rint(left[row] / scales), *_room(values, place))
            error = (left[row] - values[place] * scales) / carried[row, row]
            left[row + 1 : end] -= np.outer(carried[row, row + 1 : end], error)
            errors[row - begin] = error
        left[end:] -= carried[begin:end, end:].T @ errors
    return values


def _room(values: np.ndarray, place: int) -> tuple[np.ndarray | int, np.ndarray | int]:
    """The least and the largest number that a row may take beside its neighbour; one still to come is 0."""
    neighbour = place ^ 1
    if neighbour >= len(values):
        return -LARGEST, LARGEST
    beside = values[neighbour]
    return (
        np.maximum(-LARGEST, np.maximum(-beside, 0) - LARGEST_SUM),
        np.minimum(LARGEST, LARGEST_SUM - np.maximum(beside, 0)),
    )
