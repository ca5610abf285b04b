"""Entry point: writes a bundle for other programs to run, as a TensorFlow SavedModel or as ONNX files.

python -m dual_encoder.export --bundle build/model --out build/saved_model/1
python -m dual_encoder.export --bundle build/model --format onnx --out build/towers
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from data import console
from data.durable import publish_directory
from data.errors import BundleError, ImageError, SourceError
from data.quiet_tensorflow import load_tensorflow, os_errors
from data.sources import SOURCE_HELP, open_source
from data.text import clean_caption

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.bundle import Bundle
    from dual_encoder.model import DualEncoder

Format = Literal["saved_model", "onnx"]

# How far a number of an exported embedding may lie from Keras's own: the same kernels, or another engine's.
TOLERANCE: dict[Format, float] = {"saved_model": 1e-5, "onnx": 1e-4}

# What every export is checked on: strings that it must tokenise as the bundle does, and drawings.
SAMPLE = ("a red bicycle", "  Two DOGS,  play… ", "Ærøskøbing café", "東京タワー at night", "naïve Ångström 🚲", "")
DRAWINGS = ("🐘", "🍌", "🚲")
CHECKED = 16  # pairs of --data


class Exported(Protocol):
    """What has been written, run from its files."""

    @property
    def parts(self) -> Sequence[str]:
        """What it consists of: signatures or files."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Strings to embeddings (B, D) float32."""

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, S, S, 3) float32 to embeddings (B, D) float32."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.export",
        description="Write a bundle for other programs. saved_model: for TensorFlow Serving; its signature embed_texts "
        "takes strings, embed_images takes pixels made by data.images.load_pixels. onnx: a directory with image.onnx, "
        "text.onnx, tokeniser, preprocessing and a README that says how to run them. Before anything is published, its "
        "embeddings of a few images and captions are compared with the bundle's.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, help='a trained model, or "default"')
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new directory, such as models/search/1")
    parser.add_argument("--format", default="saved_model", choices=tuple(TOLERANCE), help="default saved_model")
    parser.add_argument("--data", metavar="SOURCE", help="compare on pairs of yours too, see below")
    options = parser.parse_args(argv)
    load_tensorflow()
    from dual_encoder.runtime import open_named_bundle

    pairs = open_source(options.data) if options.data else ()
    parts = export(open_named_bundle(options.bundle), options.out, options.format, pairs)
    console.say(f"written: {options.out} ({', '.join(parts)})")
    return console.EXIT_OK


def export(bundle: Bundle, out: Path, kind: Format = "saved_model", pairs: Any = ()) -> list[str]:
    """Write, compare with Keras, publish; return what there is. `BundleError` when `out` is in use or they differ."""
    from dual_encoder.bundle_model import load_model
    from dual_encoder.onnx_towers import write_onnx_towers
    from dual_encoder.saved_model import write_saved_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("a new or empty directory", f"{out}, which holds something", "choose another --out")
    texts, pixels = _inputs(bundle, pairs)
    model = load_model(bundle)
    with publish_directory(out) as directory:
        with os_errors(out):
            written: Exported
            if kind == "onnx":
                written = write_onnx_towers(bundle, directory)
            else:
                written = write_saved_model(bundle, model, directory)
        difference = largest_difference(written, bundle, model, texts, pixels)
        if not difference <= TOLERANCE[kind]:
            raise BundleError(
                f"the bundle's own embeddings from its {kind}, within {TOLERANCE[kind]}",
                f"a difference of {difference:.1e}; nothing is written",
                "please report this with the bundle's config",
            )
    return list(written.parts)


def largest_difference(
    written: Exported, bundle: Bundle, model: DualEncoder, texts: Sequence[str], pixels: np.ndarray
) -> float:
    """The largest difference of a number between an export's embeddings and Keras's, together and one by one."""
    import tensorflow as tf

    tokenizer = bundle.tokenizer()
    if tokenizer is None:
        inputs: Any = tf.constant(np.array([clean_caption(text) for text in texts], object))
    else:
        batch = tokenizer.encode(texts)
        inputs = {"ids": tf.constant(batch.ids), "mask": tf.constant(batch.mask)}
    of_texts, of_images = np.asarray(model.embed_texts(inputs)), np.asarray(model.embed_images(pixels))
    found = (
        (written.embed_texts(texts), of_texts),
        (written.embed_texts(texts[:1]), of_texts[:1]),
        (written.embed_pixels(pixels), of_images),
        (written.embed_pixels(pixels[:1]), of_images[:1]),
    )
    return max(float(np.abs(theirs - ours).max()) for theirs, ours in found)


def _inputs(bundle: Bundle, pairs: Any) -> tuple[list[str], np.ndarray]:
    """Texts and pixels (B, S, S, 3): the built-in ones, and the first of `pairs` whose images decode."""
    from data.images import load_pixels
    from data.sources.openmoji import draw

    texts = list(SAMPLE)
    pixels = [load_pixels(draw(character), bundle.preprocessing) for character in DRAWINGS]
    own: list[ImageTextPair] = list(itertools.islice(pairs, CHECKED))
    for pair in own:
        texts += pair.captions
        try:
            pixels.append(load_pixels(pair.image.read(), bundle.preprocessing))
        except ImageError:
            continue
    if own and len(pixels) == len(DRAWINGS):
        raise SourceError("images that decode", f"{len(own)} that do not", "check the data set with data.prepare")
    return texts, np.stack(pixels)


if __name__ == "__main__":
    console.run(main)
