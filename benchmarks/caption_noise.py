"""Corrupts the captions of pairs in memory, by accident or by intent; knows no detector and no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.errors import SourceError
from data.pairs import ImageTextPair
from dual_encoder.training_data import image_groups

TARGETS = 5  # images whose captions a targeted attack puts on others


def shuffled(pairs: Sequence[ImageTextPair], share: float, seed: int) -> list[ImageTextPair]:
    """The pairs with all captions of a share of the images moved to other ones, never within a group."""
    random = np.random.default_rng(seed)
    groups = np.array(image_groups(pairs))
    moved = random.permutation(len(pairs))[: round(share * len(pairs))]
    if len(moved) == 1:
        moved = moved[:0]  # nobody to change places with
    return _recaptioned(pairs, moved, moved[_derangement(groups[moved], random)])


def targeted(pairs: Sequence[ImageTextPair], share: float, seed: int) -> list[ImageTextPair]:
    """A share of the images carry captions of `TARGETS` others, as in Carlini and Terzis 2022, arXiv:2106.09667."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    victims = order[TARGETS : TARGETS + round(share * len(pairs))]
    return _recaptioned(pairs, victims, order[np.arange(len(victims)) % TARGETS])


def flipped(pairs: Sequence[ImageTextPair], features: np.ndarray, share: float, seed: int) -> list[ImageTextPair]:
    """Label flipping: images of one kind all get captions of another kind, a share of all images.

    The kinds are the nearest neighbours of two images at random, by the angle between `features` (N, F). Unlike
    shuffled captions, wrong ones agree with each other, and the captions that would contradict them are gone (Paudice
    et al. 2018, arXiv:1803.00992, attack a classifier by such labels).
    """
    random = np.random.default_rng(seed)
    groups = np.array(image_groups(pairs))
    count = round(share * len(pairs))
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    one = int(random.integers(len(pairs)))
    victims = np.argsort(-(features @ features[one]), kind="stable")[:count]
    others = np.flatnonzero(~np.isin(groups, groups[victims]))
    if len(others) < count:
        raise SourceError("at most half of the images to flip", f"{share:g}", "flip fewer")
    other = int(random.choice(others))
    donors = others[np.argsort(-(features[others] @ features[other]), kind="stable")[:count]]
    return _recaptioned(pairs, victims, random.permutation(donors))


def _recaptioned(pairs: Sequence[ImageTextPair], images: np.ndarray, donors: np.ndarray) -> list[ImageTextPair]:
    """The pairs, where `images` have the captions of `donors`."""
    changed = list(pairs)
    for image, donor in zip(images, donors, strict=True):
        source = pairs[donor]
        changed[image] = replace(pairs[image], captions=source.captions, caption_weights=source.caption_weights)
    return changed


def _derangement(groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An order of the rows where none stands in the place of one of its own group, as far as groups allow it."""
    order = np.argsort(groups, kind="stable")
    largest = int(np.bincount(np.unique(groups, return_inverse=True)[1]).max(initial=0))
    place = np.empty(len(groups), np.int64)
    place[order] = np.roll(order, largest)  # past the end of each group
    for _ in range(10 * len(groups)):  # the same with chance in it
        one, other = random.integers(0, len(groups), 2)
        if groups[place[other]] != groups[one] and groups[place[one]] != groups[other]:
            place[one], place[other] = place[other], place[one]
    return place
