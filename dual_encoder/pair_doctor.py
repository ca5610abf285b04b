"""Finds the captions of a data set that do not belong to their images, by frozen backbones; knows no command line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.pairs import ImageTextPair
from data.quarantine import QuarantineEntry
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.mismatch import find_mismatched
from dual_encoder.training_data import CaptionTable, captioned, image_groups


def mismatched_pairs(pairs: Sequence[ImageTextPair], listed_from: float) -> tuple[list[QuarantineEntry], float]:
    """Entries of captions that are another image's with at least that probability, and their estimated share of all."""
    load_tensorflow()
    from dual_encoder.frozen_features import caption_features, freeze, image_features
    from dual_encoder.towers import backbone_config
    from dual_encoder.towers.efficientnet_lite import EfficientNetLite
    from dual_encoder.towers.minilm import MiniLM

    pairs = captioned(pairs, "train and validation")
    image, text = EfficientNetLite("lite0"), MiniLM()
    tokenizer = text.tokenizer(list)
    features, bad = image_features(freeze(image.build(True), backbone_config(image)), image.preprocessing, pairs)
    kept = [number for number in range(len(pairs)) if number not in set(bad)]
    pairs, rows = captioned([pairs[number] for number in kept], "usable"), features[kept]
    table = CaptionTable.of(pairs)
    captions = np.asarray(caption_features(freeze(text.build(True), backbone_config(text)), tokenizer, table.captions))
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    found = find_mismatched(unit, captions, np.array(table.image_row), np.array(image_groups(pairs)))
    entries = [
        QuarantineEntry(
            pairs[table.image_row[n]].image_id,
            table.captions[n],
            "mismatched",
            round(float(1 - found.probability[n]), 4),
            round(float(found.log_odds[n]), 4),
        )
        for n in np.argsort(found.log_odds)
        if found.probability[n] >= listed_from
    ]
    return entries, found.share
