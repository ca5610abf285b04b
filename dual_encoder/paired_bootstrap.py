"""Whether one model is better than another on the same queries, or only luckier; knows ranks, no model.

Differences are resampled by image, jointly: a bootstrap sample holds the same images for both models and both
directions, so that what is hard for both cancels out (Efron & Tibshirani 1993; Koehn 2004, "Statistical significance
tests for machine translation evaluation", for the paired form).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dual_encoder.metrics import RankedQueries, resampled_means

METRICS = ("recall@1", "recall@5", "recall@10", "mean_reciprocal_rank")
RESAMPLES = 5000


def compare(
    ours: Mapping[str, RankedQueries], theirs: Mapping[str, RankedQueries], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """For each direction and metric: both values, the difference (ours − theirs), its interval and its p-value.

    `confidence_95` is the percentile interval. `p_value` is two-sided: twice the share of bootstrap differences on the
    far side of zero, at least 2 / (resamples + 1). `ValueError` when the queries are not the same.
    """
    return {direction: _compare_direction(ours[direction], theirs[direction], seed, resamples) for direction in ours}


def _compare_direction(ours: RankedQueries, theirs: RankedQueries, seed: int, resamples: int) -> dict[str, Any]:
    if not np.array_equal(ours.images, theirs.images):
        raise ValueError("expected the same queries in the same order from both models")
    our_scores, their_scores = _per_query(ours.ranks), _per_query(theirs.ranks)
    difference = our_scores - their_scores
    samples = resampled_means(difference, ours.images, seed, resamples)
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {
        name: {
            "bundle": float(our_scores[row].mean()),
            "against": float(their_scores[row].mean()),
            "difference": float(difference[row].mean()),
            "confidence_95": [float(low[row]), float(high[row])],
            "p_value": two_sided_p_value(samples[:, row]),
        }
        for row, name in enumerate(METRICS)
    }


def _per_query(ranks: np.ndarray) -> np.ndarray:
    """Each query's contribution to each of METRICS: (4, Q) float64."""
    rank = ranks.astype(np.float64)
    return np.stack([*((rank <= k).astype(np.float64) for k in (1, 5, 10)), 1.0 / rank])


def two_sided_p_value(differences: np.ndarray) -> float:
    """Twice the share of bootstrap differences (R,) on the far side of zero, at least 2 / (R + 1)."""
    # The sample at hand counts as one of the resamples: a p-value of zero would claim more than they can show.
    below = 1 + np.count_nonzero(differences <= 0)
    above = 1 + np.count_nonzero(differences >= 0)
    return min(1.0, 2 * min(below, above) / (len(differences) + 1))
