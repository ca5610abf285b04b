"""Contrastive objectives over a batch of matching rows; knows no towers and no optimizer.

Row i of `image` and row i of `text` match. Shapes: image (B, D), text (B, D), positives (B, B) bool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from keras import ops

Tensor = Any


def positive_mask(image_rows: Tensor, caption_groups: Tensor) -> Tensor:
    """`(B, B)` bool: entry (i, j) says that image i and caption j match.

    They do on the diagonal, and wherever rows i and j hold the same image or the same caption text.
    """
    same_image = ops.expand_dims(image_rows, 1) == ops.expand_dims(image_rows, 0)
    same_caption = ops.expand_dims(caption_groups, 1) == ops.expand_dims(caption_groups, 0)
    return ops.logical_or(same_image, same_caption)


def l2_normalise(vectors: Tensor) -> Tensor:
    """Scale rows to unit length, in float32 whatever the compute precision."""
    vectors = ops.cast(vectors, "float32")
    return vectors / ops.sqrt(ops.maximum(ops.sum(ops.square(vectors), axis=-1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class InfoNCE:
    """Symmetric InfoNCE with a learned scale (CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3).

    Off-diagonal positives are accidental hits: they are left out of the denominator, so no true match is pushed away.
    The scale is learned as its logarithm and clamped to `max_scale`, as in the paper.
    """

    initial_scale: float = 1 / 0.07
    max_scale: float = 100.0
    label_smoothing: float = 0.0
    kind: ClassVar[str] = "info_nce"
    learns_scale: ClassVar[bool] = True

    def __call__(self, image: Tensor, text: Tensor, log_scale: Tensor, positives: Tensor) -> Tensor:
        """Mean loss of a batch of un-normalised projections, a float32 scalar."""
        image, text = l2_normalise(image), l2_normalise(text)
        scale = ops.exp(ops.minimum(log_scale, math.log(self.max_scale)))
        logits = scale * ops.matmul(image, ops.transpose(text))  # (B, D) x (D, B) -> (B, B)
        diagonal = ops.eye(ops.shape(logits)[0], dtype="bool")
        accidental = ops.logical_and(positives, ops.logical_not(diagonal))
        logits = ops.where(accidental, -1e9, logits)
        return (self._cross_entropy(logits, accidental) + self._cross_entropy(ops.transpose(logits), accidental)) / 2

    def _cross_entropy(self, logits: Tensor, accidental: Tensor) -> Tensor:
        """Mean over rows of the cross-entropy to the diagonal, smoothed over the allowed columns."""
        log_probabilities = ops.log_softmax(logits, axis=-1)
        loss = -ops.diagonal(log_probabilities)
        if self.label_smoothing:
            allowed = 1.0 - ops.cast(accidental, "float32")
            uniform = -ops.sum(ops.where(allowed > 0, log_probabilities, 0.0), axis=-1) / ops.sum(allowed, axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return ops.mean(loss)


@dataclass(frozen=True)
class KerasExampleLoss:
    """The loss of the Keras example "Natural language image search with a Dual Encoder" (Salama, 2021), unchanged.

    Raw dot products at a fixed temperature against soft targets made of both sides' own similarities. It ignores the
    learned scale and the mask of positives. Kept as the baseline that other objectives are compared with.
    """

    temperature: float = 0.05
    kind: ClassVar[str] = "keras_example"
    learns_scale: ClassVar[bool] = False
    initial_scale: ClassVar[float] = 1.0
    max_scale: ClassVar[float] = 1.0

    def __call__(self, image: Tensor, text: Tensor, log_scale: Tensor, positives: Tensor) -> Tensor:
        """Mean loss of a batch of un-normalised projections, a float32 scalar."""
        image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
        logits = ops.matmul(text, ops.transpose(image)) / self.temperature
        image_similarity = ops.matmul(image, ops.transpose(image))
        caption_similarity = ops.matmul(text, ops.transpose(text))
        targets = ops.softmax((caption_similarity + image_similarity) / (2 * self.temperature))
        captions_loss = _soft_cross_entropy(targets, logits)
        images_loss = _soft_cross_entropy(ops.transpose(targets), ops.transpose(logits))
        return ops.mean((captions_loss + images_loss) / 2)


def _soft_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -ops.sum(targets * ops.log_softmax(logits, axis=-1), axis=-1)


Objective = InfoNCE | KerasExampleLoss
