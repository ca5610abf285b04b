"""Importing refuses what it cannot import whole, by name, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from parity_inputs import write_published
from safetensors.numpy import load_file, save_file

from data.errors import BundleError, PretrainedError
from dual_encoder.bundle import MANIFEST
from dual_encoder.import_model import import_model, main, read_published


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A sound CLIP with one weight file and tokenizer.json; copy it before changing it."""
    return write_published("clip", tmp_path_factory.mktemp("published") / "clip")


@pytest.fixture
def model(published, tmp_path):
    return shutil.copytree(published, tmp_path / "model")


def change_json(path, **changes):
    """Change entries of a file's object, and inside an entry that is an object itself."""
    config = json.loads(path.read_text())
    for name, value in changes.items():
        inside = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = {**config[name], **value} if inside else value
    path.write_text(json.dumps(config))


def change_tensors(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def refused(model, match):
    """Import must fail with words that fit `match`; nothing may lie at --out or beside it."""
    out = model.parent / "out" / "bundle"
    with pytest.raises(PretrainedError, match=match) as refusal:
        import_model(str(model), out)
    assert refusal.value.next_step
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": ["clip"]}, "settings in"),
        ({"architectures": 5}, "settings in"),
        ({"model_type": "siglip2", "architectures": ["Siglip2Model"]}, "NaFlex"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "CLIPTextModelWithProjection"),
        ({"vision_config": {"hidden_act": "silu"}}, "'silu'"),
        ({"vision_config": {"num_attention_heads": 7}}, "width 40 for 7 heads"),
        ({"vision_config": {"num_hidden_layers": "12"}}, "layers '12'"),
        ({"vision_config": {"num_channels": 4}}, "4"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "layers 1,000,000,000"),
        ({"vision_config": {"hidden_size": 2 * 10**6}}, "48,000,"),
        ({"text_config": [1]}, "settings in"),
        ({"projection_dim": "24"}, "'24'"),
    ],
)
def test_an_architecture_that_is_not_known_is_refused(model, changes, match):
    change_json(model / "config.json", **changes)
    refused(model, match)


def test_missing_and_left_over_tensors_are_named(model):
    def change(tensors):
        tensors["vision_model.encoder.layers.3.mlp.fc1.bias"] = tensors.pop(
            "vision_model.encoder.layers.0.mlp.fc1.bias"
        )

    change_tensors(model, change)
    said = refused(model, "1 missing: vision_model.encoder.layers.0.mlp.fc1.bias")
    assert "1 left over: vision_model.encoder.layers.3.mlp.fc1.bias" in said


def test_a_tensor_of_another_shape_is_named_with_both_shapes(model):
    def change(tensors):
        tensors["text_projection.weight"] = tensors["text_projection.weight"][:, :-1].copy()

    change_tensors(model, change)
    refused(model, r"text_projection.weight \(24, 31\) instead of \(24, 32\)")


def test_numbers_that_are_not_finite_are_refused(model):
    def change(tensors):
        tensors["visual_projection.weight"][3, 5] = np.nan

    change_tensors(model, change)
    refused(model, "finite numbers in visual_projection.weight")


def test_pickled_weights_are_refused_with_a_next_step(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    said = refused(model, "only pytorch_model.bin, whose format can run code")
    assert "safetensors" in said


def test_a_missing_directory_is_refused(tmp_path):
    refused(tmp_path / "nothing", "config.json or open_clip_config.json")


HEADERS = {
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "a header longer than any": struct.pack("<Q", 2**63) + b"{}" * 100,
    "no header": b"",
    "a header that is no JSON": struct.pack("<Q", 8) + b"not json",
    "a tensor behind the end": struct.pack("<Q", 66)
    + b'{"logit_scale":{"dtype":"F32","shape":[9999],"data_offsets":[0,39996]}}'[:66],
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_or_hostile_weight_file_is_refused(model, data):
    (model / "model.safetensors").write_bytes(data)
    refused(model, "safetensors file")


def index(model, weight_map):
    (model / "model.safetensors").rename(model / "one.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name", ["../one.safetensors", "/etc/passwd", "..\\one.safetensors", "sub/one.safetensors", ".."]
)
def test_a_shard_elsewhere_is_refused(model, name):
    shutil.copy(model / "model.safetensors", model.parent / "one.safetensors")
    index(model, dict.fromkeys(load_file(model / "model.safetensors"), name))
    (model.parent / "one.safetensors").unlink()
    refused(model, "names of safetensors files beside")


def test_a_missing_shard_is_named(model):
    index(model, {"logit_scale": "one.safetensors", "text_projection.weight": "two.safetensors"})
    refused(model, "1 missing: two.safetensors")


def test_a_tensor_that_its_shard_lacks_is_named(model):
    index(model, {"logit_scale": "one.safetensors", "no.such.tensor": "one.safetensors"})
    refused(model, "no.such.tensor in one.safetensors")


@pytest.mark.parametrize("value", ["{", "[]", '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(model, value):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(value)
    refused(model, "index.json")


def test_a_tokeniser_is_required_and_must_be_the_model_s(model):
    change_json(model / "config.json", text_config={"vocab_size": 49407})
    refused(model, "ids up to 49,407")
    change_json(model / "config.json", text_config={"vocab_size": 49408, "eos_token_id": 7})
    refused(model, "ends a text with token 7")
    (model / "tokenizer.json").write_text('{"model": 3}')
    refused(model, "a tokeniser in")
    (model / "tokenizer.json").unlink()
    refused(model, "none of them")
    (model / "vocab.json").write_text('{"a": 1, "<|endoftext|>": 2, "<|startoftext|>": 3}')
    (model / "merges.txt").write_text("#version: 0.2\na b\n")
    refused(model, "merges that fit")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": {"shortest_edge": 64}}, "a square"),
        ({"size": 64, "crop_size": 64}, "tower's 32 pixels"),
        ({"do_center_crop": False}, "a square"),
        ({"do_rescale": False}, "do_rescale False"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"resample": 0}, "resample"),
        ({"image_std": [0.5, 0.0, 0.5]}, "positive deviations"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(model, changes, match):
    change_json(model / "preprocessor_config.json", **changes)
    refused(model, match)


def test_preprocessing_is_required(model):
    (model / "preprocessor_config.json").unlink()
    refused(model, "preprocessor_config.json")


def test_other_spellings_of_the_same_model_are_the_same_model(published, model):
    """Old configs nest by NAME_dict, old weights hold positions, and newer processors are nested."""
    config = json.loads((model / "config.json").read_text())
    change_json(model / "config.json", text_config={"hidden_size": 512}, text_config_dict=config["text_config"])
    steps = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").unlink()
    steps = {**steps, "size": 32, "crop_size": 32}
    (model / "processor_config.json").write_text(json.dumps({"image_processor": steps}))

    def change(tensors):
        tensors["text_model.embeddings.position_ids"] = np.arange(20)[None]

    change_tensors(model, change)
    same, other = read_published(str(published)), read_published(str(model))
    assert other.config == same.config
    assert other.tokenizer.to_json() == same.tokenizer.to_json()
    for ours, theirs in zip(other.build().weights, same.build().weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_refusal_leaves_an_earlier_bundle_as_it_was(model, tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text("an earlier bundle")
    (model / "model.safetensors").unlink()
    with pytest.raises(PretrainedError):
        main(["--from", str(model), "--out", str(out)])
    assert [path.name for path in out.iterdir()] == [MANIFEST]
    assert (out / MANIFEST).read_text() == "an earlier bundle"


def test_what_is_no_bundle_is_not_replaced(published, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="which holds something else"):
        import_model(str(published), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "'convnext_base'"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_gap_224"}, "'vit_base_patch16_siglip_gap_224'"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "as Hugging Face publishes it"),
        ("vision_cfg", {"image_size": [32, 48]}, "size"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "a Vision Transformer"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool True"),
        ("vision_cfg", {"something_new": 1}, "something_new 1"),
        ("vision_cfg", {"head_width": 0}, "ZeroDivisionError"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "'roberta-base'"),
        ("text_cfg", {"pool_type": "last"}, "pool_type 'last'"),
    ],
)
def test_open_clip_towers_that_are_not_known_are_refused(tmp_path, part, changes, match):
    model = write_published("open_clip", tmp_path / "model")
    path = model / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][part] |= changes
    if "image_size" in changes:
        del config["preprocess_cfg"]["size"]
    path.write_text(json.dumps(config))
    refused(model, match)
