"""What every backbone must do, so that a new tower's test is a few lines; knows no particular tower."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from data.images import normalise
from data.text import CaptionTokenizer
from dual_encoder.towers import FAMILIES, backbone_config, backbone_from_config

CAPTIONS = ["a red bicycle", "two dogs play in the deep snow behind a house", "x"]


def check_image_backbone(backbone) -> np.ndarray:
    """Check an image backbone as it is configured and return the features of the sample it was given."""
    check_config(backbone)
    size = backbone.preprocessing.size
    values = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    pixels = normalise(values, backbone.preprocessing)
    model = backbone.build()
    assert len(model.inputs) == 1
    assert tuple(model.inputs[0].shape) == (None, size, size, 3)
    features = check_model(backbone, model, pixels)
    alone = np.asarray(model(pixels[1:2], training=False))
    np.testing.assert_allclose(alone, features[1:2], atol=1e-4, err_msg="a row depends on the rest of its batch")
    return features


def check_text_backbone(backbone) -> np.ndarray:
    """Check a text backbone as it is configured and return the features of `CAPTIONS`."""
    check_config(backbone)
    tokenizer = backbone.tokenizer(lambda: iter(CAPTIONS))
    model = backbone.build()
    if tokenizer is None:
        import tensorflow as tf

        return check_model(backbone, model, tf.constant(CAPTIONS))
    assert isinstance(tokenizer, CaptionTokenizer)
    tokens = tokenizer.encode(CAPTIONS)
    assert {tensor.name for tensor in model.inputs} == {"ids", "mask"}
    features = check_model(backbone, model, {"ids": tokens.ids, "mask": tokens.mask})
    padding = ((0, 0), (0, min(5, tokenizer.max_tokens - tokens.ids.shape[1])))
    longer = {
        "ids": np.pad(tokens.ids, padding, constant_values=tokenizer.pad_id),
        "mask": np.pad(tokens.mask, padding),
    }
    padded = np.asarray(model(longer, training=False))
    np.testing.assert_allclose(padded, features, atol=1e-5, err_msg="padding changes features")
    too_long = tokenizer.encode(["word " * 1000])
    assert too_long.ids.shape[1] <= tokenizer.max_tokens
    assert np.isfinite(np.asarray(model({"ids": too_long.ids, "mask": too_long.mask}, training=False))).all()
    return features


def check_config(backbone) -> None:
    """Settings survive JSON, and the family's entry in the table leads back to the class."""
    config = json.loads(json.dumps(backbone_config(backbone)))
    assert FAMILIES[config["family"]].endswith(f":{type(backbone).__name__}")
    expected = backbone.resolved() if hasattr(backbone, "resolved") else backbone
    assert backbone_from_config(config) == expected


def check_model(backbone, model, inputs) -> np.ndarray:
    """Features (B, F) float32, finite, the same twice, from variables that are trainable as configured."""
    features = np.asarray(model(inputs, training=False))
    assert features.dtype == np.float32
    assert features.ndim == 2
    assert features.shape[1] == model.outputs[0].shape[1]
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(np.asarray(model(inputs, training=False)), features)
    assert np.abs(features - features[0]).max() > 1e-5 * np.abs(features).max(), "different inputs give equal features"

    assert bool(model.trainable_weights) == backbone.trainable
    if not backbone.trainable:
        training = np.asarray(model(inputs, training=True))
        np.testing.assert_allclose(training, features, atol=1e-5, err_msg="a frozen backbone changes in training mode")
    opposite = dataclasses.replace(backbone, trainable=not backbone.trainable).build(load_weights=False)
    assert bool(opposite.trainable_weights) != backbone.trainable
    shapes = [tuple(weight.shape) for weight in model.weights]
    assert [tuple(weight.shape) for weight in opposite.weights] == shapes, "load_weights=False builds another network"
    return features
