"""Training from a bundle begins where the bundle is: the same embeddings, scale, bias and tokeniser."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from tiny_training import CONFIG, IMAGE, TEXT, settings, tokenizer

from data.errors import TrainingError
from dual_encoder.bundle_model import load_model, save_bundle
from dual_encoder.losses import InfoNCE, SigmoidLoss
from dual_encoder.model import DualEncoder
from dual_encoder.projection_head import IdentityHead, LinearHead
from dual_encoder.recipe import Recipe
from dual_encoder.starting_bundle import begin_from, default_recipe, start_from

PIXELS = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
TOKENS = tokenizer().encode(["red circle", "a large blue square"])
TOKENS = {"ids": TOKENS.ids, "mask": TOKENS.mask}


def bundle_of(directory, config, bias=None):
    keras.utils.set_random_seed(3)
    model = DualEncoder(config, initial_scale=7.0, initial_bias=bias)
    return save_bundle(directory, model, tokenizer(), name="start", card="", trained={})


@pytest.fixture(scope="module")
def projected(tmp_path_factory):
    """A bundle with projections, as CLIP's."""
    return bundle_of(tmp_path_factory.mktemp("start") / "projected", CONFIG)


@pytest.fixture(scope="module")
def unprojected(tmp_path_factory):
    """A bundle whose towers end with their embedding and that has a bias, as SigLIP's."""
    config = dataclasses.replace(CONFIG, image_head=IdentityHead(), text_head=IdentityHead())
    return bundle_of(tmp_path_factory.mktemp("start") / "unprojected", config, bias=-4.0)


def started(recipe):
    """The model as a run has it before its first step."""
    keras.utils.set_random_seed(99)
    model = DualEncoder(recipe.model, load_weights=False, initial_bias=recipe.objective.initial_bias)
    begin_from(recipe.start, model)
    return model


def check_equal(model, other):
    np.testing.assert_allclose(model.embed_images(PIXELS), other.embed_images(PIXELS), atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TOKENS), other.embed_texts(TOKENS), atol=1e-6)
    assert float(model.log_scale) == float(other.log_scale)


def test_the_heads_of_a_bundle_go_on_from_where_they_are(projected):
    recipe = default_recipe(projected)
    assert isinstance(recipe.objective, InfoNCE)
    assert (recipe.model.image_head, recipe.model.text_head) == (CONFIG.image_head, CONFIG.text_head)
    model = started(recipe)
    check_equal(model, load_model(projected))
    assert not model.image_backbone.trainable_weights
    assert model.image_head.trainable_weights


def test_towers_without_projections_get_ones_that_begin_as_the_identity(unprojected):
    recipe = default_recipe(unprojected)
    assert isinstance(recipe.objective, SigmoidLoss)
    assert recipe.model.image_head == recipe.model.text_head == LinearHead(16, start_as_identity=True)
    model = started(recipe)
    check_equal(model, load_model(unprojected))
    assert float(model.logit_bias) == -4.0


def test_a_recipe_keeps_its_own_settings_and_says_which_towers_train(projected):
    towers = dataclasses.replace(CONFIG, image_backbone=dataclasses.replace(IMAGE, width=99, trainable=True))
    own = Recipe("mine", towers, SigmoidLoss(), settings(), class_prototypes=True, group_positives=True)
    recipe = start_from(projected, own)
    assert recipe.model == dataclasses.replace(CONFIG, image_backbone=dataclasses.replace(IMAGE, trainable=True))
    assert (recipe.name, recipe.objective, recipe.trainer) == (own.name, own.objective, own.trainer)
    assert recipe.group_positives
    assert not recipe.class_prototypes  # of a classifier that these towers do not have
    model = started(recipe)
    check_equal(model, load_model(projected))
    assert float(model.logit_bias) == SigmoidLoss().initial_bias  # the bundle has none
    assert model.image_backbone.trainable_weights


def test_another_head_starts_afresh(projected):
    recipe = start_from(projected, Recipe("mine", CONFIG, InfoNCE(), settings()))
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, image_head=LinearHead(12)))
    model, start = started(other), load_model(projected)
    np.testing.assert_allclose(model.embed_texts(TOKENS), start.embed_texts(TOKENS), atol=1e-6)
    assert np.abs(np.asarray(model.embed_images(PIXELS)) - np.asarray(start.embed_images(PIXELS))).max() > 0.1


def test_other_towers_than_the_bundle_s_are_refused(projected):
    recipe = start_from(projected, Recipe("mine", CONFIG, InfoNCE(), settings()))
    other = dataclasses.replace(recipe.model, text_backbone=dataclasses.replace(TEXT, layers=2))
    with pytest.raises(TrainingError, match="another text_backbone"):
        started(dataclasses.replace(recipe, model=other))
