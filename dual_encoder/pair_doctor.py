"""Finds the captions of a data set that do not belong to their images; knows no command line."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data.embedding_neighbours import Rows
from data.pairs import ImageTextPair
from data.quarantine import QuarantineEntry
from data.text import clean_caption
from dual_encoder.judged_pairs import BundleEncoder, FrozenEncoder, PairEncoder, chunks, judged_pairs
from dual_encoder.kept_scores import kept_in_cache
from dual_encoder.mismatch import Mismatch, find_mismatched


def pair_encoder(bundle: str | None = None) -> PairEncoder:
    """What judges pairs: frozen backbones, or a `bundle`."""
    return FrozenEncoder() if bundle is None else BundleEncoder(bundle)


def image_rows(encoder: PairEncoder, pairs: Iterable[ImageTextPair]) -> Rows:
    """What the encoder makes of the images of pairs (N, F), zeros for one that does not decode."""
    return encoder.joined([encoder.images(chunk)[0] for chunk in chunks(pairs)])


def mismatched_pairs(
    pairs: Iterable[ImageTextPair], listed_from: float, encoder: PairEncoder
) -> tuple[list[QuarantineEntry], float]:
    """Entries of captions that are another image's with at least that probability, and their estimated share of all.

    The most suspicious comes first. The pairs are read twice, in the same order: for their features, and for the names
    of those that are listed.
    """
    judged = judged_pairs(encoder, pairs)
    found = find_mismatched(judged.features, kept=kept_in_cache)
    entries = list(_entries(pairs, judged.kept, found, listed_from))
    return sorted(entries, key=lambda entry: entry.score or 0.0), found.share


def _entries(
    pairs: Iterable[ImageTextPair], kept: np.ndarray, found: Mismatch, listed_from: float
) -> Iterable[QuarantineEntry]:
    """What is listed of the captions, in their order."""
    caption = 0
    usable = np.zeros(int(kept.max()) + 1, bool)
    usable[kept] = True
    for pair, is_usable in zip(pairs, usable, strict=False):
        for text in pair.captions if is_usable else ():
            if clean_caption(text):
                probability, log_odds = float(found.probability[caption]), float(found.log_odds[caption])
                caption += 1
                if probability >= listed_from:
                    weight = round(1 - probability, 4)
                    yield QuarantineEntry(pair.image_id, text, "mismatched", weight, round(log_odds, 4))
