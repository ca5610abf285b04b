"""Makes a million image vectors out of a few thousand real ones, as hard to search, and shows how alike they are.

A new vector is a convex mix of a real one and two of its near neighbours. Mixing takes variance away; as much is given
back as noise with the covariance of that neighbourhood, and a little with that of the whole set, so that no direction
is empty. At equal size the new set should lie as the real one does, seen from images and from captions that took no
part: `likeness` measures that, and the benchmark prints both sides. Captions are never mixed: queries are real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 32  # that make up a neighbourhood
GLOBAL_NOISE = 0.2  # of the whole set's spread

# Neighbours that the local dimension is estimated from.
DIMENSION_NEIGHBOURS = 20


def enlarge(real: np.ndarray, rows: int, seed: int = 0, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """(rows, D) float32 of unit length like `real` (R, D), in no order; `real` itself is not among them."""
    rng = np.random.default_rng(seed)
    near = nearest(real, neighbours)  # (R, 1 + neighbours), each row first in its own line
    spread = np.linalg.cholesky(np.cov(real.T) + 1e-9 * np.eye(real.shape[1])).astype(np.float32)
    anchors = rng.integers(0, len(real), rows)
    made = np.empty((rows, real.shape[1]), np.float32)
    for anchor, places in enumerate(
        np.split(np.argsort(anchors), np.cumsum(np.bincount(anchors, minlength=len(real))))
    ):
        if len(places):
            made[places] = _around(real[near[anchor]], len(places), spread, rng)
    return made


def _around(group: np.ndarray, count: int, spread: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`count` vectors around the first of `group`, (1 + K, D)."""
    others = np.argsort(rng.random((count, len(group) - 1)), axis=1)[:, :2] + 1
    shares = rng.dirichlet(np.ones(3), count).astype(np.float32)
    lost = np.sqrt(1 - (shares**2).sum(axis=1, keepdims=True))  # what mixing takes from the standard deviation
    local = rng.standard_normal((count, len(group)), np.float32)
    weights = lost * (local - local.mean(axis=1, keepdims=True)) / np.sqrt(len(group) - 1, dtype=np.float32)
    weights[:, 0] += shares[:, 0]
    np.put_along_axis(weights, others, np.take_along_axis(weights, others, axis=1) + shares[:, 1:], axis=1)
    overall = rng.standard_normal((count, group.shape[1]), np.float32) @ spread.T
    return _unit(weights @ group + GLOBAL_NOISE * overall)


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """(N, 1 + count) rows of the nearest vectors of each, itself first."""
    near = np.empty((len(vectors), count + 1), np.int64)
    for start in range(0, len(vectors), 1_024):
        similarity = vectors[start : start + 1_024] @ vectors.T
        here = np.arange(len(similarity))
        similarity[here, start + here] = np.inf
        near[start : start + 1_024] = np.argsort(-similarity, axis=1)[:, : count + 1]
    return near


@dataclass(frozen=True)
class Likeness:
    """How a set lies, seen from probes that are not in it: medians over the probes, similarities as cosines.

    `local_dimension` is the maximum-likelihood estimate from 20 neighbours (Levina and Bickel 2004); `effective_rank`
    is the exponential of the entropy of the covariance's eigenvalues (Roy and Vetterli 2007); `hubness` the skewness of
    how often a vector is among the 10 nearest of a text (Radovanović et al. 2010).
    """

    image_nearest: float
    image_tenth: float
    image_local_dimension: float
    text_nearest: float
    text_tenth: float
    text_local_dimension: float
    effective_rank: float
    hubness: float


def likeness(vectors: np.ndarray, images: np.ndarray, texts: np.ndarray) -> Likeness:
    """Figures of `vectors` (N, D) with N in the thousands, seen from `images` and `texts` that are not among them."""
    seen = []
    for probes in (images, texts):
        ordered = -np.sort(-(probes @ vectors.T), axis=1)[:, :DIMENSION_NEIGHBOURS]
        distance = np.sqrt(np.maximum(2 - 2 * ordered, 1e-9))
        dimension = 1 / np.log(distance[:, -1:] / distance[:, :-1]).mean(axis=1)
        seen += [float(np.median(figure)) for figure in (ordered[:, 0], ordered[:, 9], dimension)]
    shares = np.maximum(np.linalg.eigvalsh(np.cov(vectors.T)), 1e-12)
    shares /= shares.sum()
    found = np.argpartition(-(texts @ vectors.T), 10, axis=1)[:, :10]
    times = np.bincount(found.ravel(), minlength=len(vectors)).astype(float)
    skewness = ((times - times.mean()) ** 3).mean() / times.std() ** 3
    return Likeness(*seen, effective_rank=float(np.exp(-(shares * np.log(shares)).sum())), hubness=float(skewness))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
