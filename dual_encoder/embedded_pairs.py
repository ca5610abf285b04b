"""Image–caption pairs and what a bundle makes of them; knows no metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from data import console
from data.errors import SourceError
from data.loading import decoded_batches
from data.pairs import ImageTextPair
from dual_encoder.hubness import HubnessCorrection, as_served
from dual_encoder.training_data import CaptionTable

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime


@dataclass(frozen=True)
class EmbeddedPairs:
    """The pairs whose image decoded, their captions, and the embeddings of both: (N, D) and (C, D) float32.

    `rejected` are the ids of the images that did not decode, sorted.
    """

    pairs: list[ImageTextPair]
    table: CaptionTable
    images: np.ndarray
    captions: np.ndarray
    rejected: list[str]

    @property
    def caption_image(self) -> np.ndarray:
        """The image row of each caption, (C,)."""
        return np.array(self.table.image_row, np.int64)

    def served(self, correction: HubnessCorrection | None) -> EmbeddedPairs:
        """With vectors (N, D + 1) and (C, D + 1) whose inner products are the scores of a search, if there is one."""
        images, captions = as_served(correction, self.images, self.captions)
        return replace(self, images=images, captions=captions)


def embed_pairs(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> EmbeddedPairs:
    """Embed every image and every caption; `SourceError` when no image decodes."""
    images, bad = embed_images(runtime, pairs)
    kept = [pair for position, pair in enumerate(pairs) if position not in bad]
    table = CaptionTable.of(kept)
    rejected = sorted(pairs[position].image_id for position in bad)
    return EmbeddedPairs(kept, table, images, runtime.embed_texts(table.captions, "embedding captions"), rejected)


def embed_images(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, set[int]]:
    """Embeddings (N, D) of the images that decode, and the positions of the others; `SourceError` when none does."""
    found, bad = embed_decodable(runtime, pairs)
    if not len(found):
        raise SourceError("images that decode", f"{len(bad)} that do not", "check the data set with data.prepare")
    return found, bad


def embed_decodable(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, set[int]]:
    """As `embed_images`, but none is no error."""
    rows: list[np.ndarray] = []
    bad: set[int] = set()
    batches = decoded_batches((pair.image for pair in pairs), runtime.preprocessing)
    for batch in console.progress(batches, "embedding images (batches of 32)", (len(pairs) + 31) // 32):
        bad.update(position for position, _ in batch.rejected)
        if batch.positions:
            rows.append(runtime.embed_pixels(batch.pixels))
    return np.concatenate(rows) if rows else np.empty((0, runtime.embedding_dim), np.float32), bad
