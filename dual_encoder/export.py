"""Entry point: writes a bundle as a TensorFlow SavedModel that takes strings, for TensorFlow Serving.

python -m dual_encoder.export --bundle build/model --out build/saved_model/1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.durable import publish_directory
from data.errors import BundleError
from data.quiet_tensorflow import load_tensorflow, os_errors

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle

# Strings that the exported graph must tokenise as the bundle does, checked before anything is published.
SAMPLE = ("a red bicycle", "  Two DOGS,  play… ", "Ærøskøbing café", "東京タワー at night", "naïve Ångström 🚲", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.export",
        description="Write a bundle as a TensorFlow SavedModel. Its signature embed_texts takes strings; embed_images "
        "takes pixels made by data.images.load_pixels, so that images keep one way of being prepared.",
    )
    parser.add_argument("--bundle", required=True, help='a trained model, or "default"')
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new directory, such as models/search/1")
    options = parser.parse_args(argv)
    load_tensorflow()
    from dual_encoder.runtime import open_named_bundle

    export(open_named_bundle(options.bundle), options.out)
    console.say(f"written: {options.out} (signatures embed_texts and embed_images)")
    return console.EXIT_OK


def export(bundle: Bundle, out: Path) -> None:
    """Write the SavedModel; `BundleError` when `out` is in use or the text tower cannot live in a graph of strings."""
    import numpy as np
    import tensorflow as tf

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("a new or empty directory", f"{out}, which holds something", "choose another --out")
    module = _module(bundle)
    texts = np.array(SAMPLE, object)
    expected = module.expected(list(SAMPLE))
    with publish_directory(out) as directory:
        signatures = {"embed_texts": module.embed_texts, "embed_images": module.embed_images}
        with os_errors(out):
            tf.saved_model.save(module, str(directory), {**signatures, "serving_default": module.embed_texts})
        loaded = tf.saved_model.load(str(directory)).signatures["embed_texts"]
        difference = float(np.abs(loaded(texts=tf.constant(texts))["embeddings"].numpy() - expected).max())
        if not difference <= 1e-5:
            raise BundleError(
                "the bundle's own embeddings from the SavedModel",
                f"a difference of {difference}",
                "please report this with the bundle's config",
            )


def _module(bundle: Bundle) -> Any:
    """A tf.Module with the two signatures, and `expected`: the embeddings by the bundle's own tokeniser."""
    import numpy as np
    import tensorflow as tf

    from data.graph_text import graph_tokenizer
    from dual_encoder.bundle_model import load_model

    tokenizer = bundle.tokenizer()
    model = load_model(bundle)
    size = bundle.preprocessing.size
    tokenize = None if tokenizer is None else graph_tokenizer(tokenizer.to_json(), tokenizer.max_tokens)

    class Export(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="dual_encoder")
            self.model, self.table = model, getattr(tokenize, "table", None)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "texts")])
        def embed_texts(self, texts: Any) -> dict[str, Any]:
            if tokenize is None:
                return {"embeddings": model.embed_texts(texts)}
            ids, mask = tokenize(texts)
            return {"embeddings": model.embed_texts({"ids": ids, "mask": mask})}

        @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32, "pixels")])
        def embed_images(self, pixels: Any) -> dict[str, Any]:
            return {"embeddings": model.embed_images(pixels)}

        def expected(self, texts: list[str]) -> np.ndarray:
            if tokenizer is None:
                return np.asarray(model.embed_texts(tf.constant(texts)))
            batch = tokenizer.encode(texts)
            return np.asarray(model.embed_texts({"ids": batch.ids, "mask": batch.mask}))

    return Export()


if __name__ == "__main__":
    console.run(main)
