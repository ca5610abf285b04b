"""CLIP's and SigLIP's towers keep the contract of towers; test_import_parity says that they are the published ones."""

from __future__ import annotations

import numpy as np
import pytest
from tower_contract import CAPTIONS, check_image_backbone, check_text_backbone

from data.errors import UserError
from dual_encoder.layer_groups import LayerGroups
from dual_encoder.towers.clip import ClipImage, ClipText
from dual_encoder.towers.siglip import SiglipImage, SiglipText

SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 24}
IMAGES = [
    ClipImage(size=16, patch=5, activation="gelu_tanh", pooling="mean", **SMALL),
    SiglipImage(size=16, patch=4, activation="gelu", trainable=True, **SMALL),
]
TEXTS = [
    ClipText(vocabulary_size=100, max_tokens=12, trainable=True, **SMALL),
    SiglipText(vocabulary_size=100, max_tokens=12, embedding_dim=16, pad_id=3, **SMALL),
]


@pytest.mark.parametrize("backbone", IMAGES, ids=lambda backbone: backbone.family)
def test_image_towers_keep_the_contract(backbone):
    assert check_image_backbone(backbone).shape == (3, 16)


@pytest.mark.parametrize("backbone", TEXTS, ids=lambda backbone: backbone.family)
def test_text_towers_keep_the_contract(backbone):
    assert check_text_backbone(backbone).shape == (3, 16)


@pytest.mark.parametrize("backbone", [*IMAGES, *TEXTS], ids=lambda backbone: backbone.family)
def test_a_tower_cut_between_any_two_groups_gives_the_whole_tower_s_features(backbone):
    import tensorflow as tf

    model = backbone.build()
    groups = LayerGroups(backbone, model)
    assert groups.names[1:] == ("layer0", "layer1")
    if "image" in backbone.family:
        inputs = tf.random.stateless_normal((2, 16, 16, 3), (0, 1))
    else:
        tokens = backbone.tokenizer(lambda: iter(CAPTIONS)).encode(CAPTIONS)
        inputs = {"ids": tf.constant(tokens.ids), "mask": tf.constant(tokens.mask)}
    for cut in (1, 2):
        hidden = groups.section(0, cut)(inputs)
        above = [hidden, inputs["mask"]] if isinstance(inputs, dict) else hidden
        np.testing.assert_allclose(groups.section(cut, 3)(above), model(inputs), atol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        (ClipImage, {"heads": 3}, "width 16 for 3 heads"),
        (ClipImage, {"layers": 0}, "layers 0"),
        (ClipImage, {"patch": 300}, "patch 300 of size 224"),
        (ClipImage, {"pooling": "max"}, "'max'"),
        (ClipText, {"max_tokens": True}, "max_tokens True"),
        (SiglipImage, {"epsilon": 0.0}, "epsilon 0.0"),
        (SiglipText, {"activation": "relu"}, "'relu'"),
    ],
)
def test_settings_of_which_nothing_can_be_built_are_refused(family, changes, match):
    with pytest.raises(UserError, match=match):
        family(**{**SMALL, **changes})
