"""A tiny honest model of colour, and sources of drawn images, so that serving is tested without a trained network."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from PIL import Image

from data.images import ImagePreprocessing, load_pixels
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.calibration import Calibration

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 50, 220),
    "yellow": (240, 220, 30),
    "purple": (130, 30, 160),
    "orange": (250, 140, 20),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255


class ColourRuntime:
    """Embeds an image by the share of each named colour, and a text by the colour words in it.

    Behaves as dual_encoder.runtime.Runtime does; `embedded` counts the images that were embedded.
    """

    def __init__(self, fingerprint: str = "c0104a", name: str = "colours") -> None:
        self.fingerprint = fingerprint
        self.name = name
        self.bundle = None
        self.embedding_dim = len(COLOURS)
        self.preprocessing = ImagePreprocessing(size=8)
        self.hubness = None
        self.calibration: Calibration | None = None
        self.embedded, self.runs_at_once = 0, 1

    def embed_texts(self, texts: Sequence[str], shown: str | None = None) -> np.ndarray:
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        counts = np.array([[found.count(colour) for colour in COLOURS] for found in words], np.float32)
        noise = np.array([list(hashlib.sha256(text.encode()).digest()[: len(COLOURS)]) for text in texts], np.float32)
        return _unit(counts + noise / 255 / 50)

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        return self.embed_pixels(np.stack([load_pixels(image, self.preprocessing) for image in images]))

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.embedded += len(pixels)
        rgb = pixels * np.float32(self.preprocessing.std) + np.float32(self.preprocessing.mean)
        distance = ((rgb[..., None, :] - PALETTE) ** 2).sum(-1)  # (B, S, S, colours)
        share = np.exp(-distance / 0.05)
        return _unit((share / (share.sum(-1, keepdims=True) + 1e-9)).mean((1, 2)) + 1e-3)

    def warm_up(self, text_batch: int = 1, image_batch: int = 1) -> None:
        self.embed_texts(["warm"])


class TurnedRuntime(ColourRuntime):
    """Another model: the same meanings in other dimensions."""

    def __init__(self) -> None:
        super().__init__("70a5ed", "turned")

    def embed_texts(self, texts: Sequence[str], shown: str | None = None) -> np.ndarray:
        return np.roll(super().embed_texts(texts), 3, axis=1)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return np.roll(super().embed_pixels(pixels), 3, axis=1)


def _unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


def picture(colour: str, seed: int = 0, size: int | tuple[int, int] = 24, format: str = "PNG") -> bytes:
    """An encoded image in one colour with some noise of its own; `size` is a side, or width and height."""
    rng = np.random.default_rng(seed)
    width, height = (size, size) if isinstance(size, int) else size
    pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-25, 26, (height, width, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def colour_pair(number: int) -> ImageTextPair:
    """The picture `number` of an endless collection, its colour in turn."""
    colour = list(COLOURS)[number % len(COLOURS)]
    return ImageTextPair(
        image_id=f"{colour}-{number:04}",
        image=ImageBytes(lambda: picture(colour, seed=number)),
        captions=(f"a {colour} picture", f"number {number}"),
        attributes={
            "colour": colour,
            "number": number,
            "even": number % 2 == 0,
            "share": 0.5,
            "tags": [colour, "drawn"],
            "taken": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number),
        },
        split="test" if number % 4 == 0 else "train",
    )


@dataclass
class ListSource:
    """Pairs held in memory."""

    pairs: list[ImageTextPair] = field(default_factory=lambda: [colour_pair(number) for number in range(40)])
    name: str = "colours:40"

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ImageTextPair]:
        return iter(self.pairs)
