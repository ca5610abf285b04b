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
from dual_encoder.engines import (
    IMAGE_BATCH,
    TEXT_BATCH,
    Engine,
    OnnxEngine,
    gpu_is_present,
    run_on_pixels,
    run_on_texts,
)

EngineName = Literal["auto", "onnxruntime", "keras"]


class Runtime:
    """A loaded model. Safe to call from several threads."""

    def __init__(self, bundle: Bundle, image_engine: Engine, text_engine: Engine) -> None:
        self.bundle = bundle
        self.image_engine, self.text_engine = image_engine, text_engine
        self.fingerprint, self.name = bundle.fingerprint, bundle.name
        self.embedding_dim, self.preprocessing = bundle.embedding_dim, bundle.preprocessing
        self.tokenizer, self.hubness, self.calibration = bundle.tokenizer(), bundle.hubness, bundle.calibration
        self.runs_at_once = max(image_engine.runs_at_once, text_engine.runs_at_once)

    @classmethod
    def load(
        cls, bundle: str | Path, engine: EngineName = "auto", threads: int | None = None, *, shared: bool = False
    ) -> Runtime:
        """Open a bundle directory, or the built-in untrained model named "default", and start its engines.

        "auto" runs Keras on a GPU where TensorFlow sees one, in 16 bits where `dual_encoder.half_precision` admitted
        them; elsewhere a tower's published ONNX graph, in int8 where `dual_encoder.quantize` admitted it, and Keras for
        a tower without. "onnxruntime" is float32. `threads` are ONNX Runtime's, as many as there are cores for this
        process if it is not given; with `shared`, callers in `runs_at_once` threads do more together than one after the
        other (see `OnnxEngine`). `BundleError` for a bad bundle, and for "onnxruntime" with a bundle that lacks such
        a graph.
        """
        opened = open_named_bundle(bundle)
        towers = ("image_tower", "text_tower")
        files = [opened.engine_file(tower, quantised=engine == "auto") for tower in towers]
        if engine == "onnxruntime" and not all(files):
            raise BundleError(
                "a bundle with ONNX graphs of both towers", f"{opened.path} without", 'use the engine "auto"'
            )
        on_gpu = engine == "auto" and gpu_is_present()
        kept = [None if engine == "keras" or on_gpu else file for file in files]
        precision = opened.half_precision if on_gpu else "float32"
        spare: Sequence[Engine] = () if all(kept) else _keras_engines(opened, precision)
        image, text = (
            OnnxEngine(file, threads, shared=shared) if file else spare[tower] for tower, file in enumerate(kept)
        )
        return cls(opened, image, text)

    def embed_texts(self, texts: Sequence[str], shown: str | None = None) -> np.ndarray:
        """Any number of strings to embeddings (B, D) float32; long texts are cut to the tower's number of tokens.

        With `shown`, behind a progress bar of that name.
        """
        if not texts:
            return np.empty((0, self.embedding_dim), np.float32)
        return run_on_texts(self.text_engine, self.tokenizer, texts, shown)

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

    def warm_up(self, text_batch: int = TEXT_BATCH, image_batch: int = IMAGE_BATCH) -> None:
        """Run both towers on one row and on as many as will come at once, and the text tower on its longest text.

        What an engine traces, compiles or allocates once is done then, and not in a user's first queries.
        """
        size = self.preprocessing.size
        longest = "warm up " * (self.tokenizer.max_tokens if self.tokenizer else 1)
        for texts in (["warm up"], [longest], ["warm up the text tower with a query"] * text_batch):
            self.embed_texts(texts)
        for rows in (1, image_batch):
            self.embed_pixels(np.zeros((rows, size, size, 3), np.float32))


def _keras_engines(bundle: Bundle, precision: str) -> tuple[Engine, Engine]:
    load_tensorflow()
    from dual_encoder.bundle_model import keras_engines

    return keras_engines(bundle, precision)


def open_named_bundle(bundle: str | Path) -> Bundle:
    """The bundle in a directory, or the built-in untrained one named "default"."""
    if str(bundle) == "default":
        from dual_encoder.default_bundle import default_bundle

        return default_bundle()
    return open_bundle(bundle)
