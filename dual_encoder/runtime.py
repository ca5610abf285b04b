"""Runs a bundle: strings or image bytes in, L2-normalised float32 embeddings out; knows no training and no index.

Example: `Runtime.load("default").embed_texts(["a red bicycle"])` gives an array of shape (1, D).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data.errors import BundleError
from data.images import load_resized, normalise_batch
from data.loading import map_ordered
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.bundle import Bundle, open_bundle
from dual_encoder.engines import IMAGE_BATCH, Engine, OnnxEngine, run_on_pixels, run_on_texts

EngineName = Literal["auto", "onnxruntime", "keras"]


class Runtime:
    """A loaded model. Safe to call from several threads."""

    def __init__(self, bundle: Bundle, image_engine: Engine, text_engine: Engine) -> None:
        self.bundle = bundle
        self.image_engine, self.text_engine = image_engine, text_engine
        self.fingerprint, self.name = bundle.fingerprint, bundle.name
        self.embedding_dim, self.preprocessing = bundle.embedding_dim, bundle.preprocessing
        self.tokenizer, self.hubness = bundle.tokenizer(), bundle.hubness

    @classmethod
    def load(cls, bundle: str | Path, engine: EngineName = "auto", threads: int | None = None) -> Runtime:
        """Open a bundle directory, or the built-in untrained model named "default", and start its engines.

        "auto" runs a published ONNX graph where there is one, in int8 where `dual_encoder.quantize` admitted it, and
        Keras otherwise; "onnxruntime" is float32. `BundleError` for a bad bundle, and for "onnxruntime" with a bundle
        that has no such graph.
        """
        opened = open_named_bundle(bundle)
        towers = ("image_tower", "text_tower")
        files = [opened.engine_file(tower, quantised=engine == "auto") for tower in towers]
        if engine != "keras" and all(files):
            image, text = (OnnxEngine(file, threads) for file in files if file)
            return cls(opened, image, text)
        if engine == "onnxruntime":
            raise BundleError("a bundle with ONNX graphs", f"{opened.path} without them", 'use the engine "auto"')
        load_tensorflow()
        from dual_encoder.bundle_model import keras_engines

        return cls(opened, *keras_engines(opened))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Strings to embeddings (B, D) float32; long texts are cut to the tower's number of tokens."""
        if not texts:
            return np.empty((0, self.embedding_dim), np.float32)
        return run_on_texts(self.text_engine, self.tokenizer, texts)

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Encoded images to embeddings (B, D) float32; `ImageError` for the first that cannot be decoded."""
        if not images:
            return np.empty((0, self.embedding_dim), np.float32)

        def load(data: bytes) -> np.ndarray:
            return load_resized(data, self.preprocessing)

        results: list[np.ndarray] = []
        decoded = map_ordered(load, images, ahead=2 * IMAGE_BATCH) if len(images) > 1 else map(load, images)
        while batch := list(itertools.islice(decoded, IMAGE_BATCH)):
            results.append(self.embed_pixels(normalise_batch(batch, self.preprocessing)))
        return np.concatenate(results)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, S, S, 3) float32 from `data.images.load_pixels` to embeddings (B, D) float32."""
        return run_on_pixels(self.image_engine, pixels)

    def warm_up(self) -> None:
        """Run both towers once, so that the first query does not pay for lazy initialisation."""
        size = self.preprocessing.size
        self.embed_texts(["warm up"])
        self.embed_pixels(np.zeros((1, size, size, 3), np.float32))


def open_named_bundle(bundle: str | Path) -> Bundle:
    """The bundle in a directory, or the built-in untrained one named "default"."""
    if str(bundle) == "default":
        from dual_encoder.default_bundle import default_bundle

        return default_bundle()
    return open_bundle(bundle)
