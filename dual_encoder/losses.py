"""Contrastive objectives over a batch of matching rows; knows no towers and no optimizer.

Row i of `image` and row i of `text` match. Shapes: image (B, D), text (B, D), positives (B, B) bool, or `Matches`, from
which an objective makes the rows of that mask as it needs them. Every objective is a sum over rows; with `share`
(i, n) it gives the part of the i-th of n equal shares of the rows, so that n replicas have the whole between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from keras import ops

from data.errors import TrainingError
from dual_encoder.row_chunks import sum_over_rows

Tensor = Any
Share = tuple[int, int]
WHOLE: Share = (0, 1)

# Logit of a column that a row must not be compared with: its probability is exactly 0 in float32.
LEFT_OUT = -1e9


class Matches(NamedTuple):
    """Which rows of a batch match, by what they show: (B,) int each, equal numbers for the same thing.

    `images` numbers images, or groups of near-duplicates; `captions` numbers caption texts. `weights` (B,) float32, at
    least 0, say how far each row is trusted to match at all: how much it counts in the mean over anchors, in both
    directions. It stays a negative of the others, which it is whatever it matches. None is 1 for all.
    """

    images: Tensor
    captions: Tensor
    weights: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor]) -> Matches:
        """By "image_group" where a batch has it, else "image_row", "caption_group", and "weight" where it has one."""
        images = batch["image_group"] if "image_group" in batch else batch["image_row"]
        return cls(images, batch["caption_group"], batch.get("weight"))

    def of_rows(self, rows: Tensor) -> Tensor:
        """`(R, B)` bool: entry (i, j) says that image `rows[i]` and caption j match."""
        return ops.logical_or(_equal_pairs(self.images, rows), _equal_pairs(self.captions, rows))


def positive_mask(image_rows: Tensor, caption_groups: Tensor) -> Tensor:
    """`(B, B)` bool: entry (i, j) says that image i and caption j match.

    They do on the diagonal, and wherever rows i and j hold the same image or the same caption text.
    """
    return Matches(image_rows, caption_groups).of_rows(ops.arange(ops.shape(image_rows)[0]))


def l2_normalise(vectors: Tensor) -> Tensor:
    """Scale rows to unit length, in float32 whatever the compute precision."""
    vectors = ops.cast(vectors, "float32")
    return vectors / ops.sqrt(ops.maximum(ops.sum(ops.square(vectors), axis=-1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class InfoNCE:
    """Symmetric InfoNCE with a learned scale (CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3).

    The scale is learned as its logarithm and clamped to `max_scale`, as in the paper. Settings beyond the paper:

    multi_positive
        Off-diagonal positives are accidental hits. By default they are left out of the denominator, so that no true
        match is pushed away. With `multi_positive` they are targets too: each row's target is spread evenly over its
        positives, and every column is in the denominator (SupCon's L_out, Khosla et al. 2020, arXiv:2004.11362,
        equation 2). Then a batch with every row written k times has the same gradient as the batch itself, and its
        loss is larger by the constant log k. Rows written more often than others do weigh more: the mean is over rows.
    hard_negatives
        Beta of Robinson et al. 2021 (arXiv:2010.04592, with tau+ = 0): a negative of logit l counts exp(beta l) times
        in the denominator, relative to the mean of that over the row's negatives. As in the authors' code, gradients
        pass through these weights. 0 is off; mislabelled pairs are weighted up as well.
    soft_targets
        Share of the target that is the softmax of both sides' own similarities, image–image and text–text, averaged and
        at the learned scale: the Keras example's targets, of normalised vectors and behind a stop-gradient. SoftCLIP
        (Gao et al. 2023, arXiv:2303.17561) softens targets by such similarities, of finer features, too.
    label_smoothing
        Share of the target that is uniform over the columns compared with. A model trained with label smoothing
        teaches worse, because it forgets how alike the wrong answers are to the right one (Müller et al. 2019,
        arXiv:1906.02629): leave it at 0 for a teacher; `train --teacher` warns of one that had it (`distillation`).

    Rows are compared `chunk_rows` at a time (0: all at once), so that memory grows with B and not with B²; the result
    is the same but for rounding.
    """

    initial_scale: float = 1 / 0.07
    max_scale: float = 100.0
    label_smoothing: float = 0.0
    multi_positive: bool = False
    hard_negatives: float = 0.0
    soft_targets: float = 0.0
    chunk_rows: int = 1024
    kind: ClassVar[str] = "info_nce"
    learns_scale: ClassVar[bool] = True
    initial_bias: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Refuse shares of a target that do not add up, and weights that would favour easy negatives."""
        shares = (self.label_smoothing, self.soft_targets)
        if min(shares) < 0 or sum(shares) > 1 or self.hard_negatives < 0 or self.chunk_rows < 0:
            raise TrainingError(
                "label_smoothing and soft_targets of 0 to 1 together, hard_negatives and chunk_rows of at least 0",
                f"label_smoothing {self.label_smoothing}, soft_targets {self.soft_targets}, "
                f"hard_negatives {self.hard_negatives}, chunk_rows {self.chunk_rows}",
                "correct the recipe's objective",
            )

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        positives: Tensor | Matches,
        logit_bias: Tensor = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """Mean loss of a batch of un-normalised projections, a float32 scalar; there is no bias to learn."""
        image, text = l2_normalise(image), l2_normalise(text)
        scale = ops.exp(ops.minimum(log_scale, math.log(self.max_scale)))
        transposed = positives if isinstance(positives, Matches) else ops.transpose(positives)

        weights = row_weights(positives, image)

        def both_directions(rows: Tensor, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            to_text = self._cross_entropy(rows, image, text, scale, positives)
            to_image = self._cross_entropy(rows, text, image, scale, transposed)
            return ops.sum(ops.take(weights, rows) * (to_text + to_image))

        total = sum_over_rows(both_directions, self.chunk_rows, image, text, scale, share=share)
        return total / (2 * total_weight(weights))

    def _cross_entropy(
        self, rows: Tensor, anchors: Tensor, others: Tensor, scale: Tensor, positives: Tensor | Matches
    ) -> Tensor:
        """Cross-entropy (R,) of the `anchors` of `rows` (R,) against all of `others`."""
        diagonal = ops.expand_dims(rows, 1) == ops.expand_dims(ops.arange(ops.shape(others)[0]), 0)
        matching = ops.logical_or(_mask_of_rows(positives, rows), diagonal)
        negative = ops.logical_not(matching)
        targets = matching if self.multi_positive else diagonal
        compared = ops.logical_or(targets, negative)

        logits = scale * similarities(anchors, others, rows)  # (R, B)
        logits = ops.where(compared, logits, LEFT_OUT)
        weighted = logits + self._log_weights(logits, negative) if self.hard_negatives else logits
        normaliser = ops.logsumexp(weighted, axis=-1, keepdims=True)
        if not (self.multi_positive or self.label_smoothing or self.soft_targets):  # one target a row: no table of them
            hit = ops.sum(ops.take(anchors, rows, axis=0) * ops.take(others, rows, axis=0), axis=-1)
            return ops.squeeze(normaliser, -1) - scale * hit

        log_probabilities = logits - normaliser

        target = (1 - self.label_smoothing - self.soft_targets) * _evenly(targets)
        if self.label_smoothing:
            target += self.label_smoothing * _evenly(compared)
        if self.soft_targets:
            own = scale * (similarities(anchors, anchors, rows) + similarities(others, others, rows)) / 2
            target += self.soft_targets * ops.stop_gradient(ops.softmax(ops.where(compared, own, LEFT_OUT), axis=-1))
        return -ops.sum(ops.where(compared, target * log_probabilities, 0.0), axis=-1)

    def _log_weights(self, logits: Tensor, negative: Tensor) -> Tensor:
        """Logarithm of exp(beta l) over its mean among a row's negatives; 0 for other columns."""
        hardness = ops.where(negative, self.hard_negatives * logits, LEFT_OUT)
        count = ops.sum(ops.cast(negative, "float32"), axis=-1, keepdims=True)
        log_mean = ops.logsumexp(hardness, axis=-1, keepdims=True) - ops.log(ops.maximum(count, 1.0))
        return ops.where(negative, hardness - log_mean, 0.0)


@dataclass(frozen=True)
class SigmoidLoss:
    """Pairwise sigmoid loss with a learned scale and bias (SigLIP, Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    Every image–caption pair of the batch is a yes-or-no question of its own. The bias starts low because most answers
    are no. All positives are answered yes, accidental hits too, where the paper has only the diagonal. A batch with
    every row written k times has k times the loss and the gradient. Where rows have weights, a question weighs the mean
    of those of its image and its caption. `max_scale` guards against overflow; the paper has no limit. Rows are
    compared `chunk_rows` at a time, so that memory grows with B and not with B².
    """

    initial_scale: float = 10.0
    initial_bias: float = -10.0
    max_scale: float = 1000.0
    chunk_rows: int = 1024
    kind: ClassVar[str] = "sigmoid"
    learns_scale: ClassVar[bool] = True

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        positives: Tensor | Matches,
        logit_bias: Tensor,
        share: Share = WHOLE,
    ) -> Tensor:
        """Loss of a batch of un-normalised projections, summed over pairs and divided by B, a float32 scalar."""
        image, text = l2_normalise(image), l2_normalise(text)
        scale = ops.exp(ops.minimum(log_scale, math.log(self.max_scale)))
        weights = row_weights(positives, image)

        def loss_of_rows(rows: Tensor, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            logits = scale * similarities(image, text, rows) + bias  # (R, B)
            answers = ops.where(_mask_of_rows(positives, rows), 1.0, -1.0)
            losses = -ops.log_sigmoid(answers * logits)
            by_image = ops.take(weights, rows) * ops.sum(losses, axis=-1)
            by_caption = ops.matmul(losses, weights)  # no (R, B) table of weights
            return ops.sum(by_image + by_caption) / 2

        bias = ops.convert_to_tensor(logit_bias, "float32")
        total = sum_over_rows(loss_of_rows, self.chunk_rows, image, text, scale, bias, share=share)
        return total / total_weight(weights)


@dataclass(frozen=True)
class KerasExampleLoss:
    """The loss of the Keras example "Natural language image search with a Dual Encoder" (Salama, 2021), unchanged.

    Raw dot products at a fixed temperature against soft targets made of both sides' own similarities. It ignores the
    learned scale and the mask of positives, not the weights of rows. Kept as the baseline that other objectives are
    compared with.
    """

    temperature: float = 0.05
    kind: ClassVar[str] = "keras_example"
    learns_scale: ClassVar[bool] = False
    initial_scale: ClassVar[float] = 1.0
    initial_bias: ClassVar[None] = None
    max_scale: ClassVar[float] = 1.0

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        positives: Tensor | Matches,
        logit_bias: Tensor = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """Mean loss of a batch of un-normalised projections, a float32 scalar."""
        image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
        logits = ops.matmul(text, ops.transpose(image)) / self.temperature
        image_similarity = ops.matmul(image, ops.transpose(image))
        caption_similarity = ops.matmul(text, ops.transpose(text))
        targets = ops.softmax((caption_similarity + image_similarity) / (2 * self.temperature))
        captions_loss = _soft_cross_entropy(targets, logits)
        images_loss = _soft_cross_entropy(ops.transpose(targets), ops.transpose(logits))
        weights = row_weights(positives, image)
        losses = weights * (captions_loss + images_loss) / 2
        total = sum_over_rows(lambda rows, losses: ops.sum(ops.take(losses, rows)), 0, losses, share=share)
        return total / total_weight(weights)


def _soft_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -ops.sum(targets * ops.log_softmax(logits, axis=-1), axis=-1)


def similarities(anchors: Tensor, others: Tensor, rows: Tensor) -> Tensor:
    """Inner products of the anchors of `rows` with all others: (R, D) x (D, B) -> (R, B)."""
    return ops.matmul(ops.take(anchors, rows, axis=0), ops.transpose(others))


def _mask_of_rows(positives: Tensor | Matches, rows: Tensor) -> Tensor:
    """`(R, B)` bool, some rows of the mask of positives."""
    return positives.of_rows(rows) if isinstance(positives, Matches) else ops.take(positives, rows, axis=0)


def _equal_pairs(numbers: Tensor, rows: Tensor) -> Tensor:
    """`(R, B)` bool: entry (i, j) says that numbers `rows[i]` and j are equal."""
    return ops.expand_dims(ops.take(numbers, rows, axis=0), 1) == ops.expand_dims(numbers, 0)


def _evenly(columns: Tensor) -> Tensor:
    """Distribution `(R, B)` that is even over the marked columns of each row."""
    columns = ops.cast(columns, "float32")
    return columns / ops.sum(columns, axis=-1, keepdims=True)


def row_weights(positives: Tensor | Matches, rows: Tensor) -> Tensor:
    """The weight of each row (B,) float32, constants to gradients."""
    weights = positives.weights if isinstance(positives, Matches) else None
    if weights is None:
        return ops.ones(ops.shape(rows)[:1], "float32")
    return ops.stop_gradient(ops.cast(weights, "float32"))


def total_weight(weights: Tensor) -> Tensor:
    """What a weighted sum is divided by; a batch without any weight has no loss."""
    return ops.maximum(ops.sum(weights), 1e-6)


Objective = InfoNCE | SigmoidLoss | KerasExampleLoss
