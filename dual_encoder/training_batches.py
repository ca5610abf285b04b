"""Training batches of which one side or both go through a backbone in every step: pixels, text; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data.augmentation import Augmentation, drop_words, row_generator
from data.errors import TrainingError
from data.images import ImagePreprocessing
from data.pairs import ImageTextPair
from data.pipeline import batches as pixel_batches
from data.text import CaptionTokenizer, clean_caption
from dual_encoder.feature_batches import FeatureBatches
from dual_encoder.feature_store import MappedRows
from dual_encoder.recipe import Recipe


class PixelBatches:
    """Batches of pixels, with token ids or strings, or with the cached features of a frozen text backbone.

    `text` is the tokeniser, None for a backbone that takes strings, or the features (C, G) of all captions that have
    content, in the order of the images. With `image_groups` (N,), "image_group" (B,) too.
    """

    def __init__(
        self,
        pairs: Sequence[ImageTextPair],
        preprocessing: ImagePreprocessing,
        text: CaptionTokenizer | np.ndarray | MappedRows | None,
        batch_size: int,
        seed: int,
        image_groups: Sequence[int] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.image_groups = None if image_groups is None else np.asarray(image_groups, np.int32)
        self.pairs, self.preprocessing = pairs, preprocessing
        self.tokenizer = text if isinstance(text, CaptionTokenizer) else None
        self.caption_features = None if isinstance(text, CaptionTokenizer) else text
        counts = [sum(bool(clean_caption(caption)) for caption in pair.captions) for pair in pairs]
        self.first_caption = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.augmentation = augmentation or Augmentation()
        self.batch_size, self.seed = min(batch_size, len(pairs)), seed
        self.steps_per_epoch = len(pairs) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`."""
        dataset = pixel_batches(
            self.pairs,
            self.preprocessing,
            self.tokenizer,
            self.batch_size,
            self.seed,
            epoch,
            start_batch=start,
            augmentation=self.augmentation,
        )
        try:
            for batch in dataset.take(self.steps_per_epoch - start):
                yield self._complete(dict(batch))
        except tf.errors.OpError as error:
            raise TrainingError(
                "images that decode",
                (error.message or "").splitlines()[0],
                "train on the output of python -m data.prepare, which leaves such images out",
            ) from None

    def _complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows, chosen = np.asarray(batch["image_row"]), np.asarray(batch.pop("caption"))
        if self.caption_features is not None:
            batch["text_features"] = self.caption_features[self.first_caption[rows] + chosen]
            del batch["texts"]
        if self.image_groups is not None:
            batch["image_group"] = self.image_groups[rows]
        return batch


class CaptionBatches:
    """Batches of cached image features with token ids, for a text backbone that trains; without `tokenizer`, strings.

    `drawn` gives rows of `captions` in the place of features of captions.
    """

    def __init__(
        self,
        drawn: FeatureBatches,
        captions: Sequence[str],
        tokenizer: CaptionTokenizer | None,
        augmentation: Augmentation,
    ) -> None:
        self.drawn, self.captions = drawn, captions
        self.tokenizer, self.augmentation = tokenizer, augmentation
        self.steps_per_epoch = drawn.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`."""
        for drawn in self.drawn.epoch(epoch, start):
            batch = dict(drawn)
            texts = [clean_caption(self.captions[row]) for row in batch.pop("text_features")]
            if self.augmentation.of_captions:
                generators = [row_generator(self.drawn.seed, epoch, int(row), 1) for row in batch["image_row"]]
                probability = self.augmentation.word_dropout
                texts = [drop_words(*pair) for pair in zip(texts, [probability] * len(texts), generators, strict=True)]
            if self.tokenizer is None:
                yield {**batch, "texts": np.array([text.encode() for text in texts], object)}
            else:
                tokens = self.tokenizer.encode(texts)
                yield {**batch, "ids": tokens.ids, "mask": tokens.mask}


def check_variations(recipe: Recipe, image_is_cached: bool) -> None:
    """Refuse what cannot vary because its side comes from a cache, or the other way round."""
    augmentation, model = recipe.augmentation, recipe.model
    refused = [
        (
            augmentation.of_images and not model.image_backbone.trainable,
            "an image backbone that trains with crop, flip or colour, since features of a frozen one are computed once",
            "train it (fine_tuning.image_top limits how much of it), or use mirrored=True instead of flip",
        ),
        (
            augmentation.of_captions and not model.text_backbone.trainable,
            "a text backbone that trains with word_dropout, since features of a frozen one are computed once",
            "train it, or set word_dropout to 0",
        ),
        (
            recipe.mirrored and not image_is_cached,
            "images that come from a cache with mirrored views",
            "set mirrored to False (augmentation has flip), or freeze the image backbone or the lower part of it",
        ),
        (
            recipe.class_prototypes and model.image_backbone.trainable,
            "a frozen image backbone with class prototypes, which are made of its cached features",
            "set class_prototypes to False, or freeze it",
        ),
    ]
    for wrong, expected, next_step in refused:
        if wrong:
            raise TrainingError(expected, f"the recipe {recipe.name}, which is otherwise", next_step)
