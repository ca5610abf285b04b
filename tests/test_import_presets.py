"""A KerasHub preset becomes a bundle that computes what KerasHub does; a name that is none asks nobody."""

from __future__ import annotations

import json

import keras_hub
import numpy as np
import pytest
from parity_inputs import FIXTURES

from data.errors import PretrainedError
from dual_encoder.import_model import import_model, read_published

TOWER = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64}
PIXELS = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def clip_preset(directory):
    vocabulary = json.loads((FIXTURES / "clip_gelu" / "vocab.json").read_text("utf-8"))
    merges = (FIXTURES / "clip_gelu" / "merges.txt").read_text("utf-8").splitlines()[1:]
    text = {"vocabulary_size": len(vocabulary), "embedding_dim": 32, "max_sequence_length": 16}
    network = keras_hub.models.CLIPBackbone(
        keras_hub.models.CLIPVisionEncoder(patch_size=8, image_shape=(32, 32, 3), **TOWER),
        keras_hub.models.CLIPTextEncoder(**text, **TOWER),
        projection_dim=24,
    )
    # Made for this layer by KerasHub's own converters, and left at zero by its constructor.
    positions = network.vision_encoder.embedding.position_ids
    positions.assign(np.arange(17)[None])
    network.save_to_preset(directory)
    keras_hub.models.CLIPTokenizer(vocabulary, merges).save_to_preset(directory)
    scale = [1 / (255 * 0.25)] * 3
    keras_hub.layers.CLIPImageConverter(
        (32, 32), scale=scale, offset=[-1.0, -2.0, -3.0], interpolation="bicubic"
    ).save_to_preset(directory)
    return network


def siglip_preset(directory):
    proto = (FIXTURES / "siglip" / "spiece.model").read_bytes()
    text = {"vocabulary_size": 300, "embedding_dim": 32, "max_sequence_length": 16, "projection_dim": 32}
    network = keras_hub.models.SigLIPBackbone(
        keras_hub.models.SigLIPVisionEncoder(patch_size=8, image_shape=(32, 32, 3), **TOWER),
        keras_hub.models.SigLIPTextEncoder(**text, **TOWER),
    )
    network.save_to_preset(directory)
    keras_hub.models.SigLIPTokenizer(proto).save_to_preset(directory)
    keras_hub.layers.SigLIPImageConverter(
        (32, 32), scale=1 / 127.5, offset=-1.0, crop_to_aspect_ratio=False
    ).save_to_preset(directory)
    return network


def unit(vectors):
    vectors = np.asarray(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("make", [clip_preset, siglip_preset])
def test_a_preset_s_towers_scale_and_preprocessing_are_taken_over(make, tmp_path):
    network = make(str(tmp_path / "preset"))
    published = read_published(str(tmp_path / "preset"))
    model = published.build()
    np.testing.assert_allclose(model.embed_images(PIXELS), unit(network.get_vision_embeddings(PIXELS)), atol=1e-4)

    tokens = published.tokenizer.encode(["a red bicycle", "x"])
    filled = np.full((2, 16), published.tokenizer.pad_id, np.int32)
    filled[:, : tokens.ids.shape[1]] = tokens.ids
    found = model.embed_texts({"ids": tokens.ids, "mask": tokens.mask})
    np.testing.assert_allclose(found, unit(network.get_text_embeddings(filled)), atol=1e-4)
    head = network.clip_head if make is clip_preset else network.siglip_head
    assert float(model.log_scale) == pytest.approx(float(head.logit_scale))

    preprocessing = model.config.image_backbone.preprocessing
    if make is clip_preset:
        assert preprocessing.resize == "crop"
        np.testing.assert_allclose(preprocessing.std, (0.25,) * 3)
        np.testing.assert_allclose(preprocessing.mean, (0.25, 0.5, 0.75))
    else:
        assert preprocessing.resize == "squash"
        np.testing.assert_allclose(preprocessing.mean, (0.5,) * 3)


def test_a_name_that_is_no_preset_is_refused_without_asking_anybody(tmp_path):
    with pytest.raises(PretrainedError, match="the name of a CLIP or SigLIP preset"):
        import_model("clip_vit_base_patch_32", tmp_path / "bundle")


def test_a_preset_of_another_kind_is_refused(tmp_path):
    network = keras_hub.models.BertBackbone(50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    network.save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(PretrainedError, match="received 'BertBackbone'"):
        import_model(str(tmp_path / "preset"), tmp_path / "bundle")


@pytest.mark.parametrize(
    "foreign", [{"module": "os", "class_name": "system"}, {"module": "os", "class_name": "DTypePolicy"}]
)
def test_a_preset_that_names_other_objects_is_refused_before_any_is_made(foreign, tmp_path):
    preset = tmp_path / "preset"
    preset.mkdir()
    (preset / "metadata.json").write_text("{}")
    config = {"class_name": "CLIPBackbone", "config": {"vision_encoder": [{"dtype": foreign}]}}
    (preset / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="KerasHub preset of CLIP or SigLIP in .*config.json"):
        import_model(str(preset), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
