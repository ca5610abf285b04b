"""The bridge's settings are chosen by rank on captioned images, and a run takes them into its model and its record."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from chain import drawings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_projection_head import C, D, classifier, conse, features

from data.errors import TrainingError
from dual_encoder.bridge_choice import TEMPERATURES, TOPS, bridge, choose_bridge
from dual_encoder.engines import KerasEngine
from dual_encoder.projection_head import AnchoredHead, LinearHead
from dual_encoder.recipe import load_recipe
from dual_encoder.training_run import TrainingRun


def logits() -> np.ndarray:
    kernel, bias, _ = classifier()
    return features(40) @ kernel + bias


def texts(temperature: float, top: int, noise: float, seed: int) -> np.ndarray:
    """Captions that lie near what a bridge of these settings says of their image."""
    found = conse(features(40), top, temperature)
    found += noise * np.random.default_rng(seed).normal(size=found.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("temperature", "top"), [(0.5, 1), (0.5, 5), (2.0, 5), (2.0, C)])
def test_many_settings_at_once_are_the_head_s_own_arithmetic(temperature: float, top: int) -> None:
    np.testing.assert_allclose(
        bridge(logits(), classifier()[2], temperature, top), conse(features(40), top, temperature), atol=1e-5
    )


@settings(max_examples=25)  # each ranks by every setting
@given(st.sampled_from(TEMPERATURES), st.sampled_from(TOPS), st.floats(0, 0.5), st.integers(0, 100))
def test_what_is_chosen_ranks_no_worse_than_any_other_setting(
    temperature: float, top: int, noise: float, seed: int
) -> None:
    rows = np.arange(40)
    captions = texts(temperature, top, noise, seed)

    def reciprocal(temperature: float, top: int) -> float:
        scores = captions @ conse(features(40), top, temperature).T
        right = np.diag(scores)
        ranks = [(scores >= right[:, None] - 1e-6).sum(1), (scores >= right - 1e-6).sum(0)]
        return float(np.mean([1 / ranks[0], 1 / ranks[1]]))

    head = AnchoredHead(D, top=7, temperature=1.0, classes=C)
    found = choose_bridge(head, logits(), classifier()[2], captions, rows)
    best = max(reciprocal(t, k) for t, k in [(1.0, 7), *itertools.product(TEMPERATURES, TOPS)])
    assert reciprocal(found.temperature, found.top) == pytest.approx(best, abs=0.02)
    assert dataclasses.replace(found, temperature=1.0, top=7) == head


def test_captions_that_a_sharp_bridge_explains_choose_a_sharp_bridge() -> None:
    found = choose_bridge(
        AnchoredHead(D, top=C, temperature=4.0, classes=C), logits(), classifier()[2], texts(0.5, 10, 0.1, 0), range(40)
    )
    assert found.temperature < 2


def test_settings_that_nothing_beats_stay() -> None:
    head = AnchoredHead(D, top=C, temperature=2.5, classes=C)
    one_image = logits()[:1]
    assert choose_bridge(head, one_image, classifier()[2], texts(2.0, C, 0, 0)[:1], [0]) == head


@pytest.mark.slow
def test_a_run_takes_the_chosen_bridge_into_its_model_and_its_record() -> None:
    openstax, pairs = load_recipe("openstax"), list(drawings())[:40]
    head = AnchoredHead(top=1, temperature=0.01, trainable=True)  # the best class alone
    model = dataclasses.replace(openstax.model, image_head=head)
    plain = dataclasses.replace(openstax, model=model, mirrored=False, class_prototypes=False)
    run = TrainingRun(dataclasses.replace(plain, choose_bridge=True), pairs, pairs)
    chosen = run.recipe.model.image_head
    assert isinstance(chosen, AnchoredHead)
    assert (chosen.temperature, chosen.top) != (head.temperature, head.top)
    assert run.recipe.model == run.model.config
    images = run.validation.images
    kernel, bias, words = (np.asarray(weight) for weight in run.model.image_head.get_layer("bridge").weights)
    expected = bridge(images @ kernel + bias, words, chosen.temperature, chosen.top)
    found = KerasEngine(lambda x: run.model.image_head(x, training=False)).run({"features": images})
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_without_a_bridge_there_is_nothing_to_choose() -> None:
    openstax, pairs = load_recipe("openstax"), list(drawings())[:4]
    model = dataclasses.replace(openstax.model, image_head=LinearHead())
    with pytest.raises(TrainingError, match="a linear head"):
        TrainingRun(dataclasses.replace(openstax, model=model, choose_bridge=True), pairs, pairs)
