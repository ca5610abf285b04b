"""Feeds training from pixels: a `tf.data` pipeline of batches, the same for the same seed and epoch; knows no model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.augmentation import (
    Augmentation,
    ImageVariation,
    draw_variation,
    drop_words,
    may_be_mirrored,
    row_generator,
    varied_pixels,
)
from data.errors import ImageError, SourceError
from data.images import ImagePreprocessing
from data.pairs import ImageTextPair
from data.text import CaptionTokenizer, clean_caption

if TYPE_CHECKING:
    import tensorflow as tf

NO_AUGMENTATION = Augmentation()


def batches(
    pairs: Sequence[ImageTextPair],
    preprocessing: ImagePreprocessing,
    tokenizer: CaptionTokenizer | None,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    shuffle: bool = True,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> tf.data.Dataset:
    """One epoch of dicts, every image once with one of its captions; the last batch may be smaller.

    `image` (B, S, S, 3) float32; `ids` and `mask` (B, L) int32, L the longest caption of the batch; `image_row` (B,)
    int32, the image's position in `pairs`; `caption` (B,) int32, which of its captions that have content;
    `caption_group` (B,) int32, equal for equal cleaned captions, for the mask of a multi-positive loss; and `weight`
    (B,) float32, how far the pair is trusted, where any pair has such weights. Without a tokenizer there is `texts`
    (B,) string, the cleaned captions in UTF-8, in the place of `ids` and `mask`.

    Order, choice of captions and `augmentation` depend on `(seed, epoch)` and the row alone, so `start_batch=k` goes on
    exactly where k batches ended. With `shuffle=False` the order is that of `pairs`, the first caption is taken and
    nothing varies. `SourceError` for a pair without a caption, or none at all; an image that cannot be decoded stops
    the iteration and is named.
    """
    import tensorflow as tf

    captions, groups = _captions(pairs)
    random = np.random.default_rng((seed, epoch))
    choice = random.integers([len(own) for own in captions]) if shuffle else np.zeros(len(pairs), np.int64)
    order = random.permutation(len(pairs)) if shuffle else np.arange(len(pairs))
    rows = order[start_batch * batch_size :].astype(np.int32)
    varied = augmentation if shuffle else NO_AUGMENTATION
    # The first of a row's generators draws for its image, the second for its caption.
    generator = functools.partial(row_generator, seed, epoch)

    def caption(row: int) -> str:
        text = captions[row][choice[row]]
        return drop_words(text, varied.word_dropout, generator(row, 1)) if varied.of_captions else text

    def described(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group = [groups[captions[row][choice[row]]] for row in batch]
        return choice[batch].astype(np.int32), np.array(group, np.int32)

    with_image = _loading_images(pairs, preprocessing, varied, generator)
    with_text = _adding_texts(tokenizer, caption, described, _weights(pairs, choice))
    dataset = tf.data.Dataset.from_tensor_slices(rows)
    dataset = dataset.map(with_image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).map(with_text).prefetch(tf.data.AUTOTUNE)


def _loading_images(
    pairs: Sequence[ImageTextPair],
    preprocessing: ImagePreprocessing,
    varied: Augmentation,
    generator: Callable[[int, int], np.random.Generator],
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Maps a row to its pixels (S, S, 3) float32, varied, and the row."""
    import tensorflow as tf

    def load(row: np.ndarray) -> np.ndarray:
        pair = pairs[int(row)]
        variation = ImageVariation()
        if varied.of_images:
            mirrored = varied.flip and may_be_mirrored(pair.captions)
            variation = draw_variation(varied, mirrored, generator(int(row), 0))
        try:
            return varied_pixels(pair.image.read(), preprocessing, variation)
        except ImageError as error:
            raise ValueError(f"image {pair.image_id}: {error}") from error

    def with_image(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(load, [row], tf.float32, stateful=False)
        size = preprocessing.size
        return tf.ensure_shape(pixels, (size, size, 3)), row

    return with_image


def _adding_texts(
    tokenizer: CaptionTokenizer | None,
    caption: Callable[[int], str],
    described: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray | None,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Maps images and rows (B,) to a batch: `caption` gives a row's text, `described` which it is and its group."""
    import tensorflow as tf

    def texts(batch: np.ndarray) -> np.ndarray:
        return np.array([caption(row).encode() for row in batch], object)

    def tokenise(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert tokenizer is not None
        tokens = tokenizer.encode([caption(row) for row in batch])
        return tokens.ids, tokens.mask

    def with_text(image: tf.Tensor, row: tf.Tensor) -> dict[str, tf.Tensor]:
        chosen, group = tf.numpy_function(described, [row], (tf.int32, tf.int32), stateful=False)
        batch = {"image": image, "image_row": row, "caption": chosen, "caption_group": group}
        batch |= {name: tf.ensure_shape(batch[name], (None,)) for name in ("caption", "caption_group")}
        if weights is not None:
            batch["weight"] = tf.gather(weights, row)
        if tokenizer is None:
            strings = tf.numpy_function(texts, [row], tf.string, stateful=False)
            return {**batch, "texts": tf.ensure_shape(strings, (None,))}
        ids, mask = tf.numpy_function(tokenise, [row], (tf.int32, tf.int32), stateful=False)
        return {**batch, "ids": tf.ensure_shape(ids, (None, None)), "mask": tf.ensure_shape(mask, (None, None))}

    return with_text


def _weights(pairs: Sequence[ImageTextPair], choice: np.ndarray) -> np.ndarray | None:
    """The weight (N,) float32 of the chosen caption of each pair; None where no pair has any."""
    if not any(pair.caption_weights for pair in pairs):
        return None
    own = [[w for text, w in zip(p.captions, p.weights, strict=True) if clean_caption(text)] for p in pairs]
    return np.array([weights[chosen] for weights, chosen in zip(own, choice, strict=True)], np.float32)


def _captions(pairs: Sequence[ImageTextPair]) -> tuple[list[list[str]], dict[str, int]]:
    """The cleaned captions of every pair, and an integer for each distinct one."""
    if not pairs:
        raise SourceError("at least one image to train on", "none", "check the source and its splits")
    captions = [[text for text in map(clean_caption, pair.captions) if text] for pair in pairs]
    bare = [pair.image_id for pair, own in zip(pairs, captions, strict=True) if not own]
    if bare:
        raise SourceError(
            "a caption for every image to train on",
            f"{len(bare):,} of {len(pairs):,} without, such as {', '.join(bare[:3])}",
            "add captions, or leave these images out",
        )
    groups: dict[str, int] = {}
    for own in captions:
        for text in own:
            groups.setdefault(text, len(groups))
    return captions, groups
