"""A backbone cut between two groups gives the features of the whole, and only what is above the cut trains."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from data.errors import TrainingError
from dual_encoder.layer_groups import WHOLE, LayerGroups, TrainedTower
from dual_encoder.towers.efficientnet_lite import EfficientNetLite
from dual_encoder.towers.keras_applications import KerasApplication
from dual_encoder.towers.minilm import MiniLM
from dual_encoder.towers.scratch import ScratchImage, ScratchText
from dual_encoder.towers.vision_transformer import VisionTransformer

NORMS = keras.layers.BatchNormalization
LITE = EfficientNetLite("lite0", trainable=True)
TOWERS = [
    ScratchImage(size=16, width=8, stages=3, depth=1),
    ScratchText(vocabulary_size=50, width=16, layers=3, heads=2),
    VisionTransformer(size=32, width=16, heads=2, layers=3),
    LITE,
    MiniLM(trainable=True),
]
NAMES = ["scratch image", "scratch text", "vision transformer", "lite0", "minilm"]


def inputs_of(backbone):
    generator = np.random.default_rng(0)
    if hasattr(backbone, "preprocessing"):
        size = backbone.preprocessing.size
        return generator.normal(size=(2, size, size, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)
    return {"ids": keras.ops.convert_to_tensor(generator.integers(1, 50, (2, 6))), "mask": keras.ops.array(mask)}


@pytest.mark.parametrize("backbone", TOWERS, ids=NAMES)
def test_every_cut_gives_the_features_of_the_whole_and_every_weight_is_in_one_group(backbone) -> None:
    keras.utils.set_random_seed(0)
    model = backbone.build(load_weights=False)
    groups, inputs = LayerGroups(backbone, model), inputs_of(backbone)
    whole = np.asarray(model(inputs, training=False))
    for cut in (1, len(groups) // 2, len(groups) - 1):
        hidden = groups.section(0, cut)(inputs, training=False)
        above = [hidden, inputs["mask"]] if isinstance(inputs, dict) else hidden
        np.testing.assert_allclose(groups.section(cut, len(groups))(above, training=False), whole, atol=1e-6)
    parts = [id(variable) for n in range(len(groups)) for variable in groups.variables(n, n + 1)]
    assert len(parts) == len(set(parts))
    assert set(parts) == {id(variable) for variable in model.variables}


def test_groups_of_efficientnet_lite_are_its_stages() -> None:
    groups = LayerGroups(LITE, LITE.build(load_weights=False))
    assert groups.names == ("stem", *(f"stage{n}" for n in range(7)), "head")
    assert [groups.section(0, n).output.shape[1:] for n in (1, 6, 7, 8)] == [
        (112, 112, 32),
        (14, 14, 112),
        (7, 7, 192),
        (7, 7, 320),
    ]


def test_a_backbone_without_groups_is_one_and_cannot_be_cut() -> None:
    backbone = KerasApplication("MobileNetV3Small", size=32, trainable=True)
    model = backbone.build()
    tower = TrainedTower(backbone, model)
    assert tower.groups.names == (WHOLE,)
    assert (tower.lowest, tower.frozen) == (0, 0)
    assert {id(v) for v in tower.variables()} == {id(v) for v in model.variables}
    with pytest.raises(TrainingError, match=r"1 and 1 top groups .* that cannot be cut; received 2"):
        TrainedTower(backbone, model, top=2)


def test_only_the_top_groups_train() -> None:
    model = LITE.build(load_weights=False)
    tower = TrainedTower(LITE, model, top=2)
    assert tower.lowest == 7
    names = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert names == {f"block15_{part}_conv" for part in ("expand", "depthwise", "project")} | {"head_conv"}
    assert [len(group) for group in tower.trainable_by_group()] == [3, 1]


@pytest.mark.parametrize(
    ("settings", "moving"),
    [({}, False), ({"train_batch_norm": True}, True), ({"top": 2, "train_batch_norm": True}, True)],
)
def test_batch_normalisation_moves_only_where_it_is_asked_to(settings: dict, moving: bool) -> None:
    model = LITE.build(load_weights=False)
    tower = TrainedTower(LITE, model, **settings)
    before = {variable.path: np.asarray(variable) for variable in model.non_trainable_variables}
    tower.features(inputs_of(LITE))
    changed = {path for path, value in before.items() if np.any(np.asarray(_named(model, path)) != value)}
    allowed = {v.path for v in tower.groups.variables(tower.lowest, 9) if "moving_" in v.path} if moving else set()
    assert changed == allowed
    trained = {variable.path for variable in model.trainable_variables}
    assert any("_bn/gamma" in path for path in trained) == moving


def _named(model, path: str):
    return next(variable for variable in model.variables if variable.path == path)


def test_groups_that_wait_run_in_inference_and_keep_their_statistics() -> None:
    model = LITE.build(load_weights=False)
    tower = TrainedTower(LITE, model, train_batch_norm=True)
    tower.frozen = 8
    statistics = [v for v in model.variables if "moving_" in v.path]
    before = [np.asarray(v) for v in statistics]
    tower.features(inputs_of(LITE))
    moved = {v.path.split("/")[0] for v, old in zip(statistics, before, strict=True) if np.any(np.asarray(v) != old)}
    assert moved == {"head_bn"}


def test_a_frozen_trunk_has_no_dropout_and_a_frozen_backbone_no_group_to_train() -> None:
    backbone = dataclasses.replace(TOWERS[1], dropout=0.5)
    keras.utils.set_random_seed(0)
    model, inputs = backbone.build(), inputs_of(backbone)
    tower = TrainedTower(backbone, model)
    assert np.any(np.asarray(tower.features(inputs)) != np.asarray(tower.features(inputs)))
    tower.frozen = len(tower.groups)
    np.testing.assert_array_equal(tower.features(inputs), tower.features(inputs))
    frozen = TrainedTower(dataclasses.replace(backbone, trainable=False), model)
    assert frozen.lowest == len(frozen.groups)
    assert (frozen.variables(), frozen.trainable_by_group()) == ([], [])
    features = np.ones((2, 16), np.float32)
    assert frozen.features_of_trunk(features) is features
