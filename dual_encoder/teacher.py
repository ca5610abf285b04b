"""A teacher's embeddings of the training pairs, computed once, and batches that carry them; knows no loss.

The teacher runs as it does for a query: by its own runtime, with its own preprocessing and tokeniser. It sees each
image and caption as it is, whatever varies for the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.console import say
from data.durable import digest_json
from data.pairs import ImageTextPair
from data.text import clean_caption
from dual_encoder.bundle import Bundle
from dual_encoder.distillation import label_smoothing_of
from dual_encoder.feature_batches import Batches
from dual_encoder.feature_store import MappedRows
from dual_encoder.frozen_features import FrozenBackbone, caption_features, image_features
from dual_encoder.runtime import Runtime
from dual_encoder.training_data import CaptionTable


class TaughtBatches:
    """Batches with the teacher's embeddings, "teacher_image" and "teacher_text" (B, D) float32, beside what they hold.

    `images` (N, D) are by "image_row", `texts` (G, D) by "caption_group". Rows beyond, which are class prototypes,
    have zeros.
    """

    def __init__(self, batches: Batches, images: np.ndarray | MappedRows, texts: np.ndarray | MappedRows) -> None:
        self.batches, self.images, self.texts = batches, images, texts
        self.steps_per_epoch = batches.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`."""
        for batch in self.batches.epoch(epoch, start):
            rows, groups = np.asarray(batch["image_row"]), np.asarray(batch["caption_group"])
            yield {**batch, "teacher_image": _known(self.images, rows), "teacher_text": _known(self.texts, groups)}


def taught(batches: Batches, teacher: Bundle, pairs: Sequence[ImageTextPair]) -> TaughtBatches:
    """`batches` of `pairs` with the teacher's embeddings, which stay in the cache under its fingerprint.

    Whatever a teacher cannot decode, no row of a batch has.
    """
    warn_of_smoothing(teacher)
    say(f"teacher: {teacher.name}, fingerprint {teacher.fingerprint[:12]}")
    runtime = Runtime.load(teacher.path)
    engines = [runtime.image_engine.name, runtime.text_engine.name]  # in int8 where it was admitted
    quantised = sorted(teacher.manifest.get("quantised", {}))
    key = digest_json({"teacher": teacher.fingerprint, "engines": engines, "quantised": quantised})
    images, _ = image_features(FrozenBackbone(key, runtime.image_engine, None), runtime.preprocessing, pairs)
    captions = list(dict.fromkeys(map(clean_caption, CaptionTable.of(pairs).captions)))  # in the order of their groups
    texts = caption_features(FrozenBackbone(key, runtime.text_engine, None), runtime.tokenizer, captions)
    return TaughtBatches(batches, images, texts)


def warn_of_smoothing(teacher: Bundle) -> None:
    """Say that a teacher with label smoothing teaches less, if it had any (Müller et al. 2019, arXiv:1906.02629)."""
    if amount := label_smoothing_of(teacher):
        say(
            f"warning: the teacher {teacher.name} was trained with label smoothing {amount:g}, which erases how alike "
            "wrong answers are, the very thing a student learns from (Müller, Kornblith, Hinton 2019, When does label "
            "smoothing help?); train the teacher again with label_smoothing=0"
        )


def _known(embeddings: np.ndarray | MappedRows, rows: np.ndarray) -> np.ndarray:
    """Some rows (B, D) float32, zeros where there is none of that number."""
    found = np.array(embeddings[np.minimum(rows, len(embeddings) - 1)])
    found[rows >= len(embeddings)] = 0
    return found
