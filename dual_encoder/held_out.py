"""Pairs that a run measures itself on, with what is cached of them; knows no backbone and no batch order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data.pairs import ImageTextPair
from dual_encoder.feature_batches import caption_groups
from dual_encoder.feature_store import MappedRows
from dual_encoder.losses import Matches, Objective
from dual_encoder.metrics import retrieval_metrics
from dual_encoder.model import DualEncoder
from dual_encoder.training_data import CaptionTable

TRUNK_BATCH = 64  # rows of a trunk's output, some 10,000 numbers each, that go through the top at a time


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pairs to measure on, their captions, and what is cached of either: `images` (N, …), `texts` (C, G), else None."""

    pairs: list[ImageTextPair]
    table: CaptionTable
    images: MappedRows | None
    texts: MappedRows | None

    def metrics(self, image: np.ndarray, text: np.ndarray) -> dict[str, Any]:
        """Retrieval metrics of vectors (N, D) and (C, D) whose inner products are scores."""
        return retrieval_metrics(image, text, np.array(self.table.image_row))

    def loss(self, image: np.ndarray, text: np.ndarray, objective: Objective, model: DualEncoder, size: int) -> float:
        """Mean objective of projections over batches of `size` images with their first captions."""
        first = [rows[0] for rows in self.table.rows_of_images(len(image))]
        text, groups = text[first], caption_groups([self.table.captions[row] for row in first])
        size = min(size, len(image))
        rows = np.arange(size)
        losses = [
            objective(
                image[start : start + size],
                text[start : start + size],
                model.log_scale,
                Matches(rows, groups[start : start + size]),
                model.logit_bias,
            )
            for start in range(0, len(image) - size + 1, size)
        ]
        return float(np.mean([float(loss) for loss in losses]))


def predict(function: Callable[..., Any], rows: MappedRows) -> np.ndarray:
    """Projections (N, D) float32 of cached rows; few at a time where a row is a whole map."""
    size = TRUNK_BATCH if len(rows.shape) > 2 else 4096
    parts = [function(rows[start : start + size], training=False) for start in range(0, len(rows), size)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])
