"""Puts class names into words that a text tower knows, and averages what it makes of them; knows no image."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dual_encoder.metrics import unit

# Photographs and drawings alike: an ensemble of some templates is worth more than a better wording of one (Radford et
# al. 2021, arXiv:2103.00020, section 3.1.4).
TEMPLATES = (
    "{name}",
    "a photo of a {name}",
    "a photo of the {name}",
    "a picture of a {name}",
    "a close-up photo of a {name}",
    "a drawing of a {name}",
    "many {name} in a picture",
)


def class_vectors(embed: Callable[[Sequence[str]], ArrayLike], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """One L2-normalised vector (C, G) per class: the mean of the L2-normalised embeddings of its `texts`.

    `embed` gives text features (B, G). Every class needs at least one text.
    """
    flat = unit(np.asarray(embed([text for own in texts for text in own])))
    starts = np.cumsum([0, *(len(own) for own in texts[:-1])])
    return unit(np.add.reduceat(flat, starts, axis=0))


def filled(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every template with every name of a class in it."""
    return [template.replace("{name}", name) for name in names for template in templates]


def name_of_folder(folder: str, whole: bool = False) -> str:
    """What the last part of a path, or the whole of it, says in words: `birds/Snowy_owl-2` → `Snowy owl 2`."""
    path = folder.strip("/")
    return re.sub(r"[\s_+/-]+", " ", path if whole else path.rpartition("/")[2]).strip()
