"""Features of frozen backbones, computed once by the fastest engine and kept on disk; knows no head and no loss.

A block of rows is stored under a digest of everything it depends on: backbone, weights, preprocessing or tokeniser, and
the content of its images or captions. So a killed run repeats at most one block, and nothing stale is ever read.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.console import progress, say
from data.durable import cache_directory, digest_json, write_atomic
from data.images import ImagePreprocessing
from data.loading import decoded_batches, with_digests
from data.pairs import ImageTextPair
from data.text import CaptionTokenizer, clean_caption
from dual_encoder.engines import IMAGE_BATCH, Engine, KerasEngine, OnnxEngine, run_on_pixels, run_on_texts
from dual_encoder.weights import digest_weights

T = TypeVar("T")
_BLOCK = 512


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone that will not change: its engine, and the key that names its weights and settings."""

    key: str
    engine: Engine
    onnx: Path | None  # the converted graph, when there is one


def freeze(model: Any, config: dict[str, Any]) -> FrozenBackbone:
    """The fastest engine for a built backbone: TensorFlow on a GPU, else ONNX Runtime where the graph converts.

    The conversion is cached under the backbone's key.
    """
    key = digest_json({"backbone": config, "weights": digest_weights(model.weights), "conversion": 1})
    if gpu_is_present():
        return FrozenBackbone(key, KerasEngine(lambda inputs: model(inputs, training=False)), None)
    path = cache_directory("onnx") / f"{key}.onnx"
    if path.exists():
        try:
            return FrozenBackbone(key, OnnxEngine(path), path)
        except Exception:  # ONNX Runtime's errors have no common base
            say(f"a damaged conversion of {model.name} is made again: {path.name}")
    try:
        write_atomic(path, _converted(model))
    except OSError:  # a full disk says nothing of the graph
        raise
    except Exception as error:  # any graph that the converter or ONNX Runtime cannot express
        say(f"{model.name} cannot be converted to ONNX ({error}); it runs in TensorFlow instead")
        return FrozenBackbone(key, KerasEngine(lambda inputs: model(inputs, training=False)), None)
    return FrozenBackbone(key, OnnxEngine(path), path)


def gpu_is_present() -> bool:
    """Whether TensorFlow sees a GPU; the caller has imported it anyway."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _converted(model: Any) -> bytes:
    """An ONNX file of `model` that ONNX Runtime has agreed to load."""
    from dual_encoder.onnx_export import export_onnx

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "backbone.onnx"
        export_onnx(model, path)
        OnnxEngine(path)
        return path.read_bytes()


def image_features(
    backbone: FrozenBackbone, preprocessing: ImagePreprocessing, pairs: Sequence[ImageTextPair]
) -> tuple[np.ndarray, list[int]]:
    """Features (N, F) float32 of every pair's image, and the positions of images that do not decode (rows of zeros)."""

    def compute(block: Sequence[ImageTextPair]) -> np.ndarray:
        rows: np.ndarray | None = None
        for batch in decoded_batches((pair.image for pair in block), preprocessing, IMAGE_BATCH):
            if batch.positions:
                features = run_on_pixels(backbone.engine, batch.pixels)
                rows = np.zeros((len(block), features.shape[1]), np.float32) if rows is None else rows
                rows[batch.positions] = features
        return np.zeros((len(block), 0), np.float32) if rows is None else rows

    digests = [pair.digest or "" for pair in with_digests(pairs)]
    prefix = {"features_of": backbone.key, "preprocessing": preprocessing.to_config()}
    rows = _in_blocks(pairs, digests, prefix, compute, f"image features, blocks of {_BLOCK}")
    bad = [position for position, row in enumerate(rows) if not row.any()]
    return rows, bad


def caption_features(
    backbone: FrozenBackbone, tokenizer: CaptionTokenizer | None, captions: Sequence[str]
) -> np.ndarray:
    """Features (C, F) float32 of captions; equal captions are computed once."""
    cleaned = [clean_caption(caption) for caption in captions]
    distinct = sorted(set(cleaned), key=lambda caption: (len(caption), caption))
    prefix = {
        "features_of": backbone.key,
        "tokenizer": tokenizer and digest_json([tokenizer.to_json(), tokenizer.max_tokens]),
    }
    rows = _in_blocks(
        distinct,
        distinct,
        prefix,
        lambda block: run_on_texts(backbone.engine, tokenizer, block),
        f"caption features, blocks of {_BLOCK}",
    )
    position = {caption: row for row, caption in enumerate(distinct)}
    return rows[[position[caption] for caption in cleaned]]


def _in_blocks(
    items: Sequence[T],
    digests: Sequence[str],
    prefix: dict[str, Any],
    compute: Callable[[Sequence[T]], np.ndarray],
    description: str,
) -> np.ndarray:
    directory = cache_directory("features")
    starts = range(0, len(items), _BLOCK)

    def block(start: int) -> np.ndarray:
        key = digest_json({**prefix, "content": list(digests[start : start + _BLOCK])})
        path = directory / key[:2] / f"{key}.npy"
        if path.exists():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError):
                say(f"a damaged block of cached features is computed again: {path.name}")
        rows = compute(items[start : start + _BLOCK])
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        write_atomic(path, buffer.getvalue())
        return rows

    blocks: Iterator[np.ndarray] = (block(start) for start in starts)
    rows = list(progress(blocks, description, len(starts)))
    width = max(row_block.shape[1] for row_block in rows)
    # A block without one readable image has no width of its own.
    return np.concatenate([r if r.shape[1] else np.zeros((len(r), width), np.float32) for r in rows])
