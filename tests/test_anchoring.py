"""A class stands where the mean of its templates points, with or without a description."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dual_encoder.anchoring import class_embeddings
from dual_encoder.class_names import CLASS_COUNT, class_descriptions, class_names

TEMPLATES = ("a photo of a {name}", "{name}. {description}")


def embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of letters, of no particular length."""
    return np.array([[text.count(letter) for letter in "aeioustrn."] for text in texts], np.float32) + 0.1


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_class_is_the_mean_of_its_templates() -> None:
    found = class_embeddings(embed, TEMPLATES)
    assert found.shape == (CLASS_COUNT, 10)
    described = [row for row, text in enumerate(class_descriptions()) if text]
    for row in described[:: CLASS_COUNT // 3]:
        name, description = class_names()[row][0], class_descriptions()[row]
        both = unit(embed([f"a photo of a {name}", f"{name}. {description}"]))
        np.testing.assert_allclose(found[row], unit(both.mean(axis=0)), atol=1e-6)


def test_a_class_without_a_description_keeps_its_other_templates_or_its_bare_name() -> None:
    row = class_descriptions().index("")
    name = class_names()[row][0]
    np.testing.assert_allclose(
        class_embeddings(embed, TEMPLATES)[row], unit(embed([f"a photo of a {name}"])[0]), atol=1e-6
    )
    np.testing.assert_allclose(class_embeddings(embed, ["{description}"])[row], unit(embed([name])[0]), atol=1e-6)
