"""Features of frozen backbones, computed once by the fastest engine and kept on disk; knows no head and no loss.

Every row is stored under a digest of all it depends on: backbone, weights, preprocessing or tokeniser, and the content
of its image or caption. So a killed run repeats at most one block, a data set that has grown or changed computes only
what is new, and nothing stale is ever read. Rows are read from their file when a batch needs them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.console import progress, say
from data.durable import cache_directory, digest_bytes, digest_json, write_atomic
from data.images import ImagePreprocessing
from data.loading import decoded_batches, with_digests
from data.pairs import ImageTextPair
from data.text import CaptionTokenizer, clean_caption
from dual_encoder.engines import (
    IMAGE_BATCH,
    Engine,
    KerasEngine,
    OnnxEngine,
    gpu_is_present,
    run_on_pixels,
    run_on_texts,
)
from dual_encoder.feature_store import Digests, FeatureStore, MappedRows, digests_of
from dual_encoder.onnx_export import GRAPH_REVISION
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

    The conversion is cached under the backbone's key and the converter's revision, which changes speed and no feature.
    """
    key = digest_json({"backbone": config, "weights": digest_weights(model.weights), "conversion": 1})
    if gpu_is_present():
        return FrozenBackbone(key, KerasEngine(lambda inputs: model(inputs, training=False)), None)
    path = cache_directory("onnx") / f"{key}-{GRAPH_REVISION}.onnx"
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


def _converted(model: Any) -> bytes:
    """An ONNX file of `model` that ONNX Runtime has agreed to load."""
    from dual_encoder.onnx_export import export_onnx

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "backbone.onnx"
        export_onnx(model, path)
        OnnxEngine(path)
        return path.read_bytes()


def image_features(
    backbone: FrozenBackbone,
    preprocessing: ImagePreprocessing,
    pairs: Sequence[ImageTextPair],
    dtype: type[np.floating] = np.float32,
) -> tuple[MappedRows, list[int]]:
    """Features (N, …) of every pair's image, and the positions of images that do not decode (rows of zeros)."""

    def compute(block: Sequence[ImageTextPair]) -> tuple[np.ndarray | None, np.ndarray]:
        rows, empty = None, np.ones(len(block), bool)
        for batch in decoded_batches((pair.image for pair in block), preprocessing, IMAGE_BATCH):
            if batch.positions:
                features = run_on_pixels(backbone.engine, batch.pixels)
                rows = np.zeros((len(block), *features.shape[1:]), dtype) if rows is None else rows
                rows[batch.positions] = features
                empty[batch.positions] = False
        return rows, empty

    digests = digests_of([pair.digest or "" for pair in with_digests(pairs)])
    prefix = {"features_of": backbone.key, "preprocessing": preprocessing.to_config()}
    prefix |= {} if dtype is np.float32 else {"dtype": np.dtype(dtype).name}
    rows = _stored(pairs, digests, prefix, compute, "image features")
    return rows, np.flatnonzero(rows.rows < 0).tolist()


def caption_features(
    backbone: FrozenBackbone, tokenizer: CaptionTokenizer | None, captions: Sequence[str]
) -> MappedRows:
    """Features (C, F) float32 of captions; equal captions are computed once."""
    cleaned = [clean_caption(caption) for caption in captions]
    # In the order of their lengths, so that a block has little padding.
    distinct = sorted(set(cleaned), key=lambda caption: (len(caption), caption))
    prefix = {
        "features_of": backbone.key,
        "tokenizer": tokenizer and digest_json([tokenizer.to_json(), tokenizer.max_tokens]),
    }

    def compute(block: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return run_on_texts(backbone.engine, tokenizer, block), np.zeros(len(block), bool)

    digests = digests_of([digest_bytes(caption.encode("utf-8", "surrogatepass")) for caption in distinct])
    rows = _stored(distinct, digests, prefix, compute, "caption features")
    position = {caption: row for row, caption in enumerate(distinct)}
    return rows.only([position[caption] for caption in cleaned])


def _stored(
    items: Sequence[T],
    digests: Digests,
    prefix: dict[str, Any],
    compute: Callable[[Sequence[T]], tuple[np.ndarray | None, np.ndarray]],
    description: str,
) -> MappedRows:
    """The rows of all items; those that no run has stored yet are computed a block at a time, each kept at once."""
    store = FeatureStore(cache_directory("features") / digest_json(prefix))
    missing = store.missing(digests)
    blocks = [missing[start : start + _BLOCK] for start in range(0, len(missing), _BLOCK)]
    shown = f"{description}, blocks of {_BLOCK}"
    for block in progress(blocks, shown) if blocks else ():
        store.add(digests[block], *compute([items[place] for place in block]))
    return store.rows(digests)
