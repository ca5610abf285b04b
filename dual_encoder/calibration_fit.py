"""Fits and measures a calibration: plays searches with and without their answer on embedded pairs; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import SourceError
from dual_encoder.calibration import DEPTH, Calibration
from dual_encoder.metrics import TIE, resampled_means

SIZES = 5  # gallery sizes played, each half as large as the one before
FEWEST = 50  # captions below which a calibration would be an accident
MOST = 5_000  # captions played at each gallery size: more do not sharpen a handful of numbers
RIDGE = 0.1  # a prior on standardised weights: keeps the fit finite where hits and misses are separable
BINS = 10
EDGES = np.linspace(0, 1, 21)
_BLOCK_SCORES = 4_000_000  # scores computed at a time, 16 MB


@dataclass(frozen=True)
class Retrievals:
    """Searches as a user would see them, each over a gallery without near-duplicates of its answer.

    `scores` (Q, k) are those of the first hits, best first, and −inf where there are fewer; `right` (Q,) is the
    position of the true image among them, −1 where it is not; `answerable` (Q,) says whether the gallery holds it;
    `images` (Q,) are rows of the queries' images; `gallery` is the number of images searched.
    """

    scores: np.ndarray
    right: np.ndarray
    answerable: np.ndarray
    images: np.ndarray
    gallery: int

    @property
    def hits(self) -> np.ndarray:
        """Which hit is right, (Q, k) bool."""
        return np.arange(self.scores.shape[1]) == self.right[:, np.newaxis]


def play(
    images: np.ndarray,
    captions: np.ndarray,
    caption_image: np.ndarray,
    groups: Sequence[int],
    gallery: int,
    seed: int = 0,
    most: int = MOST,
    depth: int = DEPTH,
) -> Retrievals:
    """Search for captions among `gallery` random images, once with the caption's image among them and once without.

    Shapes: images (N, D) and captions (C, D), L2-normalised; caption_image (C,); `groups` (N,) numbers near-duplicates
    alike: others of the query's own group are never in its gallery, since they may answer it. At most `most` captions
    are asked, drawn at random.
    """
    generator = np.random.default_rng(seed)
    asked = np.sort(generator.permutation(len(captions))[:most])
    drawn = np.sort(generator.permutation(len(images))[:gallery])
    group = np.asarray(groups)
    others, own = [], []
    step = max(1, _BLOCK_SCORES // max(1, len(drawn)))
    for start in range(0, len(asked), step):
        block = asked[start : start + step]
        rows = caption_image[block]
        scores = np.asarray(captions[block] @ images[drawn].T, np.float64)
        scores[(group[rows][:, np.newaxis] == group[drawn]) | ~np.isfinite(scores)] = -np.inf
        others.append(-np.sort(-_largest(scores, depth), axis=1))
        own.append(np.einsum("qd,qd->q", captions[block], images[rows], dtype=np.float64))
    return _with_and_without(np.concatenate(others), np.concatenate(own), caption_image[asked], len(drawn), depth)


def _largest(scores: np.ndarray, depth: int) -> np.ndarray:
    """The `depth` largest of each row in any order, filled up with −inf."""
    if scores.shape[1] > depth:
        return -np.partition(-scores, depth - 1, axis=1)[:, :depth]
    return np.pad(scores, ((0, 0), (0, depth - scores.shape[1])), constant_values=-np.inf)


def _with_and_without(others: np.ndarray, own: np.ndarray, rows: np.ndarray, gallery: int, depth: int) -> Retrievals:
    """Put the true image's score (Q,) into its place among those of the others (Q, depth); a tie counts against it."""
    own = np.where(np.isfinite(own), own, -np.inf)
    place = np.count_nonzero(others >= own[:, np.newaxis] - TIE, axis=1)
    together = -np.sort(-np.column_stack([others, own]), axis=1)[:, :depth]
    right = np.where((place < depth) & np.isfinite(own), place, -1)
    return Retrievals(
        np.concatenate([together, others]),
        np.concatenate([right, np.full(len(own), -1)]),
        np.repeat([True, False], len(own)),
        np.concatenate([rows, rows]),
        gallery,
    )


def gallery_sizes(images: int) -> list[int]:
    """Sizes to fit on: all images, half of them, and so on, as far as more than twice `DEPTH` are left."""
    return [images // 2**i for i in range(SIZES) if i == 0 or images // 2**i > 2 * DEPTH]


def fit_calibration(
    images: np.ndarray, captions: np.ndarray, caption_image: np.ndarray, groups: Sequence[int], seed: int = 0
) -> Calibration:
    """The calibration that makes what was seen on these held-out pairs likeliest; arguments as of `play`.

    `SourceError` for fewer than FEWEST captions or 2 × DEPTH images, or where right hits score no higher than others.
    """
    if len(captions) < FEWEST or len(images) < 2 * DEPTH:
        raise SourceError(
            f"at least {FEWEST} captions and {2 * DEPTH} images to calibrate scores on",
            f"{len(captions)} captions of {len(images)} images",
            "give more pairs to the validation split",
        )
    sizes = gallery_sizes(len(images))
    played = [play(images, captions, caption_image, groups, size, seed + i) for i, size in enumerate(sizes)]
    weights = _most_likely(
        np.concatenate([_covariates(p) for p in played]), np.concatenate([p.hits for p in played]), len(sizes) > 1
    )
    bias, slope, context, gallery = (float(value) for value in weights)
    if not slope > 0:
        raise SourceError("right hits that score higher than wrong ones", "a model without that", "train it for longer")
    return Calibration(bias, slope, -context, -gallery, min(sizes), max(sizes), len(played[0].scores) // 2)


def _covariates(played: Retrievals) -> np.ndarray:
    """What utility is linear in, (Q, k, 4): 1, own score, last score, log gallery; NaN where there is no hit."""
    scores = np.where(np.isfinite(played.scores), played.scores, np.nan)
    last = np.broadcast_to(np.nan_to_num(np.nanmin(scores, axis=1, keepdims=True)), scores.shape)
    return np.stack([np.ones_like(scores), scores, last, np.full_like(scores, np.log(played.gallery))], axis=-1)


def _most_likely(x: np.ndarray, right: np.ndarray, vary_gallery: bool) -> np.ndarray:
    """Maximum-likelihood weights (F,) of the conditional logit with a "none" of utility 0, by Newton's method.

    `x` (Q, k, F), NaN where there is no hit; `right` (Q, k) bool. The problem is convex; a ridge on standardised
    covariates keeps it bounded. Without galleries of several sizes, theirs is one with the constant and stays 0.
    """
    known = np.isfinite(x[..., 1])
    rows = x[known]
    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    centre[0], spread[0] = 0.0, 1.0
    used = spread > 1e-9
    used[3] &= vary_gallery
    z = np.where(known[..., np.newaxis], (x - centre) / np.where(used, spread, 1.0), 0.0)[..., used]
    weights = np.zeros(z.shape[-1])
    loss, chance = _penalised(weights, z, known, right)
    for _ in range(50):
        gradient = np.einsum("qkf,qk->f", z, chance - right) + RIDGE * weights
        mean = np.einsum("qkf,qk->qf", z, chance)
        curvature = np.tensordot(z * chance[..., np.newaxis], z, axes=((0, 1), (0, 1))) - mean.T @ mean
        step = np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
        while True:  # halve a step that overshoots
            tried, tried_chance = _penalised(weights - step, z, known, right)
            if tried <= loss or np.abs(step).max() < 1e-9:
                break
            step /= 2
        weights, loss, chance = weights - step, tried, tried_chance
        if np.abs(step).max() < 1e-7:
            break
    result = np.zeros(x.shape[-1])
    result[used] = weights / np.where(used, spread, 1.0)[used]
    result[0] -= result[1:] @ centre[1:]
    return result


def _penalised(weights: np.ndarray, z: np.ndarray, known: np.ndarray, right: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log-likelihood with its ridge, and the chance (Q, k) of each hit."""
    utility = np.where(known, z @ weights, -np.inf)
    largest = np.maximum(utility.max(axis=1, keepdims=True), 0.0)
    chance = np.exp(utility - largest)
    total = np.exp(-largest) + chance.sum(axis=1, keepdims=True)
    chosen = np.where(right.any(axis=1), np.where(right, utility, 0.0).sum(axis=1), 0.0)
    log_likelihood = float((chosen - largest[:, 0] - np.log(total[:, 0])).sum())
    return RIDGE / 2 * float(weights @ weights) - log_likelihood, chance / total


def measure(calibration: Calibration, played: Retrievals) -> dict[str, Any]:
    """How well probabilities hold on searches that the calibration was not fitted on; see `docs/evaluation.md`."""
    probabilities = calibration.probability(played.scores, played.gallery)
    answered = calibration.answered(played.scores, played.gallery)
    first = played.scores[:, 0]
    return {
        "gallery": played.gallery,
        "queries": len(played.scores) // 2,
        "first_hit": _reliability(probabilities[:, 0], played.hits[:, 0], played.images),
        "first_hits": _reliability(probabilities.ravel(), played.hits.ravel()),
        "unanswerable": {
            "by_probability": _separation(answered, played.answerable, played.images),
            "by_best_score": _separation(first, played.answerable, played.images),
            "edges": EDGES.tolist(),
            "with_answer": np.histogram(answered[played.answerable], EDGES)[0].tolist(),
            "without_answer": np.histogram(answered[~played.answerable], EDGES)[0].tolist(),
        },
    }


def _reliability(stated: np.ndarray, right: np.ndarray, clusters: np.ndarray | None = None) -> dict[str, Any]:
    """Brier score (Brier 1950), that of always stating the base rate, and expected calibration error over bins of
    equally many hits (Nguyen & O'Connor 2015, arXiv:1508.05154), with the bins."""
    right = right.astype(np.float64)
    bins = [
        {"probability": float(stated[part].mean()), "right": float(right[part].mean()), "count": len(part)}
        for part in np.array_split(np.argsort(stated, kind="stable"), BINS)
        if len(part)
    ]
    gap = sum(b["count"] * abs(b["probability"] - b["right"]) for b in bins) / len(stated)
    squared = (stated - right) ** 2
    figures: dict[str, Any] = {
        "expected_calibration_error": float(gap),
        "brier": float(squared.mean()),
        "brier_of_the_base_rate": float(right.mean() * (1 - right.mean())),
        "mean_probability": float(stated.mean()),
        "right": float(right.mean()),
        "bins": bins,
    }
    if clusters is not None:
        low, high = np.quantile(resampled_means(squared[np.newaxis], clusters, 0, 1000), [0.025, 0.975])
        figures["brier_confidence_95"] = [float(low), float(high)]
    return figures


def _separation(score: np.ndarray, answerable: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """How well a score tells queries with an answer from those without."""
    yes, no = score[answerable], score[~answerable]
    threshold = float(np.quantile(yes, 0.05, method="lower"))
    generator = np.random.default_rng(0)
    _, cluster = np.unique(images[answerable], return_inverse=True)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    resampled = []
    for _ in range(200):
        rows = np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])
        resampled.append(auroc(yes[rows], no[rows]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "auroc": auroc(yes, no),
        "auroc_confidence_95": [float(low), float(high)],
        "false_positive_rate_at_95_true_positive_rate": float(np.mean(no >= threshold)),
        "threshold_at_95_true_positive_rate": threshold,
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a random positive lies above a random negative, ties counting half (Mann & Whitney 1947)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))
