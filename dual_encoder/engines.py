"""What runs a tower: ONNX Runtime (fastest on a CPU, no TensorFlow needed) or Keras; knows no file of a bundle.

An engine maps a dictionary of named arrays to one array (B, D) float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.text import CaptionTokenizer, clean_caption

IMAGE_BATCH = 32
TEXT_BATCH = 64


class Engine(Protocol):
    """Implementers run one tower or backbone on a batch."""

    name: str

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Named inputs, batch first, to (B, D) float32."""


class OnnxEngine:
    """Runs an ONNX file on the CPU; safe to call from several threads."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between the parts of a run answer a third faster; they must not spin after it, when other
        # work (decoding, search) needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = [entry.name for entry in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Engine`."""
        if len(self.input_names) == 1:  # converters choose the name of a single input
            return self._session.run(None, {self.input_names[0]: next(iter(inputs.values()))})[0]
        return self._session.run(None, {name: inputs[name] for name in self.input_names})[0]


class KerasEngine:
    """Runs a Keras model, or any function of tensors, as one TensorFlow graph: for GPUs and unconvertible towers."""

    name = "keras"

    def __init__(self, function: Any) -> None:
        import tensorflow as tf

        self._function = tf.function(function, reduce_retracing=True)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Engine`; a single input is passed by itself, several as a dictionary."""
        value = next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)
        return np.asarray(self._function(value), np.float32)


def run_on_pixels(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """Run an image engine on pixels (B, S, S, 3) float32."""
    return engine.run({"pixels": pixels})


def run_on_texts(engine: Engine, tokenizer: CaptionTokenizer | None, texts: Sequence[str]) -> np.ndarray:
    """Run a text engine on strings, short ones together so that little is spent on padding; rows keep their order."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    results: list[np.ndarray] = []
    for start in range(0, len(order), TEXT_BATCH):
        batch = [texts[row] for row in order[start : start + TEXT_BATCH]]
        if tokenizer is None:
            results.append(engine.run({"texts": np.array([clean_caption(text) for text in batch], object)}))
        else:
            tokens = tokenizer.encode(batch)
            results.append(engine.run({"ids": tokens.ids, "mask": tokens.mask}))
    stacked = np.concatenate(results)
    unsorted = np.empty_like(stacked)
    unsorted[order] = stacked
    return unsorted
