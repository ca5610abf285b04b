import dataclasses

import keras_hub
import numpy as np
import pytest
from published_backbones import BERT, RESNET, write_presets
from tower_contract import CAPTIONS, check_image_backbone, check_text_backbone

from data.errors import UserError
from data.images import normalise
from dual_encoder.towers import backbone_config, backbone_from_config
from dual_encoder.towers.keras_hub import KerasHubImage, KerasHubText

VIT = {"image_shape": (32, 32, 3), "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    return write_presets(tmp_path_factory.mktemp("presets"))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(("name", "settings", "dim"), [("ResNetBackbone", RESNET, 16), ("ViTBackbone", VIT, 8)])
def test_image_backbones_by_constructor_keep_the_contract(name, settings, dim, trainable):
    backbone = KerasHubImage(class_name=name, settings=settings, size=32, trainable=trainable)
    assert check_image_backbone(backbone).shape == (3, dim)


@pytest.mark.parametrize("trainable", [True, False])
def test_text_backbones_by_constructor_keep_the_contract(trainable):
    backbone = KerasHubText(class_name="BertBackbone", settings=BERT, max_tokens=12, trainable=trainable)
    assert check_text_backbone(backbone).shape == (3, 8)


def test_an_image_preset_brings_weights_and_scaling(presets):
    backbone = KerasHubImage(preset=str(presets / "resnet"), size=32)
    assert check_image_backbone(backbone).shape == (3, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    network = keras_hub.models.Backbone.from_preset(str(presets / "resnet"))
    expected = np.mean(network(pixels / 127.5 - 1.0), axis=(1, 2))
    np.testing.assert_allclose(backbone.build()(normalise(pixels, backbone.preprocessing)), expected, atol=1e-4)


def test_a_text_preset_brings_weights_and_vocabulary(presets):
    backbone = KerasHubText(preset=str(presets / "bert"), max_tokens=12)
    features = check_text_backbone(backbone)
    tokens = backbone.tokenizer(list).encode(CAPTIONS)
    assert tokens.ids[0].tolist()[:5] == [2, 5, 6, 7, 3]
    network = keras_hub.models.Backbone.from_preset(str(presets / "bert"))
    inputs = {"token_ids": tokens.ids, "padding_mask": tokens.mask, "segment_ids": np.zeros_like(tokens.ids)}
    sequence = np.asarray(network(inputs)["sequence_output"])
    weights = tokens.mask[..., None]
    np.testing.assert_allclose(features, (sequence * weights).sum(1) / weights.sum(1), atol=1e-5)
    pooled = check_text_backbone(dataclasses.replace(backbone, pooled=True))
    np.testing.assert_allclose(pooled, network(inputs)["pooled_output"], atol=1e-5)


def test_a_preset_with_another_tokeniser_says_how_it_takes_strings(presets):
    with pytest.raises(UserError, match="RobertaTokenizer.*in_graph_tokenizer=True"):
        KerasHubText(preset=str(presets / "roberta"), max_tokens=12).tokenizer(list)


@pytest.mark.slow
def test_a_preset_with_another_tokeniser_takes_strings(presets):
    backbone = KerasHubText(preset=str(presets / "roberta"), max_tokens=12)
    assert check_text_backbone(dataclasses.replace(backbone, in_graph_tokenizer=True)).shape == (3, 8)
    with pytest.raises(UserError, match="a pooled_output of 2 axes"):
        dataclasses.replace(backbone, in_graph_tokenizer=True, pooled=True).build()


def test_a_stored_backbone_is_rebuilt_without_its_preset(presets):
    for backbone in (
        KerasHubImage(preset=str(presets / "resnet"), size=32),
        KerasHubText(preset=str(presets / "bert")),
    ):
        config = backbone_config(backbone) | {"preset": "/nowhere"}
        rebuilt = backbone_from_config(config).build(load_weights=False)
        assert [weight.shape for weight in rebuilt.weights] == [weight.shape for weight in backbone.build().weights]


def test_without_a_connection_it_says_what_to_put_where(no_connection):
    advice = r"small_en_uncased \(.*kagglehub\.model_download\('keras/bert/keras/bert_small_en_uncased/\d+'\)"
    text, images = KerasHubText(preset="bert_small_en_uncased"), KerasHubImage(preset="resnet_18_imagenet")
    for attempt in (text.build, lambda: text.tokenizer(list)):
        with pytest.raises(UserError, match=advice):
            attempt()
    with pytest.raises(UserError, match=r"model_download\('keras/resnetv1/"):
        _ = images.preprocessing  # and not another preprocessing


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="a preset, or a class_name"):
        KerasHubImage()
    with pytest.raises(UserError, match="name of a KerasHub backbone"):
        KerasHubImage(class_name="NoSuchBackbone").build()
    with pytest.raises(UserError, match="preset or its directory"):
        KerasHubText(preset=str(tmp_path / "nothing")).build()
