"""Scores how well captions fit their images, by models that never saw the pair or its group; knows no file and no list.

Both sides are frozen features. Up to four signals for each pair, all compared with what random pairs of the same fold
get:

1. a ridge regression from image features to caption features, fitted on the other folds;
2. how far the caption agrees with those of the image's nearest neighbours in the other folds;
3. how far the image agrees with those of the caption's nearest neighbours there;
4. how far the caption agrees with what the image is taken for without any of these pairs, where that is given.

The second and third are label sanitisation by neighbours (Paudice et al. 2018, arXiv:1803.00992), for pairs. The fourth
has learned nothing from the pairs: it tells most where many captions are wrong. A closed-form regression averages wrong
captions away instead of learning them by heart, which is what early stopping is for in networks (Huang et al.,
"Learning with Noisy Correspondence", NeurIPS 2021). Pairs are taken in parts of some `PART` captions that know nothing
of each other, so that time grows with the number of captions and memory does not; whoever keeps the scores of parts
need not wait for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data import console
from data.embedding_neighbours import Rows
from data.errors import SourceError
from dual_encoder.metrics import unit

FOLDS = 5
NEIGHBOURS = 10
GALLERY = 2000  # random partners that a score is compared with, at most
SMALLEST = 20  # groups
PART = 25_000  # captions judged together: 1 GB of scores at a time


@dataclass(frozen=True)
class PairFeatures:
    """Features of images (N, F) and of captions (C, G); caption c belongs to image `image_row[c]`.

    Images of one of `groups` (N,) are judged without each other. `named` (N, G), or None, says in the captions' space
    what each image is taken for by a model that never saw the pairs.
    """

    images: Rows
    captions: Rows
    image_row: np.ndarray
    groups: np.ndarray
    named: Rows | None = None


@dataclass(frozen=True)
class Part:
    """Some captions to be judged together, and all that their scores depend on.

    For each caption, the features of its image (B, F) and its own (B, G), what its image is taken for (B, G) or None,
    its group and fold, and how far it is trusted, all (B,).
    """

    images: np.ndarray
    captions: np.ndarray
    named: np.ndarray | None
    group: np.ndarray
    fold: np.ndarray
    trust: np.ndarray
    penalty: float
    random: np.random.Generator  # chooses partners


Scores = tuple[np.ndarray, np.ndarray]
Scorer = Callable[[Part], Scores]


def pair_scores(
    pairs: PairFeatures,
    trust: np.ndarray,
    penalty: float,
    seed: int,
    kept: Callable[[Scorer], Scorer] = lambda score: score,
) -> Scores:
    """Signals (C, K) of the pairs, and (C, K) of as many pairs at random, which show what a mismatch looks like.

    `trust` (C,) weights the pairs to learn from; `kept` may give a scorer that remembers parts. `SourceError` for too
    few.
    """
    group = np.unique(pairs.groups, return_inverse=True)[1][pairs.image_row]
    count = int(group.max(initial=-1)) + 1
    if count < SMALLEST:
        raise SourceError(
            f"at least {SMALLEST} images with captions, to tell which do not fit",
            f"{count}",
            "check captions by eye, or leave this part out",
        )
    random = np.random.default_rng(seed)
    parts = min(-(-len(group) // PART), count // SMALLEST)
    fold = random.permutation(count) % (FOLDS * parts)  # of each group
    signals = 3 if pairs.named is None else 4
    real, chance = np.zeros((len(group), signals)), np.zeros((len(group), signals))
    score = kept(score_part)
    shown = console.progress(range(parts), f"judging captions, parts of {PART:,}", quiet=parts == 1)
    for number in shown:
        rows = np.flatnonzero(fold[group] // FOLDS == number)
        images, image = np.unique(pairs.image_row[rows], return_inverse=True)
        ahead = random.bit_generator.jumped(number)  # type: ignore[attr-defined]  # further than a part goes
        part = Part(
            pairs.images[images][image],
            pairs.captions[rows],
            None if pairs.named is None else pairs.named[images][image],
            group[rows],
            fold[group[rows]],
            trust[rows],
            penalty,
            np.random.Generator(ahead),
        )
        real[rows], chance[rows] = score(part)
    return real, chance


def score_part(part: Part) -> Scores:
    """`pair_scores` of the captions of one part."""
    image_features, caption_features = _centred(unit(part.images)), _centred(part.captions)
    image, caption = unit(image_features), unit(caption_features)
    named = None if part.named is None else unit(_centred(part.named))

    def tables(held: np.ndarray, rest: np.ndarray) -> Iterator[np.ndarray]:
        known = (image_features[rest], caption_features[rest], part.trust[rest])
        yield unit(_ridge(*known, part.penalty, image_features[held])) @ caption[held].T
        yield _neighbour_mean(image, caption, held, rest, part.trust) @ caption[held].T
        yield image[held] @ _neighbour_mean(caption, image, held, rest, part.trust).T
        if named is not None:
            yield named[held] @ caption[held].T

    signals = 3 if named is None else 4
    real, chance = np.zeros((len(caption), signals)), np.zeros((len(caption), signals))
    for number in np.unique(part.fold):
        held, rest = np.flatnonzero(part.fold == number), np.flatnonzero(part.fold != number)
        own, partner = np.arange(len(held)), _partners(part.group[held], part.random)
        gallery = part.random.permutation(len(held))[:GALLERY]
        for column, table in enumerate(tables(held, rest)):
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
    return unit(np.einsum("bk,bkd->bd", weights, values[rest[nearest]]))


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


def _centred(vectors: np.ndarray) -> np.ndarray:
    return (vectors - vectors.mean(axis=0)).astype(np.float32)
