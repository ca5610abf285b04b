"""An exported SavedModel takes strings and pixels and gives the runtime's embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_training import CONFIG, tokenizer

from data.errors import BundleError
from data.images import load_pixels
from data.sources.openmoji import draw
from dual_encoder.bundle_model import save_bundle
from dual_encoder.export import SAMPLE, export, main
from dual_encoder.model import DualEncoder
from dual_encoder.runtime import Runtime

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "token_ids.json").read_text("utf-8"))["captions"]


@pytest.fixture(scope="module")
def exported(default_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory):
    import tensorflow as tf

    out = tmp_path_factory.mktemp("export") / "search" / "1"
    export(default_runtime.bundle, out)
    return tf.saved_model.load(str(out))


def test_strings_in_many_scripts_give_the_runtime_s_embeddings(exported, default_runtime: Runtime) -> None:
    import tensorflow as tf

    captions = [caption for caption, _ in GOLDEN]
    outside_latin = [caption for caption in captions if any(ord(c) > 0x250 for c in caption)]
    chosen = [*SAMPLE, *captions[::25], *outside_latin[:40], "word " * 300]
    assert len(outside_latin) >= 40
    expected = default_runtime.embed_texts(chosen)
    for name in ("embed_texts", "serving_default"):
        found = exported.signatures[name](texts=tf.constant(chosen))["embeddings"].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pixels_give_the_runtime_s_embeddings(exported, default_runtime: Runtime) -> None:
    import tensorflow as tf

    images = [draw("🐘"), draw("🍌")]
    pixels = np.stack([load_pixels(image, default_runtime.preprocessing) for image in images])
    found = exported.signatures["embed_images"](pixels=tf.constant(pixels))["embeddings"].numpy()
    np.testing.assert_allclose(found, default_runtime.embed_images(images), atol=1e-4)


def test_one_string_and_none_are_served_too(exported, default_runtime: Runtime) -> None:
    import tensorflow as tf

    embed = exported.signatures["embed_texts"]
    np.testing.assert_allclose(
        embed(texts=tf.constant(["zebra"]))["embeddings"].numpy(), default_runtime.embed_texts(["zebra"]), atol=1e-4
    )
    assert embed(texts=tf.constant([], tf.string))["embeddings"].shape == (0, 384)


def test_the_command_exports_a_trained_bundle_and_keeps_what_is_there(tmp_path: Path) -> None:
    import tensorflow as tf

    save_bundle(tmp_path / "model", DualEncoder(CONFIG), tokenizer(), name="tiny", card="", trained={})
    out = tmp_path / "served" / "1"
    assert main(["--bundle", str(tmp_path / "model"), "--out", str(out)]) == 0
    texts = ["small red circle", "", "large"]
    loaded = tf.saved_model.load(str(out)).signatures["embed_texts"](texts=tf.constant(texts))["embeddings"].numpy()
    np.testing.assert_allclose(loaded, Runtime.load(tmp_path / "model").embed_texts(texts), atol=1e-4)
    written = (out / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(BundleError, match="which holds something"):
        main(["--bundle", str(tmp_path / "model"), "--out", str(out)])
    assert (out / "saved_model.pb").stat().st_mtime_ns == written


def test_a_missing_bundle_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing at"):
        main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
