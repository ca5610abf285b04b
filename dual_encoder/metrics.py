"""Retrieval metrics in NumPy; knows no model and no data set.

Protocol (Karpathy & Fei-Fei 2015, arXiv:1412.2306): in text→image every caption is a query with one right image; in
image→text every image is a query and any of its captions is right. A query's rank is that of its best right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Scores closer than this are a tie. Duplicate images tie in theory, but float32 products differ in the last bits.
TIE = 1e-6
_BLOCK = 1024  # queries at a time, and fewer where the gallery is so large that they would take more than this:
_BLOCK_SCORES = 4_000_000  # scores, 16 MB


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (…, D) scaled to unit length; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def ranks(queries: np.ndarray, gallery: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """Rank, from 1, of each query's best right answer; ties with wrong answers count against the model.

    Shapes: queries (Q, D), gallery (N, D), both L2-normalised; `right[q]` lists gallery rows. Returns (Q,) int64.
    A non-finite score is the worst there is.
    """
    if len(queries) != len(right):
        raise ValueError(f"expected right answers for {len(queries)} queries, received {len(right)}")
    result = np.empty(len(queries), np.int64)
    step = min(_BLOCK, max(1, _BLOCK_SCORES // max(1, len(gallery))))
    for start in range(0, len(queries), step):
        block = np.asarray(queries[start : start + step], np.float32) @ np.asarray(gallery, np.float32).T
        for offset, scores in enumerate(block):
            rows = np.asarray(right[start + offset], np.int64)
            finite = np.isfinite(scores)
            best = np.max(np.where(finite[rows], scores[rows], -np.inf))
            # Written so that a score that is no number counts against the model on either side.
            not_below = ~(finite & (scores < best - TIE))
            not_below[rows] = False
            result[start + offset] = 1 + np.count_nonzero(not_below)
    return result


def summarise(query_ranks: np.ndarray, gallery_count: int, clusters: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Recall@1/5/10, hits@100, median rank and MRR with 95 % bootstrap confidence intervals.

    `clusters` (Q,) names what is resampled as a whole: the image, since captions of one image are not independent.
    """
    if len(query_ranks) == 0:
        raise ValueError("expected at least one query, received none")
    rank = query_ranks.astype(np.float64)
    per_query = {f"recall@{k}": (rank <= k).astype(np.float64) for k in (1, 5, 10)}
    per_query["hits@100"] = (rank <= 100).astype(np.float64)
    per_query["mean_reciprocal_rank"] = 1.0 / rank
    summary: dict[str, Any] = {name: float(values.mean()) for name, values in per_query.items()}
    summary["median_rank"] = float(np.median(rank))
    summary["queries"] = len(rank)
    summary["gallery"] = int(gallery_count)
    intervals = _bootstrap_intervals(np.stack(list(per_query.values())), clusters, seed)
    summary["confidence_95"] = dict(zip(per_query, intervals, strict=True))
    return summary


def _bootstrap_intervals(values: np.ndarray, clusters: np.ndarray, seed: int) -> list[list[float]]:
    """95 % percentile interval of the mean of each row of `values` (M, Q)."""
    low, high = np.quantile(resampled_means(values, clusters, seed, 1000), [0.025, 0.975], axis=0)
    return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]


def resampled_means(values: np.ndarray, clusters: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of the rows of `values` (M, Q) in bootstrap samples of whole clusters of queries: (resamples, M) float64.

    Efron & Tibshirani 1993. The same resamples serve all rows: drawing them is what takes time. Calls with one seed and
    equally many clusters draw the same clusters.
    """
    _, index = np.unique(clusters, return_inverse=True)
    totals = np.stack([np.bincount(index, weights=row) for row in [*values, np.ones(len(index))]])
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, len(totals)))
    for i in range(resamples):
        times = np.bincount(generator.integers(0, totals.shape[1], totals.shape[1]), minlength=totals.shape[1])
        sums[i] = totals @ times
    return sums[:, :-1] / sums[:, -1:]


@dataclass(frozen=True)
class RankedQueries:
    """The queries of one direction: the rank of each (Q,), the row of its image (Q,), and the size of the gallery."""

    ranks: np.ndarray
    images: np.ndarray
    gallery: int

    def summary(self) -> dict[str, Any]:
        """See `summarise`; the image is what is resampled."""
        return summarise(self.ranks, self.gallery, self.images)

    def of(self, queries: np.ndarray) -> RankedQueries:
        """Some of the queries, by position or mask, against the same gallery."""
        return RankedQueries(self.ranks[queries], self.images[queries], self.gallery)

    def recall_curve(self, longest: int = 100) -> list[float]:
        """Recall@k for k = 1 … `longest`."""
        within = np.searchsorted(np.sort(self.ranks), np.arange(1, longest + 1), side="right")
        return [float(value) for value in within / len(self.ranks)]


def rank_both_directions(
    images: np.ndarray, captions: np.ndarray, caption_image: np.ndarray
) -> dict[str, RankedQueries]:
    """Ranks of "text_to_image" (a query a caption) and "image_to_text" (a query a captioned image, by row).

    Shapes: images (N, D) and captions (C, D), both L2-normalised; caption_image (C,) is each caption's image row.
    Images without a caption stay in the gallery of text→image as distractors and are no queries of image→text.
    """
    caption_image = np.asarray(caption_image, np.int64)
    captions_of: dict[int, list[int]] = {}
    for caption, image in enumerate(caption_image.tolist()):
        captions_of.setdefault(image, []).append(caption)
    captioned = np.array(sorted(captions_of), np.int64)
    to_image = ranks(captions, images, [[image] for image in caption_image.tolist()])
    to_text = ranks(images[captioned], captions, [captions_of[image] for image in captioned.tolist()])
    return {
        "text_to_image": RankedQueries(to_image, caption_image, len(images)),
        "image_to_text": RankedQueries(to_text, captioned, len(captions)),
    }


def retrieval_metrics(images: np.ndarray, captions: np.ndarray, caption_image: np.ndarray) -> dict[str, Any]:
    """Metrics of both directions; arguments as of `rank_both_directions`."""
    ranked = rank_both_directions(images, captions, caption_image)
    return {direction: queries.summary() for direction, queries in ranked.items()}
