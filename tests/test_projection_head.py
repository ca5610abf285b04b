"""Heads compute what their papers say, start where they promise to, and survive a round trip through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from data.errors import BundleError
from dual_encoder.projection_head import (
    AnchoredHead,
    IdentityHead,
    LinearHead,
    ResidualHead,
    anchor,
    head_config,
    head_from_config,
)

F, C, D = 12, 30, 8


def classifier(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    words = generator.normal(size=(C, D))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    kernel, bias = generator.normal(size=(F, C)), generator.normal(size=C)
    return kernel.astype(np.float32), bias.astype(np.float32), words.astype(np.float32)


def features(rows: int = 5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, F)).astype(np.float32)


def conse(x: np.ndarray, top: int, temperature: float) -> np.ndarray:
    """Norouzi et al. 2014, equation 3, image by image: the top classes' words, weighted by renormalised chances."""
    kernel, bias, words = (array.astype(np.float64) for array in classifier())
    rows = []
    for row in x.astype(np.float64):
        logits = (row @ kernel + bias) / temperature
        best = np.argsort(-logits)[:top]
        weights = np.exp(logits[best] - logits[best].max())
        mean = (weights / weights.sum()) @ words[best]
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


def anchored(**settings) -> object:
    model = AnchoredHead(embedding_dim=D, classes=C, **settings).build(F)
    anchor(model, *classifier())
    return model


@pytest.mark.parametrize(("top", "temperature"), [(1, 1.0), (4, 1.0), (4, 0.3), (30, 2.0), (1000, 1.0)])
def test_an_untrained_anchored_head_is_conse(top: int, temperature: float) -> None:
    x = features()
    found = np.asarray(anchored(top=top, temperature=temperature)(x))
    np.testing.assert_allclose(found, conse(x, min(top, C), temperature), atol=1e-5)


def test_an_untrained_anchored_head_has_nothing_to_train() -> None:
    assert anchored().trainable_weights == []


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_trainable_anchored_head_starts_exactly_as_the_bridge(dropout: float) -> None:
    x = features()
    head = anchored(top=4, trainable=True, dropout=dropout)
    np.testing.assert_array_equal(np.asarray(head(x, training=False)), np.asarray(anchored(top=4)(x)))
    # Only the map is trained: the classifier and the words stay.
    assert [tuple(weight.shape) for weight in head.trainable_weights] == [(D + F, D)]


def test_a_trained_anchored_head_hears_the_features_too() -> None:
    head = anchored(top=1, trainable=True)
    (kernel,) = (weight for weight in head.trainable_weights)
    kernel.assign(np.eye(D + F, D, k=-D))  # look at the features alone
    x = features()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(head(x)), unit[:, :D], atol=1e-6)


def test_a_linear_head_that_starts_as_identity_passes_the_first_features() -> None:
    x = features()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = np.asarray(LinearHead(embedding_dim=D, start_as_identity=True, dropout=0.5).build(F)(x, training=False))
    np.testing.assert_allclose(found, unit[:, :D], atol=1e-6)
    wide = np.asarray(LinearHead(embedding_dim=F + 3, start_as_identity=True).build(F)(x))
    np.testing.assert_allclose(wide, np.pad(unit, ((0, 0), (0, 3))), atol=1e-6)


def test_a_linear_head_starts_elsewhere_unless_asked() -> None:
    x = features()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    head = LinearHead(embedding_dim=D).build(F)
    (kernel,) = head.trainable_weights
    np.testing.assert_allclose(np.asarray(head(x)), unit @ np.asarray(kernel), atol=1e-6)
    assert np.abs(np.asarray(kernel) - np.eye(F, D)).max() > 0.1


def test_the_residual_head_is_the_keras_example_s_projection() -> None:
    """`project_embeddings` of keras.io/examples/vision/nl_image_search, in NumPy."""
    x = features()
    head = ResidualHead(embedding_dim=D, layers=2, dropout=0.1).build(F)
    generator = np.random.default_rng(3)
    head.set_weights([generator.normal(size=weight.shape) for weight in head.get_weights()])
    weights = {f"{layer.name}.{weight.name}": np.asarray(weight) for layer in head.layers for weight in layer.weights}

    def dense(name: str, values: np.ndarray) -> np.ndarray:
        return values @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]

    projected = dense("projection", x)
    for number in range(2):
        gelu = projected * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(projected)
        added = projected + dense(f"dense_{number}", gelu)
        centred = added - added.mean(axis=1, keepdims=True)
        normalised = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-3)
        projected = normalised * weights[f"norm_{number}.gamma"] + weights[f"norm_{number}.beta"]
    np.testing.assert_allclose(np.asarray(head(x, training=False)), projected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "head", [LinearHead(D, dropout=0.5), ResidualHead(D, dropout=0.5), AnchoredHead(D, trainable=True, dropout=0.5)]
)
def test_dropout_acts_in_training_only(head) -> None:
    x, model = features(), head.build(F)
    if isinstance(head, AnchoredHead):
        model.get_layer("projection").set_weights([np.ones((D + F, D))])
    assert np.abs(np.asarray(model(x, training=True)) - np.asarray(model(x, training=True))).max() > 1e-3
    np.testing.assert_array_equal(np.asarray(model(x, training=False)), np.asarray(model(x, training=False)))


@pytest.mark.parametrize(
    "head",
    [
        IdentityHead(),
        LinearHead(17, start_as_identity=True, dropout=0.25),
        ResidualHead(19, layers=3, dropout=0.0),
        AnchoredHead(23, top=7, temperature=0.5, trainable=True, dropout=0.1, classes=21),
    ],
)
def test_settings_survive_json(head) -> None:
    assert head_from_config(json.loads(json.dumps(head_config(head)))) == head


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"kind": "quadratic", "embedding_dim": 8}, "quadratic"),
        ({"embedding_dim": 8}, "None"),
        ({"kind": "linear", "embeding_dim": 8}, "embeding_dim"),
    ],
)
def test_unknown_kinds_and_settings_are_refused_by_name(config: dict, named: str) -> None:
    with pytest.raises(BundleError) as refused:
        head_from_config(config)
    assert named in refused.value.received


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{name}", "{colour}"), ("{name",), ("{}",)])
def test_templates_that_name_no_class_are_refused(templates: tuple[str, ...]) -> None:
    with pytest.raises(BundleError, match="templates with"):
        AnchoredHead(templates=templates)


@pytest.mark.parametrize("settings", [{"top": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_a_bridge_that_keeps_nothing_is_refused(settings: dict) -> None:
    with pytest.raises(BundleError, match="positive temperature"):
        AnchoredHead(**settings)
