"""Writes a bundle's towers as a TensorFlow SavedModel, which takes strings where it can; checks nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dual_encoder.bundle import TOKENIZER

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle
    from dual_encoder.model import DualEncoder

TEXTS, TOKENS, IMAGES = "embed_texts", "embed_tokens", "embed_images"
ASSETS = "assets.extra"  # TensorFlow's own name for what it does not read


class SavedModel:
    """A SavedModel in a directory, as another program would run it."""

    def __init__(self, bundle: Bundle, directory: Path) -> None:
        import tensorflow as tf

        self._loaded = tf.saved_model.load(str(directory)).signatures
        self._tokenizer = bundle.tokenizer()
        self.parts = [name for name in self._loaded if name != "serving_default"]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Strings to embeddings (B, D) float32."""
        import tensorflow as tf

        if TEXTS in self._loaded:
            return self._loaded[TEXTS](texts=tf.constant(np.array(texts, object)))["embeddings"].numpy()
        assert self._tokenizer is not None
        batch = self._tokenizer.encode(texts)
        return self._loaded[TOKENS](ids=tf.constant(batch.ids), mask=tf.constant(batch.mask))["embeddings"].numpy()

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, S, S, 3) float32 to embeddings (B, D) float32."""
        import tensorflow as tf

        return self._loaded[IMAGES](pixels=tf.constant(pixels))["embeddings"].numpy()


def write_saved_model(bundle: Bundle, model: DualEncoder, directory: Path) -> SavedModel:
    """Write `model`, the bundle's own in Keras, to an empty directory; the text signature also is `serving_default`.

    A tokeniser that no TensorFlow graph reproduces (CLIP's, SigLIP's) goes along as assets.extra/tokenizer.json, and
    `embed_tokens`, which takes its ids and mask, is in the place of `embed_texts`.
    """
    import tensorflow as tf

    module, signatures = _module(bundle, model)
    served = {**signatures, "serving_default": next(iter(signatures.values()))}
    tf.saved_model.save(module, str(directory), served)
    if TOKENS in signatures:
        (directory / ASSETS).mkdir(exist_ok=True)
        shutil.copyfile(bundle.path / TOKENIZER, directory / ASSETS / TOKENIZER)
    return SavedModel(bundle, directory)


def _module(bundle: Bundle, model: DualEncoder) -> tuple[Any, dict[str, Any]]:
    """A tf.Module and its signatures by name."""
    import tensorflow as tf

    from data.graph_text import graph_clean, graph_tokenizer, has_graph_form

    tokenizer, size = bundle.tokenizer(), bundle.preprocessing.size
    takes_strings = tokenizer is None or has_graph_form(tokenizer.to_json())
    tokenize = graph_tokenizer(tokenizer.to_json(), tokenizer.max_tokens) if tokenizer and takes_strings else None

    def embed_texts(texts: Any) -> dict[str, Any]:
        if tokenize is None:
            return {"embeddings": model.embed_texts(graph_clean(texts))}
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
    return module, signatures
