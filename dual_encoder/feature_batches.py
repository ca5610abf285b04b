"""Training batches from cached features: which image, which of its captions, in which order; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from data.loading import map_ordered
from data.text import clean_caption
from dual_encoder.feature_store import MappedRows, take_rows


class Batches(Protocol):
    """Implementers give the same batches for the same epoch every time, from any batch on: resume relies on it."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """The epoch's batches from number `start` on."""


class FeatureBatches:
    """Batches of features with one caption an image, drawn anew each epoch.

    Shapes: each of `image_views` (N, F), `caption_features` (C, G); `captions_of[n]` lists the caption rows of image n.
    A batch holds "image_features" (B, F), "text_features" (B, G), "image_row" (B,) and "caption_group" (B,), where
    equal captions share a group; with `image_groups` (N,), numbers that near-duplicate images share, "image_group" (B,)
    too; with `caption_weights` (C,), how far each is trusted to belong to its image, "weight" (B,) float32.

    `prototypes` (P, F) are rows N … N + P - 1 of every view, which lists that follow those of images reach as well.

    Views may be larger than memory: a batch's rows are read from them as they are drawn, one batch ahead of training.
    """

    def __init__(
        self,
        image_views: Sequence[np.ndarray | MappedRows],
        caption_features: np.ndarray | MappedRows,
        captions_of: Sequence[Sequence[int]],
        captions: Sequence[str],
        batch_size: int,
        seed: int,
        image_groups: Sequence[int] | None = None,
        caption_weights: Sequence[float] | None = None,
        prototypes: np.ndarray | None = None,
    ) -> None:
        self.image_views, self.caption_features, self.prototypes = image_views, caption_features, prototypes
        self._counts = np.array([len(rows) for rows in captions_of], np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._captions_of = np.concatenate([np.asarray(rows, np.int64) for rows in captions_of])
        self.caption_groups = caption_groups(captions)
        self.image_groups = None if image_groups is None else np.asarray(image_groups, np.int32)
        self.caption_weights = None if caption_weights is None else np.asarray(caption_weights, np.float32)
        self.batch_size = min(batch_size, len(captions_of))
        self.seed = seed
        # The last, smaller batch of an epoch is left out; another shuffle brings its rows back in the next epoch.
        self.steps_per_epoch = len(captions_of) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """See `Batches`."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self._counts))
        draws = generator.random(len(order))
        views = generator.integers(0, len(self.image_views), len(order))

        def batch(step: int) -> Mapping[str, np.ndarray]:
            place = slice(step * self.batch_size, (step + 1) * self.batch_size)
            return self._batch(order[place], draws[place], views[place])

        return map_ordered(batch, range(start, self.steps_per_epoch), ahead=2, workers=1)

    def _batch(self, images: np.ndarray, draws: np.ndarray, views: np.ndarray) -> Mapping[str, np.ndarray]:
        """The rows of `images`, each with the share `draws` in [0, 1) of the way through its captions."""
        chosen = self._captions_of[self._firsts[images] + (draws * self._counts[images]).astype(np.int64)]
        text = np.empty((len(chosen), *self.caption_features.shape[1:]), self.caption_features.dtype)
        take_rows(self.caption_features, chosen, text)
        return {
            "image_features": self._image_features(images, views),
            "text_features": text,
            "image_row": images.astype(np.int32),
            "caption_group": self.caption_groups[chosen],
            **({} if self.image_groups is None else {"image_group": self.image_groups[images]}),
            **({} if self.caption_weights is None else {"weight": self.caption_weights[chosen]}),
        }

    def _image_features(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        first, count = self.image_views[0], len(self.image_views[0])
        features = np.empty((len(images), *first.shape[1:]), first.dtype)
        for number, view in enumerate(self.image_views):
            drawn = np.flatnonzero((views == number) & (images < count))
            if len(drawn) == len(images):
                take_rows(view, images, features)
            elif len(drawn):
                features[drawn] = view[images[drawn]]
        if self.prototypes is not None:
            drawn = np.flatnonzero(images >= count)
            features[drawn] = self.prototypes[images[drawn] - count]
        return features


def caption_groups(captions: Sequence[str]) -> np.ndarray:
    """A number for each caption (C,) int32, the same for captions that are equal once cleaned."""
    groups: dict[str, int] = {}
    return np.array([groups.setdefault(clean_caption(caption), len(groups)) for caption in captions], np.int32)
