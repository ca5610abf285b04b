"""A teacher's similarities as soft targets of a batch: the setting and the loss; knows no towers, data or optimizer.

The student learns how alike the teacher finds every image and every caption of the batch, the wrong ones too, and not
where the teacher puts them: embeddings of the two may have different sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from data.errors import TrainingError
from dual_encoder.bundle import WEIGHTS, Bundle
from dual_encoder.losses import (
    LEFT_OUT,
    WHOLE,
    Matches,
    Objective,
    Share,
    l2_normalise,
    row_weights,
    similarities,
    total_weight,
)
from dual_encoder.row_chunks import sum_over_rows
from dual_encoder.weights import read_weight

Tensor = Any
Sides = tuple[Tensor, Tensor]  # anchors and others (B, D)
CHUNK_ROWS = 1024  # rows compared at a time, so that memory grows with B and not with B²


class Taught(NamedTuple):
    """What a loss needs to know of a batch: which rows match, and the teacher's embeddings (B, D) of both sides.

    A row whose embedding is zeros is one that the teacher does not know: it has no target and is in none.
    """

    matches: Matches
    image: Tensor
    text: Tensor

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor]) -> Taught:
        """From a batch of `teacher.TaughtBatches`."""
        return cls(Matches.of_batch(batch), batch["teacher_image"], batch["teacher_text"])


@dataclass(frozen=True)
class Distillation:
    """Distils `teacher`: the loss is (1 - weight) · objective + weight · `divergence`.

    `temperature` T softens both sides (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531). `teacher_scale` takes the place of the scale that the teacher learned and holds in its bundle.
    """

    teacher: Bundle
    weight: float = 0.5
    temperature: float = 1.0
    teacher_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse a mixture or softness that is none."""
        scale = 1.0 if self.teacher_scale is None else self.teacher_scale
        if not 0 < self.weight <= 1 or not 0 < min(self.temperature, scale) <= max(self.temperature, scale) < math.inf:
            raise TrainingError(
                "a weight in (0, 1], a temperature and a teacher_scale above 0",
                f"weight {self.weight}, temperature {self.temperature}, teacher_scale {self.teacher_scale}",
                "correct the recipe's distillation",
            )

    def scale(self) -> float:
        """What the teacher's cosines are multiplied by; `TrainingError` where its bundle has learned none."""
        if self.teacher_scale is not None:
            return self.teacher_scale
        scale = float(np.exp(read_weight(self.teacher.path / WEIGHTS, "log_scale")))
        if scale <= 1:  # where a model begins whose objective has no scale to learn
            raise TrainingError(
                "a teacher with a learned scale of similarities",
                f"{self.teacher.name}, which has none",
                "give one in the recipe: Distillation(teacher, teacher_scale=20.0)",
            )
        return scale

    def resolved(self, objective: Objective) -> Distillation:
        """With `teacher_scale` as it will be used; `TrainingError` for an `objective` that cannot be taught."""
        if not objective.learns_scale:
            raise TrainingError(
                "an objective with a learned scale, to compare a student with its teacher",
                f"{objective.kind}, which has none",
                "use InfoNCE or SigmoidLoss, or train without a teacher",
            )
        return dataclasses.replace(self, teacher_scale=self.scale())

    def to_config(self) -> dict[str, Any]:
        """JSON form: what decides the result, and who the teacher is; its place does not decide."""
        return {
            "teacher": self.teacher.name,
            "fingerprint": self.teacher.fingerprint,
            "weight": self.weight,
            "temperature": self.temperature,
            "teacher_scale": self.scale(),
        }

    def mixed(
        self,
        objective: Objective,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        taught: Taught,
        logit_bias: Tensor = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """The loss of a batch of the student's un-normalised projections, a float32 scalar; see `Objective`."""
        log_scale = ops.minimum(log_scale, math.log(objective.max_scale))
        taught_part = self.weight * self.divergence(image, text, ops.exp(log_scale), taught, share)
        if self.weight == 1:
            return taught_part
        own = objective(image, text, log_scale, taught.matches, logit_bias, share)
        return (1 - self.weight) * own + taught_part

    def divergence(self, image: Tensor, text: Tensor, scale: Tensor, taught: Taught, share: Share = WHOLE) -> Tensor:
        """T² KL(teacher ‖ student) between softmaxes over the batch, mean over anchors and both directions.

        Yang et al. 2024, "CLIP-KD: An Empirical Study of CLIP Model Distillation" (arXiv:2307.12732), contrastive
        relational distillation; for one modality already SEED (Fang et al. 2021, arXiv:2101.04731). The target is
        softmax(teacher_scale · cosine / T), behind a stop-gradient, the student's softmax(scale · cosine / T); T² keeps
        the gradient's size whatever T is (Hinton et al.). Rows that match are columns like others here: the teacher
        says how well. Anchors count by the weights of their rows, as in the objective.
        """
        image, text = l2_normalise(image), l2_normalise(text)
        their_image, their_text = (ops.stop_gradient(l2_normalise(side)) for side in (taught.image, taught.text))
        known = ops.logical_and(*(ops.any(side != 0, axis=-1) for side in (taught.image, taught.text)))
        weights = row_weights(taught.matches, image) * ops.cast(known, "float32")
        teacher_scale = self.scale()

        def log_softmax(logits: Tensor) -> Tensor:
            logits = ops.where(ops.expand_dims(known, 0), logits / self.temperature, LEFT_OUT)
            return logits - ops.logsumexp(logits, axis=-1, keepdims=True)

        def one_direction(rows: Tensor, student: Sides, scale: Tensor, teacher: Sides) -> Tensor:
            log_target = log_softmax(teacher_scale * similarities(*teacher, rows))  # (R, B)
            log_student = log_softmax(scale * similarities(*student, rows))
            return ops.sum(ops.exp(log_target) * (log_target - log_student), axis=-1)

        def both_directions(rows: Tensor, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            to_text = one_direction(rows, (image, text), scale, (their_image, their_text))
            to_image = one_direction(rows, (text, image), scale, (their_text, their_image))
            return ops.sum(ops.take(weights, rows) * (to_text + to_image))

        total = sum_over_rows(both_directions, CHUNK_ROWS, image, text, scale, share=share)
        return self.temperature**2 * total / (2 * total_weight(weights))


def label_smoothing_of(teacher: Bundle) -> float:
    """How much label smoothing a bundle was trained with, as it says itself; 0 where it says nothing."""
    recipe = teacher.manifest["trained"].get("recipe") or {}
    return float(recipe.get("objective", {}).get("label_smoothing", 0.0))
