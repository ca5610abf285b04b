"""Entry point: writes a bundle as a TensorFlow SavedModel, which takes strings where it can, for TensorFlow Serving.

python -m dual_encoder.export --bundle build/model --out build/saved_model/1
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.durable import publish_directory
from data.errors import BundleError
from data.quiet_tensorflow import load_tensorflow, os_errors
from dual_encoder.bundle import TOKENIZER

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle

TEXTS, TOKENS = "embed_texts", "embed_tokens"
ASSETS = "assets.extra"  # TensorFlow's own name for what it does not read

# Strings that the exported graph must tokenise as the bundle does, checked before anything is published.
SAMPLE = ("a red bicycle", "  Two DOGS,  play… ", "Ærøskøbing café", "東京タワー at night", "naïve Ångström 🚲", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.export",
        description="Write a bundle as a TensorFlow SavedModel. Its signature embed_texts takes strings; embed_images "
        "takes pixels made by data.images.load_pixels, so that images keep one way of being prepared. A tokeniser "
        "that no TensorFlow graph reproduces (CLIP's, SigLIP's) goes along as assets.extra/tokenizer.json, and "
        "embed_tokens, which takes its ids and mask, is in the place of embed_texts.",
    )
    parser.add_argument("--bundle", required=True, help='a trained model, or "default"')
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new directory, such as models/search/1")
    options = parser.parse_args(argv)
    load_tensorflow()
    from dual_encoder.runtime import open_named_bundle

    signatures = export(open_named_bundle(options.bundle), options.out)
    console.say(f"written: {options.out} (signatures {' and '.join(signatures)})")
    return console.EXIT_OK


def export(bundle: Bundle, out: Path) -> list[str]:
    """Write the SavedModel and return its signatures; `BundleError` when `out` is in use."""
    import numpy as np
    import tensorflow as tf

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("a new or empty directory", f"{out}, which holds something", "choose another --out")
    module, signatures, compare = _module(bundle)
    with publish_directory(out) as directory:
        with os_errors(out):
            tf.saved_model.save(
                module, str(directory), {**signatures, "serving_default": next(iter(signatures.values()))}
            )
        if TOKENS in signatures:
            (directory / ASSETS).mkdir(exist_ok=True)
            shutil.copyfile(bundle.path / TOKENIZER, directory / ASSETS / TOKENIZER)
        loaded = tf.saved_model.load(str(directory)).signatures
        found, expected = compare(loaded)
        difference = float(np.abs(found - expected).max())
        if not difference <= 1e-5:
            raise BundleError(
                "the bundle's own embeddings from the SavedModel",
                f"a difference of {difference}",
                "please report this with the bundle's config",
            )
    return list(signatures)


def _module(bundle: Bundle) -> tuple[Any, dict[str, Any], Any]:
    """A tf.Module, its signatures by name, and a function that gives the embeddings of `SAMPLE` by loaded signatures
    and by the bundle's own tokeniser."""
    import numpy as np
    import tensorflow as tf

    from data.graph_text import graph_tokenizer, has_graph_form
    from dual_encoder.bundle_model import load_model

    tokenizer, model, size = bundle.tokenizer(), load_model(bundle), bundle.preprocessing.size
    takes_strings = tokenizer is None or has_graph_form(tokenizer.to_json())
    tokenize = graph_tokenizer(tokenizer.to_json(), tokenizer.max_tokens) if tokenizer and takes_strings else None

    def embed_texts(texts: Any) -> dict[str, Any]:
        if tokenize is None:
            return {"embeddings": model.embed_texts(texts)}
        ids, mask = tokenize(texts)
        return embed_tokens(ids, mask)

    def embed_tokens(ids: Any, mask: Any) -> dict[str, Any]:
        return {"embeddings": model.embed_texts({"ids": ids, "mask": mask})}

    def embed_images(pixels: Any) -> dict[str, Any]:
        return {"embeddings": model.embed_images(pixels)}

    ints = tf.TensorSpec((None, None), tf.int32)
    text_side = (
        (embed_texts, [tf.TensorSpec((None,), tf.string, "texts")]) if takes_strings else (embed_tokens, [ints, ints])
    )
    image_side = (embed_images, [tf.TensorSpec((None, size, size, 3), tf.float32, "pixels")])
    module = tf.Module(name="dual_encoder")
    module.model, module.table = model, getattr(tokenize, "table", None)
    signatures = {}
    for function, specs in (text_side, image_side):
        name = function.__name__
        signatures[name] = tf.function(function, input_signature=specs)
        setattr(module, name, signatures[name])

    def compare(loaded: Any) -> tuple[np.ndarray, np.ndarray]:
        texts = tf.constant(np.array(SAMPLE, object))
        if tokenizer is None:
            return loaded[TEXTS](texts=texts)["embeddings"].numpy(), np.asarray(model.embed_texts(texts))
        batch = tokenizer.encode(list(SAMPLE))
        tokens = {"ids": tf.constant(batch.ids), "mask": tf.constant(batch.mask)}
        found = loaded[TEXTS](texts=texts) if takes_strings else loaded[TOKENS](**tokens)
        return found["embeddings"].numpy(), np.asarray(model.embed_texts(tokens))

    return module, signatures, compare


if __name__ == "__main__":
    console.run(main)
