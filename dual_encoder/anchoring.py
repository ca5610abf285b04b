"""Gives a language-anchored head its words: embeds ImageNet's class names; knows no training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dual_encoder.class_names import class_descriptions, class_names
from dual_encoder.prompts import class_vectors


def class_embeddings(embed: Callable[[Sequence[str]], ArrayLike], templates: Sequence[str]) -> np.ndarray:
    """One L2-normalised text vector (C, G) per class: the mean of its templates' L2-normalised embeddings.

    `embed` gives text features (B, G). A template with a description is left out for a class that has none.
    """
    texts = [_class_texts(names[0], description, templates) for names, description in _classes()]
    return class_vectors(embed, texts)


def _class_texts(name: str, description: str, templates: Sequence[str]) -> list[str]:
    usable = [template for template in templates if description or "{description}" not in template]
    return [template.format(name=name, description=description) for template in usable] or [name]


def prototype_captions() -> list[list[str]]:
    """For each class, what a classifier row is paired with as if it were an image: its names, then a description."""
    return [
        [f"a photo of a {name}" for name in names] + ([f"{names[0]}. {description}"] if description else [])
        for names, description in _classes()
    ]


def _classes() -> Iterable[tuple[list[str], str]]:
    return zip(class_names(), class_descriptions(), strict=True)


def prototype_features(kernel: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Classifier rows (C, F) scaled and shifted to look like the features (N, F) of images.

    A row of the classifier points to where its class's features lie; mean and spread are those of real features.
    """
    rows = kernel.T - kernel.T.mean(axis=0)
    rows = rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-6)
    return np.maximum(features.mean(axis=0) + rows * features.std(axis=0), 0).astype(np.float32)
