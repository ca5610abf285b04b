"""Chooses how sharply a language bridge reads its classifier, on captioned images; knows no training loop.

NumPy only: the bridge of `projection_head.LanguageBridge` for many settings at once, from features that are computed
already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dual_encoder.metrics import rank_both_directions
from dual_encoder.projection_head import AnchoredHead

TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
TOPS = (10, 100, 1000)


def choose_bridge(
    head: AnchoredHead,
    logits: np.ndarray,
    class_embeddings: np.ndarray,
    texts: np.ndarray,
    image_row: Sequence[int],
) -> AnchoredHead:
    """`head` with the `temperature` and `top` whose bridge alone ranks best; its own where none is better.

    Shapes: logits (N, C) of the classifier; class_embeddings (C, D) and texts (T, D), L2-normalised; image_row (T,),
    the image of each text. What is compared is the mean reciprocal rank, averaged over both directions: it moves with
    every rank, where recall@k of few images is coarse.
    """
    classes = logits.shape[1]
    candidates = {(head.temperature, min(head.top, classes))}
    candidates |= {(temperature, min(top, classes)) for temperature in TEMPERATURES for top in TOPS}
    scores = {
        (temperature, top): _score(bridge(logits, class_embeddings, temperature, top), texts, image_row)
        for temperature, top in sorted(candidates)
    }
    own = scores[(head.temperature, min(head.top, classes))]
    (temperature, top), best = max(scores.items(), key=lambda item: item[1])
    return dataclasses.replace(head, temperature=temperature, top=top) if best > own else head


def bridge(logits: np.ndarray, class_embeddings: np.ndarray, temperature: float, top: int) -> np.ndarray:
    """The bridge's output (N, D), L2-normalised, for classifier logits (N, C)."""
    scaled = logits / temperature
    smallest_kept = -np.partition(-scaled, top - 1, axis=1)[:, top - 1 : top]
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True)) * (scaled >= smallest_kept)
    mean = weights @ class_embeddings
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def _score(images: np.ndarray, texts: np.ndarray, image_row: Sequence[int]) -> float:
    ranked = rank_both_directions(images, texts, np.asarray(image_row))
    return float(np.mean([np.mean(1 / queries.ranks) for queries in ranked.values()]))
