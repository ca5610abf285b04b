"""Images and sentences that golden values were made for, by the reference implementations and by the tests alike."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from data.images import ImagePreprocessing, decode, resize
from data.sources.openmoji import draw

EMOJI = {"bicycle": "🚲", "dog": "🐕", "strawberry": "🍓", "airplane": "✈️"}

SENTENCES = (
    "a red bicycle leaning against a brick wall",
    "Two dogs play in the snow.",
    "A close-up photograph of a bee's wing (magnified 40 times).",
    "x",
    "",
    "une maison bleue près de la mer",
    "Ein Hund läuft über die Straße",
    "Красный велосипед у стены",
    "日本の山と湖",
    "صورة لقط أسود على السطح",
    "emoji 🚲 and unknown words: qwrtzplkjh",
    "The Lighthouse, built in 1892, stands on a cliff above a rough sea, " * 3 + "seen from a boat.",
    "Longer than the limit of 128 tokens: " + "a very long caption about a garden with many flowers and trees " * 20,
)


def golden_images() -> dict[str, bytes]:
    """PNG files by name: drawings, smooth colours at an odd size, noise at another, and a plain grey."""
    images = {name: draw(character) for name, character in EMOJI.items()}
    rows, columns = np.mgrid[0:181, 0:333]
    waves = [127 + 120 * np.sin(rows / 17 + columns / (23 + 10 * channel)) for channel in range(3)]
    images["waves"] = _png(np.stack(waves, axis=-1))
    images["noise"] = _png(np.random.default_rng(7).integers(0, 256, (300, 200, 3)))
    images["grey"] = _png(np.full((64, 64, 3), 128))
    return images


def pixel_digest(image: bytes, preprocessing: ImagePreprocessing) -> str:
    """SHA-256 of the resized pixels: equal digests mean that both sides saw the same image."""
    return hashlib.sha256(resize(decode(image), preprocessing).tobytes()).hexdigest()


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
