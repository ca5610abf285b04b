"""Between a Keras model and a bundle: writes one from a model, rebuilds the model from one; knows no training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.console import say
from data.durable import publish_directory, write_json
from data.errors import BundleError
from data.text import CaptionTokenizer
from dual_encoder.bundle import (
    ASSETS,
    CARD,
    METRICS,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    check_replaceable,
    write_manifest,
)
from dual_encoder.calibration import Calibration
from dual_encoder.engines import Engine, KerasEngine, OnnxEngine
from dual_encoder.frozen_features import FrozenBackbone
from dual_encoder.hubness import HubnessCorrection
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.onnx_export import export_onnx, merge_onnx
from dual_encoder.towers import BUNDLED
from dual_encoder.weights import load_weights, named_weights, save_weights, weight_names

# How far an engine's embeddings may lie from Keras's own, as the largest difference of a component.
ENGINE_TOLERANCE = 1e-4


def save_bundle(
    out: Path,
    model: DualEncoder,
    tokenizer: CaptionTokenizer | None,
    *,
    name: str,
    card: str,
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    frozen: Mapping[str, FrozenBackbone] | None = None,
    calibration: Calibration | None = None,
    hubness: HubnessCorrection | None = None,
) -> Bundle:
    """Write `model` to the directory `out`, whole or not at all, replacing a bundle that is there.

    `frozen` gives the converted graphs of unchanged backbones ("image_backbone", "text_backbone"), to be used again.
    """
    check_replaceable(out)
    model = model.in_float32()
    with publish_directory(out) as directory:
        save_weights(directory / WEIGHTS, named_weights(model.parts()))
        if tokenizer is not None:
            (directory / TOKENIZER).write_text(tokenizer.to_json(), "utf-8")
        (directory / CARD).write_text(card, "utf-8")
        if metrics is not None:
            write_json(directory / METRICS, metrics)
        config = _write_assets(model, directory)
        _publish_engines(model, tokenizer, directory, frozen or {})
        bundle = write_manifest(
            directory,
            name=name,
            config=config,
            preprocessing=model.config.image_backbone.preprocessing,
            max_tokens=None if tokenizer is None else tokenizer.max_tokens,
            embedding_dim=model.embedding_dim,
            trained=trained,
            calibration=calibration,
            hubness=hubness,
        )
    return Bundle(out, bundle.manifest)


def load_model(bundle: Bundle, precision: str = "float32") -> DualEncoder:
    """The Keras model of an opened bundle: architecture from our code, weights from its safetensors file.

    With another Keras dtype policy than float32, all of it computes in that.
    """
    config = DualEncoderConfig.from_config(bundle.manifest["config"], bundle.path / ASSETS)
    if precision != "float32":  # a backbone that does not train would stay in float32
        config = dataclasses.replace(
            config, image_backbone=_training(config.image_backbone), text_backbone=_training(config.text_backbone)
        )
    has_bias = any(name.startswith("logit_bias/") for name in weight_names(bundle.path / WEIGHTS))
    model = DualEncoder(config, load_weights=False, precision=precision, initial_bias=0.0 if has_bias else None)
    load_weights(bundle.path / WEIGHTS, named_weights(model.parts()))
    return model


def _training(backbone: Any) -> Any:
    """The same backbone, told that it trains."""
    return dataclasses.replace(backbone, trainable=True)


def keras_engines(bundle: Bundle, precision: str = "float32") -> tuple[Engine, Engine]:
    """Image and text engine in TensorFlow, in a Keras dtype policy."""
    model = load_model(bundle, precision)
    return KerasEngine(model.embed_images), KerasEngine(model.embed_texts)


def _write_assets(model: DualEncoder, directory: Path) -> dict[str, Any]:
    """Take what backbones are made from along, and give the config that points to it."""
    config = model.config.to_config()
    for part in ("image_backbone", "text_backbone"):
        backbone = getattr(model.config, part)
        if hasattr(backbone, "write_assets"):
            config[part] |= dict.fromkeys(backbone.write_assets(directory / ASSETS / part), BUNDLED)
    return config


def _publish_engines(
    model: DualEncoder, tokenizer: CaptionTokenizer | None, directory: Path, frozen: Mapping[str, FrozenBackbone]
) -> None:
    """Convert each tower to ONNX and keep the file only if it gives Keras's embeddings on a sample."""

    def publish(side: str, difference: Callable[[Path], float]) -> None:
        path = directory / f"{side}_tower.onnx"
        backbone, head = getattr(model, f"{side}_backbone"), getattr(model, f"{side}_head")
        try:
            _convert_tower(backbone, head, frozen.get(f"{side}_backbone"), path)
            if not (found := difference(path)) <= ENGINE_TOLERANCE:
                raise BundleError(f"a difference of at most {ENGINE_TOLERANCE}", f"{found:.1e}", "Keras is used")
        except OSError:  # a full disk: the same command goes on from its checkpoint when there is room
            raise
        except Exception as error:  # whatever the converter cannot express must not cost the user the trained model
            say(f"no ONNX engine is published for the {side} tower, which runs in TensorFlow: {error}")
            path.unlink(missing_ok=True)

    publish("image", lambda path: _image_difference(model, path))
    if tokenizer is None:
        say("no ONNX engine is published for the text tower, which runs in TensorFlow: it takes strings")
    else:
        publish("text", lambda path: _text_difference(model, tokenizer, path))


def _convert_tower(backbone: Any, head: Any, frozen: FrozenBackbone | None, path: Path) -> None:
    backbone_file = frozen.onnx if frozen and frozen.onnx else path.with_suffix(".backbone")
    head_file = path.with_suffix(".head")
    try:
        if not (frozen and frozen.onnx):
            export_onnx(backbone, backbone_file)
        export_onnx(head, head_file, l2_normalised=True)
        merge_onnx(backbone_file, head_file, path)
    finally:
        head_file.unlink(missing_ok=True)
        if not (frozen and frozen.onnx):
            backbone_file.unlink(missing_ok=True)


def _image_difference(model: DualEncoder, path: Path) -> float:
    size = model.config.image_backbone.preprocessing.size
    pixels = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)
    return float(np.abs(OnnxEngine(path).run({"pixels": pixels}) - np.asarray(model.embed_images(pixels))).max())


def _text_difference(model: DualEncoder, tokenizer: CaptionTokenizer, path: Path) -> float:
    sample = ["a red bicycle", "Two dogs play in the snow near a wooden house.", "", "Straße, 東京 🚲 " * 30]
    tokens = tokenizer.encode(sample)
    inputs = {"ids": tokens.ids, "mask": tokens.mask}
    return float(np.abs(OnnxEngine(path).run(inputs) - np.asarray(model.embed_texts(inputs))).max())
