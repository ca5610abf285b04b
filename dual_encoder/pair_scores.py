"""Scores how well captions fit their images, by models that never saw the pair or its group; knows no file and no list.

Both sides are frozen features. Three signals for each pair, all compared with what random pairs of the same fold get:

1. a ridge regression from image features to caption features, fitted on the other folds;
2. how far the caption agrees with those of the image's nearest neighbours in the other folds;
3. how far the image agrees with those of the caption's nearest neighbours there.

The last two are label sanitisation by neighbours (Paudice et al. 2018, arXiv:1803.00992), for pairs. A closed-form
regression averages wrong captions away instead of learning them by heart, which is what early stopping is for in
networks (Huang et al., "Learning with Noisy Correspondence", NeurIPS 2021). Time grows with C², memory with C² / FOLDS:
meant for some tens of thousands of captions.
"""

from __future__ import annotations

import numpy as np

from data.errors import SourceError

FOLDS = 5
NEIGHBOURS = 10
GALLERY = 2000  # random partners that a score is compared with, at most
SMALLEST = 20  # groups


def pair_scores(
    images: np.ndarray,
    captions: np.ndarray,
    image_row: np.ndarray,
    groups: np.ndarray,
    trust: np.ndarray,
    penalty: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (C, 3) of the pairs, and (C, 3) of as many pairs at random, which show what a mismatch looks like.

    `images` (N, F) and `captions` (C, G) are features, caption c belongs to image `image_row[c]`, and images of one of
    `groups` (N,) are never in different folds. `trust` (C,) weights the pairs to learn from. `SourceError` for too few.
    """
    group = np.unique(groups, return_inverse=True)[1][image_row]
    count = int(group.max(initial=-1)) + 1
    if count < SMALLEST:
        raise SourceError(
            f"at least {SMALLEST} images with captions, to tell which do not fit",
            f"{count}",
            "check captions by eye, or leave this part out",
        )
    random = np.random.default_rng(seed)
    fold = (random.permutation(count) % FOLDS)[group]
    centred_images = (images - images.mean(axis=0))[image_row].astype(np.float32)
    centred_captions = (captions - captions.mean(axis=0)).astype(np.float32)
    image, caption = _unit(centred_images), _unit(centred_captions)
    real, chance = np.zeros((len(captions), 3)), np.zeros((len(captions), 3))
    for number in range(FOLDS):
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        predicted = _ridge(centred_images[rest], centred_captions[rest], trust[rest], penalty, centred_images[held])
        tables = (
            _unit(predicted) @ caption[held].T,
            _neighbour_mean(image, caption, held, rest, trust) @ caption[held].T,
            (_neighbour_mean(caption, image, held, rest, trust) @ image[held].T).T,
        )
        own = np.arange(len(held))
        partner = _partners(group[held], random)
        gallery = random.permutation(len(held))[:GALLERY]
        for column, table in enumerate(tables):
            standard = _standardised(table, gallery)
            real[held, column], chance[held, column] = standard[own, own], standard[own, partner]
    return real, chance


def _ridge(x: np.ndarray, y: np.ndarray, trust: np.ndarray, penalty: float, at: np.ndarray) -> np.ndarray:
    """Weighted ridge regression of y (M, G) on x (M, F), evaluated at (B, F)."""
    weighted = x * trust[:, None].astype(np.float32)
    gram = x.T @ weighted
    gram[np.diag_indices_from(gram)] += max(penalty * float(trust.mean()), 1e-6)
    return at @ np.linalg.solve(gram, weighted.T @ y)


def _neighbour_mean(
    keys: np.ndarray, values: np.ndarray, held: np.ndarray, rest: np.ndarray, trust: np.ndarray
) -> np.ndarray:
    """The mean of `values` over the nearest of `rest` by `keys`, by likeness and trust, unit length (B, D)."""
    likeness = keys[held] @ keys[rest].T
    nearest = np.argpartition(-likeness, min(NEIGHBOURS, len(rest)) - 1, axis=1)[:, :NEIGHBOURS]
    weights = np.maximum(np.take_along_axis(likeness, nearest, axis=1), 0) * trust[rest][nearest]
    return _unit(np.einsum("bk,bkd->bd", weights, values[rest[nearest]]))


def _standardised(table: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Each score (B, B) against those of its row and of its column with random partners, in standard deviations."""
    rows, columns = table[:, gallery], table[gallery]
    by_row = (table - rows.mean(axis=1, keepdims=True)) / (rows.std(axis=1, keepdims=True) + 1e-9)
    return by_row + (table - columns.mean(axis=0)) / (columns.std(axis=0) + 1e-9)


def _partners(group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each row another one at random, of another group wherever a few draws find one."""
    order = random.permutation(len(group))
    partner = np.empty(len(group), np.int64)
    partner[order] = np.roll(order, 1)
    for _ in range(10):
        same = np.flatnonzero(group[partner] == group)
        partner[same] = random.integers(0, len(group), len(same))
    return partner


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
