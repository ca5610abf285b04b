"""A two-tower model holds together: one embedding size, one name for each weight, float32 where it is shared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_training import CONFIG, IMAGE, TEXT, WORDS, tokenizer

from data.errors import BundleError, TrainingError, UserError
from dual_encoder.anchoring import prototype_captions, prototype_features
from dual_encoder.class_names import CLASS_COUNT, class_descriptions, class_names
from dual_encoder.model import DualEncoder, DualEncoderConfig, anchor_in_language, classifier_of
from dual_encoder.projection_head import AnchoredHead, IdentityHead, LinearHead
from dual_encoder.recipe import TrainerConfig, load_recipe, recipe_names
from dual_encoder.schedules import WarmupCosine
from dual_encoder.weights import named_weights


def pixels(rows: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 16, 16, 3)).astype(np.float32)


def tokens() -> dict[str, np.ndarray]:
    batch = tokenizer().encode(["small red circle", "square", " ".join(WORDS)])
    return {"ids": batch.ids, "mask": batch.mask}


def test_embeddings_are_head_of_backbone_l2_normalised_and_deterministic() -> None:
    model = DualEncoder(CONFIG)
    for embed, backbone, head, inputs in (
        (model.embed_images, model.image_backbone, model.image_head, pixels()),
        (model.embed_texts, model.text_backbone, model.text_head, tokens()),
    ):
        found = np.asarray(embed(inputs))
        raw = np.asarray(head(backbone(inputs, training=False), training=False))
        np.testing.assert_allclose(found, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
        assert found.shape == (3, model.embedding_dim)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(embed(inputs)))


def test_heads_of_different_sizes_are_refused() -> None:
    with pytest.raises(TrainingError, match="12 for images and 13 for text"):
        DualEncoder(dataclasses.replace(CONFIG, text_head=LinearHead(13)))


def test_the_scale_starts_where_the_objective_says() -> None:
    model = DualEncoder(CONFIG, initial_scale=20.0)
    assert float(np.exp(model.log_scale.numpy())) == pytest.approx(20.0)
    # Frozen backbones: two projections and the scale are all that trains.
    assert len(model.trainable_variables) == 3


def test_weights_have_the_same_names_in_every_model_of_a_config() -> None:
    first, second = (named_weights(DualEncoder(CONFIG).parts()) for _ in range(2))
    assert list(first) == list(second)
    assert [tuple(v.shape) for v in first.values()] == [tuple(v.shape) for v in second.values()]
    assert len(first) == len(DualEncoder(CONFIG).weights)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_for_what_trains_and_leaves_keras_as_it_was(precision: str) -> None:
    model = DualEncoder(CONFIG, precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert np.asarray(model.image_backbone(pixels())).dtype == np.float32  # frozen
    assert model.text_head(np.zeros((1, 16), np.float32)).dtype == precision.removeprefix("mixed_")
    trains = dataclasses.replace(CONFIG, image_backbone=dataclasses.replace(IMAGE, trainable=True))
    convolution = DualEncoder(trains, precision=precision).image_backbone.get_layer("stage0_down")
    assert convolution.compute_dtype == precision.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)


def test_a_mixed_model_is_published_in_float32_with_its_own_weights() -> None:
    mixed = DualEncoder(CONFIG, initial_scale=7.0, precision="mixed_bfloat16")
    full = mixed.in_float32()
    assert full.text_head(np.zeros((1, 16), np.float32)).dtype == "float32"
    for name, weight in named_weights(mixed.parts()).items():
        np.testing.assert_array_equal(np.asarray(weight), np.asarray(named_weights(full.parts())[name]))
    cosine = (np.asarray(mixed.embed_texts(tokens())) * np.asarray(full.embed_texts(tokens()))).sum(axis=1)
    assert (cosine > 0.999).all()
    assert full.in_float32() is full


def test_a_config_survives_json() -> None:
    config = DualEncoderConfig(
        dataclasses.replace(IMAGE, trainable=True), TEXT, AnchoredHead(12, top=3, trainable=True), IdentityHead()
    )
    assert DualEncoderConfig.from_config(json.loads(json.dumps(config.to_config()))) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(audio_head={}), "audio_head"),
        (lambda config: config.pop("text_head"), "image_head, text_backbone"),
        (lambda config: config["image_backbone"].update(wide=3), "wide"),
        (lambda config: config["text_backbone"].update(family="scratch_txt"), "scratch_txt"),
        (lambda config: config["image_head"].update(kind="lineal"), "lineal"),
    ],
)
def test_a_config_with_anything_unknown_or_missing_is_refused(change, named: str) -> None:
    config = CONFIG.to_config()
    change(config)
    with pytest.raises(BundleError) as refused:
        DualEncoderConfig.from_config(config)
    assert named in refused.value.received


def test_a_language_anchored_head_needs_a_classifier_and_words_of_its_size() -> None:
    without = DualEncoder(dataclasses.replace(CONFIG, image_head=AnchoredHead(12), text_head=LinearHead(12)))
    with pytest.raises(TrainingError, match="scratch_image, which has none"):
        anchor_in_language(without, np.zeros((1000, 12)))
    with pytest.raises(TrainingError, match="scratch_image, which has none"):
        classifier_of(IMAGE)

    @dataclasses.dataclass(frozen=True)
    class WithClassifier:
        """The tiny backbone with a classifier of three classes."""

        def __getattr__(self, name: str):
            return getattr(IMAGE, name)

        def classifier(self) -> tuple[np.ndarray, np.ndarray]:
            return np.ones((16, 3), np.float32), np.zeros(3, np.float32)

    def anchored(**sizes: int) -> DualEncoder:
        heads = {"image_head": AnchoredHead(12, **sizes), "text_head": LinearHead(12)}
        return DualEncoder(dataclasses.replace(CONFIG, image_backbone=WithClassifier(), **heads))  # type: ignore[arg-type]

    anchor_in_language(anchored(classes=3), np.ones((3, 12)))
    with pytest.raises(TrainingError, match="of 3 classes and embedding_dim 384"):
        anchor_in_language(anchored(classes=3), np.ones((3, 384)))
    with pytest.raises(TrainingError, match="of 3 classes"):
        anchor_in_language(anchored(), np.ones((1000, 12)))


def test_every_class_has_a_name_and_the_rows_are_imagenet_s() -> None:
    names = class_names()
    assert len(names) == len(class_descriptions()) == CLASS_COUNT
    assert all(texts and all(text.strip() for text in texts) for texts in names)
    for row, name in ((1, "goldfish"), (207, "golden retriever"), (281, "tabby cat"), (954, "banana"), (999, "toilet")):
        assert any(name in text.lower() for text in names[row]), (row, names[row])
    assert all(len({text.lower() for text in texts}) == len(texts) for texts in names)


def test_a_class_is_named_in_several_captions_and_described_in_the_last() -> None:
    captions = prototype_captions()
    assert captions[954][0] == "a photo of a banana"
    assert captions[954][-1].startswith("banana. ")


def test_class_prototypes_look_like_features_and_point_where_their_class_does() -> None:
    generator = np.random.default_rng(0)
    features = np.maximum(generator.normal(1.0, 0.5, (200, 40)), 0).astype(np.float32)
    kernel = generator.normal(size=(40, 10)).astype(np.float32)
    prototypes = prototype_features(kernel, features)
    assert prototypes.shape == (10, 40)
    assert prototypes.dtype == np.float32
    assert (prototypes >= 0).all()
    assert prototypes.mean() == pytest.approx(features.mean(), rel=0.1)
    assert (np.argmax(prototypes @ kernel, axis=1) == np.arange(10)).all()


def test_every_recipe_of_the_project_loads_under_its_own_name() -> None:
    assert {"emoji_demo", "openstax", "keras_example", "tiny_scratch"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert DualEncoderConfig.from_config(json.loads(json.dumps(recipe.model.to_config()))) == recipe.model


def test_a_recipe_file_of_one_s_own_may_define_its_own_classes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, replace\n"
        "from typing import ClassVar\n"
        "from dual_encoder.recipes.tiny_scratch import RECIPE as TINY\n"
        "@dataclass(frozen=True)\n"
        "class Constant:\n"
        "    rate: float = 0.5\n"
        "    kind: ClassVar[str] = 'constant'\n"
        "    def learning_rate(self, step, total_steps, validation_losses): return self.rate\n"
        "RECIPE = replace(TINY, name='mine', trainer=replace(TINY.trainer, schedule=Constant()))\n"
    )
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.trainer.schedule.learning_rate(0, 1, []) == 0.5


def test_names_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("RECIPES = []\n")
    for name, named in (("openstacks", "openstacks"), ("_hidden", "_hidden"), (str(tmp_path / "empty.py"), "without")):
        with pytest.raises(TrainingError) as refused:
            load_recipe(name)
        assert named in refused.value.received


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"batch_size": 0}, {"batch_size": -4}, {"patience": -1}])
def test_settings_with_which_no_step_can_be_taken_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match="correct the recipe"):
        TrainerConfig(WarmupCosine(), **setting)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        load_recipe("tiny_scratch").with_settings(**setting)


def test_settings_that_are_not_given_stay_as_they_are() -> None:
    recipe = load_recipe("tiny_scratch")
    assert recipe.with_settings(epochs=None, seed=None) == recipe
    assert recipe.with_settings(seed=0, epochs=3).trainer == dataclasses.replace(recipe.trainer, seed=0, epochs=3)
