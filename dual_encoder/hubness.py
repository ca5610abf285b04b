"""Images that stand near every query, and the correction that puts them back: a bank of texts and an offset an image.

In high dimensions some points are among the nearest of far too many queries (Radovanović et al. 2010, "Hubs in space").
Against a bank of texts that stand for queries to come, an image's offset is the mean similarity to its nearest ones, as
in CSLS (Conneau et al. 2018, arXiv:1710.04087) and querybank normalisation (Bogolin et al. 2022, arXiv:2112.12777):

    score(text, image) = text · image − weight · mean of the `neighbours` largest (bank · image)

The offset depends on the image alone, so it is one more component of the image's vector, which costs a search nothing:
[image, −offset] · [text, 1]. Knows no model and no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.errors import BundleError
from dual_encoder.metrics import ranks, resampled_means

NEIGHBOURS = 50
WEIGHTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BANK_TEXTS = 4_096  # 3 MB of 384 components in float16
CONFIDENCE = 0.84  # that ranks improve: a gain of more than its standard error, or there is no correction
_BLOCK = 4_096  # images compared with the bank at a time


@dataclass(frozen=True)
class HubnessCorrection:
    """What makes an image's offset. `bank` is (M, D) float16, texts of unit length."""

    bank: np.ndarray = field(repr=False, compare=False)
    weight: float
    neighbours: int = NEIGHBOURS

    def __post_init__(self) -> None:
        if self.bank.ndim != 2 or self.bank.dtype != np.float16 or not len(self.bank):
            raise BundleError(
                "a bank of texts (M, D) float16", f"{self.bank.dtype} {self.bank.shape}", "export the bundle again"
            )
        if not (0 < self.weight <= 1 and self.neighbours >= 1):
            raise BundleError(
                "a weight above 0 and up to 1, and 1 neighbour or more",
                f"{self.weight} and {self.neighbours}",
                "export the bundle again",
            )

    def to_config(self) -> dict[str, Any]:
        """The settings beside the bank, as JSON."""
        return {"weight": self.weight, "neighbours": self.neighbours}

    def offsets(self, images: np.ndarray) -> np.ndarray:
        """What is taken off the score of each image: embeddings (N, D) to (N,) float32."""
        bank = np.asarray(self.bank, np.float32).T
        nearest = min(self.neighbours, bank.shape[1])
        offsets = np.empty(len(images), np.float32)
        for start in range(0, len(images), _BLOCK):
            similarity = np.asarray(images[start : start + _BLOCK], np.float32) @ bank  # (B, D) * (D, M) -> (B, M)
            largest = np.partition(similarity, -nearest, axis=1)[:, -nearest:]
            offsets[start : start + _BLOCK] = self.weight * largest.mean(axis=1, dtype=np.float64)
        return offsets

    def searched(self, images: np.ndarray) -> np.ndarray:
        """Image embeddings (N, D) as texts are compared with: (N, D + 1) float32, the last one minus the offset."""
        return np.column_stack([np.asarray(images, np.float32), -self.offsets(images)])


def asked(queries: np.ndarray, by_text: float = 1.0) -> np.ndarray:
    """Embeddings (Q, D) as `HubnessCorrection.searched` images are compared with: (Q, D + 1).

    The last component is `by_text`: 1 for texts; for queries by image or vector it is 0, which leaves offsets out.
    """
    return np.column_stack([queries, np.full(len(queries), by_text, np.float32)])


def as_served(
    correction: HubnessCorrection | None, images: np.ndarray, texts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of images and texts whose inner products are the scores of a search, with or without a correction."""
    return (images, texts) if correction is None else (correction.searched(images), asked(texts))


def sample_bank(texts: Sequence[str], seed: int = 0) -> list[str]:
    """At most BANK_TEXTS of them, each once, drawn at random."""
    once = sorted(set(texts))
    drawn = np.random.default_rng(seed).permutation(len(once))[:BANK_TEXTS]
    return [once[position] for position in np.sort(drawn)]


def choose_correction(
    bank: np.ndarray, images: np.ndarray, texts: np.ndarray, image_row: np.ndarray
) -> HubnessCorrection | None:
    """The correction whose weight ranks held-out images best for their texts; None where no weight surely helps.

    Shapes: bank (M, D), images (N, D), texts (T, D), L2-normalised; image_row (T,) is the image of each text. What is
    compared is the mean logarithm of the rank, which moves with every rank; helping means that its gain is above 0 in
    84 % of bootstrap samples of images, one standard error.
    """
    image_row = np.asarray(image_row, np.int64)
    right = [[row] for row in image_row.tolist()]
    plain = np.log(ranks(texts, images, right))
    candidates = [HubnessCorrection(np.asarray(bank, np.float16), weight) for weight in WEIGHTS]
    offsets = candidates[-1].offsets(images) / candidates[-1].weight
    gains = np.stack(
        [plain - np.log(ranks(asked(texts), _with(images, c.weight * offsets), right)) for c in candidates]
    )
    best = int(gains.mean(axis=1).argmax())
    sure = np.quantile(resampled_means(gains[best : best + 1], image_row, 0, 1000), 1 - CONFIDENCE)
    return candidates[best] if sure > 0 else None


def _with(images: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.column_stack([images, -offsets])
