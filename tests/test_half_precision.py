"""A bundle computes in 16 bits only on a GPU, where that was measured as good and faster; it stays the same model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from fakes import ListSource, picture

from data.errors import SourceError
from data.images import ImagePreprocessing
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder import half_precision, runtime
from dual_encoder.bundle import Bundle, open_bundle, with_half_precision
from dual_encoder.bundle_model import keras_engines, load_model
from dual_encoder.runtime import Runtime

PAIRS = [
    ImageTextPair(f"{colour}-{n}", ImageBytes(lambda c=colour, n=n: picture(c, n)), (f"{colour} circle",))  # type: ignore[misc]
    for colour in ("red", "green", "blue")
    for n in range(3)
]


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(tiny_bundle.path, tmp_path / "m"))


def run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, gain: float) -> int:
    monkeypatch.setattr(half_precision, "FEWEST", 1)
    monkeypatch.setattr(half_precision, "open_source", lambda name: ListSource(PAIRS))
    monkeypatch.setattr(half_precision, "_speed", lambda full, half: (full(), half(), gain)[2])
    arguments = ["--bundle", str(bundle.path), "--data", "here", "--split", "all", "--precision", "mixed_bfloat16"]
    return half_precision.main(arguments)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_all_of_a_model_computes_in_16_bits_with_the_bundle_s_weights(bundle: Bundle, precision: str) -> None:
    model = load_model(bundle, precision)
    kind = precision.removeprefix("mixed_")
    for part in (model.image_backbone, model.text_backbone, model.image_head, model.text_head):
        assert kind in {layer.compute_dtype for layer in part.layers}
    assert keras.config.dtype_policy().name == "float32"
    full, half = (Runtime(bundle, *keras_engines(bundle, name)) for name in ("float32", precision))
    texts, images = ["red circle", "a small blue square"], [picture("red"), picture("blue")]
    for ours, theirs in (
        (half.embed_texts(texts), full.embed_texts(texts)),
        (half.embed_images(images), full.embed_images(images)),
    ):
        assert ours.dtype == np.float32
        assert np.any(ours != theirs)
        assert ((ours * theirs).sum(axis=1) > 0.999).all()
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=5e-3)


@pytest.mark.slow
def test_it_is_published_where_it_is_as_good_and_faster_and_used_on_a_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(bundle, monkeypatch, gain=2.0) == 0
    after = open_bundle(bundle.path)
    assert after.fingerprint == bundle.fingerprint
    assert after.half_precision == "mixed_bfloat16"
    assert after.manifest["half_precision"]["speed"] == {"32 texts": 2.0, "32 images": 2.0}
    texts = ["red circle"]
    expected = {
        name: Runtime(after, *keras_engines(after, name)).embed_texts(texts) for name in ("float32", "mixed_bfloat16")
    }
    assert np.any(expected["float32"] != expected["mixed_bfloat16"])
    np.testing.assert_array_equal(Runtime.load(after.path, engine="keras").embed_texts(texts), expected["float32"])
    monkeypatch.setattr(runtime, "gpu_is_present", lambda: True)
    np.testing.assert_array_equal(Runtime.load(after.path).embed_texts(texts), expected["mixed_bfloat16"])


@pytest.mark.slow
def test_what_is_slower_or_worse_is_not_published(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, monkeypatch, gain=0.3) == 1
    assert "not published: it is only 0.30 times as fast" in capsys.readouterr().err
    measured: Any = half_precision.measure

    def worse(bundle: Bundle, precision: str, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
        figures = measured(bundle, precision, pairs)
        figures["recall@10"][precision]["text_to_image"] -= 0.006
        return figures

    monkeypatch.setattr(half_precision, "measure", worse)
    assert run(bundle, monkeypatch, gain=2.0) == 1
    assert "falls by" in capsys.readouterr().err
    assert open_bundle(bundle.path).half_precision == "float32"


def test_too_few_images_to_judge_by_are_refused(bundle: Bundle) -> None:
    with pytest.raises(SourceError, match="at least 200 images"):
        half_precision.measure(bundle, "mixed_float16", PAIRS)


def test_other_statements_of_a_bundle_stay(bundle: Bundle) -> None:
    found = with_half_precision(bundle, "mixed_float16", {"captions": 3})
    assert {**found.manifest, "half_precision": None, "digest": None} == {
        **bundle.manifest,
        "half_precision": None,
        "digest": None,
    }
    assert dataclasses.replace(found, manifest=bundle.manifest).half_precision == "float32"
    assert found.preprocessing == ImagePreprocessing.from_config(bundle.manifest["preprocessing"])
