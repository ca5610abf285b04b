"""Finds the captions of a data set that do not belong to their images, by frozen backbones; knows no command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.pairs import ImageTextPair
from data.quarantine import QuarantineEntry
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.feature_store import MappedRows
from dual_encoder.mismatch import find_mismatched
from dual_encoder.pair_scores import PairFeatures
from dual_encoder.training_data import CaptionTable, captioned, image_groups

BLOCK = 4096  # images whose classes are looked up at a time


@dataclass(frozen=True)
class FrozenPairs:
    """Pairs whose images decode, the table of their captions, and the features of both."""

    pairs: list[ImageTextPair]
    table: CaptionTable
    features: PairFeatures


def mismatched_pairs(
    pairs: Sequence[ImageTextPair], listed_from: float, bundle: str | None = None
) -> tuple[list[QuarantineEntry], float]:
    """Entries of captions that are another image's with at least that probability, and their estimated share of all.

    With a `bundle`, its embeddings are the features.
    """
    frozen = frozen_pairs(pairs) if bundle is None else embedded_pairs(pairs, bundle)
    found = find_mismatched(frozen.features)
    entries = [
        QuarantineEntry(
            frozen.pairs[frozen.table.image_row[n]].image_id,
            frozen.table.captions[n],
            "mismatched",
            round(float(1 - found.probability[n]), 4),
            round(float(found.log_odds[n]), 4),
        )
        for n in np.argsort(found.log_odds)
        if found.probability[n] >= listed_from
    ]
    return entries, found.share


def embedded_pairs(pairs: Sequence[ImageTextPair], bundle: str) -> FrozenPairs:
    """What a bundle makes of pairs; where it puts an image is what it takes the image for."""
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.runtime import Runtime

    found = embed_pairs(Runtime.load(bundle), captioned(pairs, "train and validation"))
    kept = captioned(found.pairs, "usable")
    groups = np.array(image_groups(kept))
    features = PairFeatures(found.images, found.captions, found.caption_image, groups, named=found.images)
    return FrozenPairs(kept, found.table, features)


def frozen_pairs(pairs: Sequence[ImageTextPair]) -> FrozenPairs:
    """What frozen backbones make of pairs; from the cache where it has it. `SourceError` where no pair is usable."""
    load_tensorflow()
    from dual_encoder.anchoring import class_embeddings
    from dual_encoder.bridge_choice import bridge
    from dual_encoder.frozen_features import caption_features, freeze, image_features
    from dual_encoder.model import classifier_of
    from dual_encoder.projection_head import AnchoredHead
    from dual_encoder.towers import backbone_config
    from dual_encoder.towers.efficientnet_lite import EfficientNetLite
    from dual_encoder.towers.minilm import MiniLM

    pairs = captioned(pairs, "train and validation")
    image, text, head = EfficientNetLite("lite0"), MiniLM(), AnchoredHead()
    every, bad = image_features(freeze(image.build(True), backbone_config(image)), image.preprocessing, pairs)
    kept = np.setdiff1d(np.arange(len(pairs)), bad).tolist()
    pairs, rows = captioned([pairs[number] for number in kept], "usable"), every.only(kept)
    table = CaptionTable.of(pairs)
    text_backbone, tokenizer = freeze(text.build(True), backbone_config(text)), text.tokenizer(list)

    def embed(texts: Sequence[str]) -> MappedRows:
        return caption_features(text_backbone, tokenizer, texts)

    kernel, bias = classifier_of(image)
    classes = class_embeddings(embed, head.templates)
    named = [
        bridge(rows[start : start + BLOCK] @ kernel + bias, classes, head.temperature, head.top)
        for start in range(0, len(rows), BLOCK)
    ]
    features = PairFeatures(
        rows, embed(table.captions), np.array(table.image_row), np.array(image_groups(pairs)), np.concatenate(named)
    )
    return FrozenPairs(pairs, table, features)
