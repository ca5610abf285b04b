"""Training batches from cached features: which image, which of its captions, in which order; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from data.text import clean_caption


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
    """

    def __init__(
        self,
        image_views: Sequence[np.ndarray],
        caption_features: np.ndarray,
        captions_of: Sequence[Sequence[int]],
        captions: Sequence[str],
        batch_size: int,
        seed: int,
        image_groups: Sequence[int] | None = None,
        caption_weights: Sequence[float] | None = None,
    ) -> None:
        self.image_views, self.caption_features = image_views, caption_features
        self.captions_of = [np.asarray(rows, np.int64) for rows in captions_of]
        self.caption_groups = caption_groups(captions)
        self.image_groups = None if image_groups is None else np.asarray(image_groups, np.int32)
        self.caption_weights = None if caption_weights is None else np.asarray(caption_weights, np.float32)
        self.batch_size = min(batch_size, len(self.captions_of))
        self.seed = seed
        # The last, smaller batch of an epoch is left out; another shuffle brings its rows back in the next epoch.
        self.steps_per_epoch = len(self.captions_of) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """See `Batches`."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.captions_of))
        draws = generator.random(len(order))
        views = generator.integers(0, len(self.image_views), len(order))
        for step in range(start, self.steps_per_epoch):
            place = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images = order[place]
            chosen = [
                self.captions_of[image][int(draw * len(self.captions_of[image]))]
                for image, draw in zip(images, draws[place], strict=True)
            ]
            view_rows = [self.image_views[view][image] for view, image in zip(views[place], images, strict=True)]
            yield {
                "image_features": np.stack(view_rows),
                "text_features": self.caption_features[chosen],
                "image_row": images.astype(np.int32),
                "caption_group": self.caption_groups[chosen],
                **({} if self.image_groups is None else {"image_group": self.image_groups[images]}),
                **({} if self.caption_weights is None else {"weight": self.caption_weights[chosen]}),
            }


def caption_groups(captions: Sequence[str]) -> np.ndarray:
    """A number for each caption (C,) int32, the same for captions that are equal once cleaned."""
    groups: dict[str, int] = {}
    return np.array([groups.setdefault(clean_caption(caption), len(groups)) for caption in captions], np.int32)
