"""Classifies images by the words for their classes, and measures how well; knows no file and no command line.

Radford et al. 2021, arXiv:2103.00020, section 3.1: a class is where the text tower puts its name; an image belongs to
the class it is nearest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dual_encoder.metrics import TIE, resampled_means
from dual_encoder.paired_bootstrap import two_sided_p_value
from dual_encoder.prompts import class_vectors, filled

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime

RESAMPLES = 2000
TOPS = (1, 5)


@dataclass(frozen=True)
class ClassLabel:
    """A class as the data set calls it, and its names in words, of which all are put into the templates."""

    value: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Verdicts:
    """For each image, its class's row (N,), the row of the class it was taken for (N,), and its own class's rank (N,)
    from 1; a tie counts against the model."""

    true: np.ndarray
    taken_for: np.ndarray
    rank: np.ndarray

    def hits(self) -> np.ndarray:
        """Whether the class is among the first k, for each of `TOPS`: (2, N) float64."""
        return np.stack([(self.rank <= k).astype(np.float64) for k in TOPS])

    def confusion(self, classes: int) -> np.ndarray:
        """How many images of each class (rows) were taken for each class (columns), (C, C) int64."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.true, self.taken_for), 1)
        return counts


def classify(
    runtime: Runtime, images: np.ndarray, true: np.ndarray, classes: Sequence[ClassLabel], templates: Sequence[str]
) -> Verdicts:
    """Judge embeddings (N, D) of images whose classes' rows are `true` (N,)."""
    vectors = class_vectors(runtime.embed_texts, [filled(templates, label.names) for label in classes])
    scores = images @ vectors.T
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    own = scores[np.arange(len(true)), true]
    rank = (~(scores < own[:, np.newaxis] - TIE)).sum(axis=1)  # its own place counts; what is no number comes last
    scores[np.arange(len(true)), true] -= TIE
    return Verdicts(np.asarray(true), scores.argmax(axis=1), rank)


def accuracy(verdicts: Verdicts, seed: int = 0) -> dict[str, Any]:
    """Shares right among the first one and five, the mean of the classes' own shares, and 95 % bootstrap intervals."""
    hits, each = verdicts.hits(), np.arange(len(verdicts.true))
    low, high = np.quantile(resampled_means(hits, each, seed, RESAMPLES), [0.025, 0.975], axis=0)
    figures: dict[str, Any] = {
        f"top_{k}": {"value": float(hits[row].mean()), "confidence_95": [float(low[row]), float(high[row])]}
        for row, k in enumerate(TOPS)
    }
    present = np.unique(verdicts.true)
    figures["top_1_class_mean"] = float(np.mean([hits[0][verdicts.true == row].mean() for row in present]))
    return figures


def difference(ours: Verdicts, theirs: Verdicts, seed: int = 0) -> dict[str, Any]:
    """Ours minus theirs on the same images, for each of `TOPS`: interval and two-sided p-value by paired bootstrap."""
    gains = ours.hits() - theirs.hits()
    samples = resampled_means(gains, np.arange(len(ours.true)), seed, RESAMPLES)
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {
        f"top_{k}": {
            "difference": float(gains[row].mean()),
            "confidence_95": [float(low[row]), float(high[row])],
            "p_value": two_sided_p_value(samples[:, row]),
        }
        for row, k in enumerate(TOPS)
    }


def by_class(verdicts: Verdicts, classes: Sequence[ClassLabel]) -> list[dict[str, Any]]:
    """For each class its images, top-1 and top-5, precision, and the class that its images were most often taken for.

    `precision` is None for a class that no image was taken for, as the others are for one without images.
    """
    confusion = verdicts.confusion(len(classes))
    hits = verdicts.hits()
    rows = []
    for row, label in enumerate(classes):
        own, taken = verdicts.true == row, int(confusion[:, row].sum())
        wrong = confusion[row].copy()
        wrong[row] = 0
        rows.append(
            {
                "class": label.value,
                "images": int(own.sum()),
                **{f"top_{k}": float(hits[n][own].mean()) if own.any() else None for n, k in enumerate(TOPS)},
                "precision": float(confusion[row, row] / taken) if taken else None,
                "most_often_taken_for": classes[int(wrong.argmax())].value if wrong.any() else None,
            }
        )
    return rows
