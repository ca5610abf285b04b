"""An exported SavedModel takes strings and pixels and gives the runtime's embeddings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_training import CONFIG

from data.errors import BundleError
from data.images import load_pixels
from data.sources.openmoji import draw
from dual_encoder.bundle import Bundle
from dual_encoder.bundle_model import save_bundle
from dual_encoder.export import SAMPLE, export, main
from dual_encoder.model import DualEncoder
from dual_encoder.runtime import Runtime
from dual_encoder.towers.scratch import ScratchText

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "token_ids.json").read_text("utf-8"))["captions"]
CAPTIONS = [caption for caption, _ in GOLDEN]  # in several scripts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small untrained model whose words are learned from captions in several scripts."""
    keras.utils.set_random_seed(0)
    text = ScratchText(vocabulary_size=2000, width=16, layers=1, heads=2, max_tokens=32)
    words = text.tokenizer(lambda: CAPTIONS)
    model = DualEncoder(dataclasses.replace(CONFIG, text_backbone=text))
    return save_bundle(tmp_path_factory.mktemp("export") / "m", model, words, name="m", card="", trained={})


def check_export(bundle: Bundle, runtime: Runtime, out: Path) -> None:
    """Export, load, and compare with the runtime: texts, pixels, one string, none."""
    export(bundle, out)
    signatures = tf.saved_model.load(str(out)).signatures
    outside_latin = [caption for caption in CAPTIONS if any(ord(c) > 0x250 for c in caption)]
    assert len(outside_latin) >= 40
    chosen = [*SAMPLE, *CAPTIONS[::25], *outside_latin[:40], "word " * 300]
    expected = runtime.embed_texts(chosen)
    assert np.abs(expected - expected[0]).max() > 0.05, "different texts are told apart"
    for name in ("embed_texts", "serving_default"):
        found = signatures[name](texts=tf.constant(chosen))["embeddings"].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = signatures["embed_texts"](texts=tf.constant(chosen[:1]))["embeddings"].numpy()
    np.testing.assert_allclose(alone, expected[:1], atol=1e-4)
    assert signatures["embed_texts"](texts=tf.constant([], tf.string))["embeddings"].shape == expected[:0].shape

    images = [draw("🐘"), draw("🍌")]
    pixels = np.stack([load_pixels(image, runtime.preprocessing) for image in images])
    found = signatures["embed_images"](pixels=tf.constant(pixels))["embeddings"].numpy()
    np.testing.assert_allclose(found, runtime.embed_images(images), atol=1e-4)


def test_an_export_gives_the_runtime_s_embeddings_of_strings_in_many_scripts(bundle: Bundle, tmp_path: Path) -> None:
    check_export(bundle, Runtime.load(bundle.path), tmp_path / "1")


@pytest.mark.slow
def test_the_default_model_s_export_gives_its_embeddings(default_runtime: Runtime, tmp_path: Path) -> None:
    check_export(default_runtime.bundle, default_runtime, tmp_path / "1")


def test_the_command_exports_once_and_keeps_what_is_there(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "served" / "1"
    assert main(["--bundle", str(bundle.path), "--out", str(out)]) == 0
    written = (out / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(BundleError, match="which holds something"):
        main(["--bundle", str(bundle.path), "--out", str(out)])
    assert (out / "saved_model.pb").stat().st_mtime_ns == written


def test_a_missing_bundle_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing at"):
        main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
