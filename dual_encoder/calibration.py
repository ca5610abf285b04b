"""Turns the scores of a query's first hits into probabilities, one a hit and one that there is no answer; knows neither
model nor index.

A conditional logit (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"): the right answer is
one of the hits or none of them, "none" has the utility 0, and hit i

    u_i = bias + slope · s_i − context · s_last − gallery · ln N,        P(hit i is right) = exp u_i / (1 + Σ_j exp u_j)

with s_i its score, s_last that of the last of the first `depth` hits (what this query scores with images that are not
meant), and N the number of images searched: the more compete, the likelier a high score is chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import BundleError

DEPTH = 10


@dataclass(frozen=True)
class Calibration:
    """The fitted map of one model; monotone in a hit's own score.

    `smallest` and `largest` are the gallery sizes it was fitted on: beyond them it extrapolates. Half of the queries it
    was fitted on had no answer.
    """

    bias: float
    slope: float
    context: float
    gallery: float
    smallest: int
    largest: int
    queries: int
    depth: int = DEPTH

    def __post_init__(self) -> None:
        numbers = (self.bias, self.slope, self.context, self.gallery)
        if not all(math.isfinite(number) for number in numbers) or self.slope < 0 or self.depth < 1:
            raise BundleError(
                "a calibration of finite numbers, slope of at least 0 and depth of at least 1",
                f"{dataclasses.asdict(self)}",
                "export or train the bundle again",
            )

    def probability(self, scores: np.ndarray, gallery: int) -> np.ndarray:
        """Probability that each hit is the right one: scores (Q, k), best first, of a search over `gallery` images.

        Returns (Q, k) float64. A row must hold the first `depth` hits, or all there are; hits after these get their
        probability too. A score that is no number gets 0.
        """
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 2 or scores.shape[1] < min(self.depth, gallery):
            raise ValueError(
                f"expected scores (queries, first {min(self.depth, gallery)} hits or more), received {scores.shape}"
            )
        utility = self._utility(scores, gallery)
        largest = np.maximum(utility[:, : self.depth].max(axis=1, initial=0.0), 0.0)[:, np.newaxis]
        weight = np.exp(utility - largest)
        return weight / (np.exp(-largest) + weight[:, : self.depth].sum(axis=1, keepdims=True))

    def answered(self, scores: np.ndarray, gallery: int) -> np.ndarray:
        """Probability (Q,) that one of the first `depth` hits is right; low where nothing matches.

        Arguments as of `probability`.
        """
        return self.probability(scores, gallery)[:, : self.depth].sum(axis=1)

    def _utility(self, scores: np.ndarray, gallery: int) -> np.ndarray:
        known = np.isfinite(scores)
        last = np.where(known[:, : self.depth], scores[:, : self.depth], np.inf).min(axis=1, initial=np.inf)
        last = np.where(np.isfinite(last), last, 0.0)[:, np.newaxis]
        utility = self.bias + self.slope * scores - self.context * last - self.gallery * math.log(max(gallery, 1))
        return np.where(known, utility, -np.inf)

    def to_config(self) -> dict[str, Any]:
        """JSON form, read back by `from_config`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_config`; `BundleError` for another set of keys or for numbers that cannot be."""
        try:
            return cls(**config)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise BundleError(f"a calibration of {known}", str(error), "export or train the bundle again") from None
