"""Which captions do not belong to their images: the probability for each pair, and their share; knows no file.

A mixture of two components, as in learning with noisy correspondence (Huang et al., NeurIPS 2021), except that nothing
has to be guessed of one of them: pairs put together at random show how mismatched pairs score. The density of fitting
pairs is that of the random ones times the exponential of a linear function (Qin 1999, "Empirical likelihood ratio based
confidence intervals for mixture proportions", Annals of Statistics 27), fitted by expectation maximisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dual_encoder.pair_scores import PairFeatures, Scorer, pair_scores

PRIOR = 0.01  # precision of the coefficients of the log ratio
PENALTIES = (10.0, 5.0)  # of the first round, which trusts every pair, and of the second, which knows better


@dataclass(frozen=True)
class Mismatch:
    """The probability (C,) that a caption is not its image's, and `log_odds` (C,) that it is, to rank by."""

    probability: np.ndarray
    log_odds: np.ndarray

    @property
    def share(self) -> float:
        """The estimated share of mismatched pairs."""
        return float(self.probability.mean())


def find_mismatched(
    pairs: PairFeatures, seed: int = 0, kept: Callable[[Scorer], Scorer] = lambda score: score
) -> Mismatch:
    """Score every pair out of fold, judge, and once more by what is believed to fit; `kept` as for `pair_scores`."""
    trust = np.ones(len(pairs.captions))
    for number, penalty in enumerate(PENALTIES):
        found = separate(*pair_scores(pairs, trust, penalty, seed + number, kept))
        trust = np.maximum(1 - found.probability, 1e-3)
    return found


def separate(scores: np.ndarray, random: np.ndarray, iterations: int = 200) -> Mismatch:
    """Tell pairs that fit from those that do not by their signals (C, K); `random` (R, K) are known mismatches."""
    real, known = _design(scores), _design(random)
    both = np.concatenate([real, known])
    labels = np.concatenate([np.ones(len(real)), np.zeros(len(known))])
    fits = 1 / (1 + np.exp(-(scores[:, 0] - np.median(random[:, 0]) - 1)))
    coefficients = np.zeros(real.shape[1])
    for _ in range(iterations):
        fits = np.clip(fits, 1e-9, 1 - 1e-9)
        coefficients = _logistic(both, labels, np.concatenate([fits, np.ones(len(known))]), coefficients)
        log_ratio = np.clip(real @ coefficients - np.log(fits.sum() / len(known)), -50, 50)
        share = 1 - fits.mean()
        clean = (1 - share) * np.exp(log_ratio)
        updated = clean / (clean + share)
        moved = np.abs(updated - fits).max()
        fits = updated
        if moved < 1e-4:
            break
    return Mismatch(1 - fits, log_ratio)


def _design(signals: np.ndarray) -> np.ndarray:
    """A constant and the signals."""
    return np.concatenate([np.ones((len(signals), 1)), signals], axis=1)


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, start: np.ndarray, steps: int = 8) -> np.ndarray:
    """Weighted logistic regression with a prior, by Newton's method from `start`, never a step uphill.

    The prior and the halved steps keep it finite where pairs that fit lie apart from random ones.
    """

    def loss(coefficients: np.ndarray) -> float:
        logit = x @ coefficients
        return float(weights @ (np.logaddexp(0, logit) - y * logit) + PRIOR / 2 * coefficients @ coefficients)

    coefficients, before = start, loss(start)
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ coefficients, -30, 30)))
        gradient = x.T @ (weights * (chance - y)) + PRIOR * coefficients
        hessian = (x * (weights * chance * (1 - chance))[:, None]).T @ x + PRIOR * np.eye(len(coefficients))
        step = np.linalg.solve(hessian, gradient)
        while (after := loss(coefficients - step)) > before and np.abs(step).max() > 1e-9:
            step /= 2
        coefficients, before = coefficients - step, after
        if np.abs(step).max() < 1e-6:
            break
    return coefficients
