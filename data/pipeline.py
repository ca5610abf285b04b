"""Feeds training from pixels: a `tf.data` pipeline of batches, the same for the same seed and epoch; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.errors import ImageError, SourceError
from data.images import ImagePreprocessing, load_pixels
from data.pairs import ImageTextPair
from data.text import CaptionTokenizer, clean_caption

if TYPE_CHECKING:
    import tensorflow as tf


def batches(
    pairs: Sequence[ImageTextPair],
    preprocessing: ImagePreprocessing,
    tokenizer: CaptionTokenizer,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    shuffle: bool = True,
) -> tf.data.Dataset:
    """One epoch of dicts, every image once with one of its captions; the last batch may be smaller.

    `image` (B, S, S, 3) float32; `ids` and `mask` (B, L) int32, L the longest caption of the batch; `image_row` (B,)
    int32, the image's position in `pairs`; `caption_group` (B,) int32, equal for equal cleaned captions, for the mask
    of a multi-positive loss.

    Order and choice of captions depend on `(seed, epoch)` alone (with `shuffle=False` the order is that of `pairs` and
    the first caption is taken), so `start_batch=k` goes on exactly where k batches ended. `SourceError` for a pair
    without a caption, or none at all; an image that cannot be decoded stops the iteration and is named.
    """
    import tensorflow as tf

    captions, groups = _captions(pairs)
    random = np.random.default_rng((seed, epoch))
    choice = random.integers([len(own) for own in captions]) if shuffle else np.zeros(len(pairs), np.int64)
    order = random.permutation(len(pairs)) if shuffle else np.arange(len(pairs))
    rows = order[start_batch * batch_size :].astype(np.int32)
    size = preprocessing.size

    def load(row: np.ndarray) -> np.ndarray:
        pair = pairs[int(row)]
        try:
            return load_pixels(pair.image.read(), preprocessing)
        except ImageError as error:
            raise ValueError(f"image {pair.image_id}: {error}") from error

    def tokenise(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = tokenizer.encode([captions[row][choice[row]] for row in batch])
        group = np.array([groups[captions[row][choice[row]]] for row in batch], np.int32)
        return tokens.ids, tokens.mask, group

    def with_image(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(load, [row], tf.float32, stateful=False)
        return tf.ensure_shape(pixels, (size, size, 3)), row

    def with_text(image: tf.Tensor, row: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, mask, group = tf.numpy_function(tokenise, [row], (tf.int32, tf.int32, tf.int32), stateful=False)
        ids, mask = tf.ensure_shape(ids, (None, None)), tf.ensure_shape(mask, (None, None))
        group = tf.ensure_shape(group, (None,))
        return {"image": image, "ids": ids, "mask": mask, "image_row": row, "caption_group": group}

    dataset = tf.data.Dataset.from_tensor_slices(rows)
    dataset = dataset.map(with_image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).map(with_text).prefetch(tf.data.AUTOTUNE)


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
