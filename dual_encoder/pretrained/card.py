"""The README.md of an imported bundle; knows no file format."""

from __future__ import annotations

from dual_encoder.pretrained.keras_presets import PresetModel
from dual_encoder.pretrained.published_model import PublishedModel


def import_card(name: str, published: PublishedModel | PresetModel) -> str:
    """Markdown: what was imported from what, how images and texts are prepared, and what is not known."""
    image, text = published.config.image_backbone, published.config.text_backbone
    pixels = image.preprocessing
    facts = ", ".join(str(fact) for fact in published.facts.values())
    return f"""# {name}

A published model ({facts}), imported with its own weights, tokeniser and image preprocessing; nothing was trained here.

- Image tower: {image.family}, {_size(image)}; images of {pixels.size} × {pixels.size} pixels ({pixels.resize},
  {pixels.interpolation}).
- Text tower: {text.family}, {_size(text)}; texts of at most {published.tokenizer.max_tokens} tokens.
- Score: cosine similarity; the learned scale{" and bias are" if published.has_bias else " is"} kept for training.

What it was trained on, what it is good at and its licence are what its publisher says: read the original model card.
"""


def _size(backbone: object) -> str:
    return f"{getattr(backbone, 'layers', '?')} layers of width {getattr(backbone, 'width', '?')}"
