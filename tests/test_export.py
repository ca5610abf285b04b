"""An exported SavedModel takes strings and pixels and gives the runtime's embeddings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from PIL import Image
from published_backbones import write_presets
from tiny_training import CONFIG

from data.errors import BundleError, SourceError
from data.images import Resize, load_pixels
from data.pairs import ImageBytes, ImageTextPair
from data.sources.openmoji import draw
from dual_encoder import export as export_module
from dual_encoder.bundle import Bundle
from dual_encoder.bundle_model import save_bundle
from dual_encoder.engines import OnnxEngine, run_on_texts
from dual_encoder.export import SAMPLE, export, main
from dual_encoder.model import DualEncoder
from dual_encoder.runtime import Runtime
from dual_encoder.towers.keras_hub import KerasHubText
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


@pytest.mark.slow
def test_an_export_gives_the_runtime_s_embeddings_of_strings_in_many_scripts(bundle: Bundle, tmp_path: Path) -> None:
    check_export(bundle, Runtime.load(bundle.path), tmp_path / "1")


@pytest.mark.slow
def test_a_preset_that_tokenises_by_itself_is_exported_with_its_byte_pairs(tmp_path: Path) -> None:
    presets = write_presets(tmp_path / "presets")
    text = KerasHubText(preset=str(presets / "roberta"), max_tokens=12, in_graph_tokenizer=True)
    model = DualEncoder(dataclasses.replace(CONFIG, text_backbone=text))
    bundle = save_bundle(tmp_path / "m", model, None, name="m", card="", trained={})
    export(bundle, tmp_path / "1")
    exported = tf.saved_model.load(str(tmp_path / "1")).signatures["embed_texts"]
    expected = Runtime.load(bundle.path).embed_texts(SAMPLE)
    np.testing.assert_allclose(exported(texts=tf.constant(SAMPLE))["embeddings"], expected, atol=1e-5)


@pytest.mark.slow
def test_the_default_model_s_export_gives_its_embeddings(default_runtime: Runtime, tmp_path: Path) -> None:
    check_export(default_runtime.bundle, default_runtime, tmp_path / "1")


@pytest.mark.parametrize("resize", ["squash", "crop", "pad", "shortest_edge", "shortest_edge_rounded"])
def test_onnx_files_and_their_own_readme_give_the_runtime_s_embeddings(
    bundle: Bundle, tmp_path: Path, resize: Resize
) -> None:
    preprocessing = dataclasses.replace(bundle.preprocessing, resize=resize)
    bundle = Bundle(bundle.path, {**bundle.manifest, "preprocessing": preprocessing.to_config()})
    out = tmp_path / "towers"
    assert sorted(export(bundle, out, "onnx")) == sorted(path.name for path in out.iterdir())
    program = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text("utf-8"), re.DOTALL)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_mandelbrot((90, 61), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(tmp_path / "1.jpg", exif=exif)
    Image.effect_mandelbrot((300, 500), (-1, -1, 1, 1), 50).save(tmp_path / "2.jpg")
    (tmp_path / "3.png").write_bytes(draw("🍌"))
    images = [tmp_path / name for name in ("1.jpg", "2.jpg", "3.png")]
    asked = f"import json\nprint(json.dumps([embed_texts({CAPTIONS[:20]!r}).tolist(), "
    asked += f"embed_images({[str(path) for path in images]!r}).tolist()]))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program + asked], cwd=out, stdout=subprocess.PIPE, text=True, check=True
    )
    texts, pictures = (np.array(rows) for rows in json.loads(done.stdout))
    engine = OnnxEngine(out / "text.onnx")
    runtime = Runtime(bundle, OnnxEngine(out / "image.onnx"), engine)
    np.testing.assert_allclose(texts, runtime.embed_texts(CAPTIONS[:20]), atol=1e-5)
    np.testing.assert_allclose(pictures, runtime.embed_images([path.read_bytes() for path in images]), atol=1e-5)
    assert np.abs(pictures - pictures[0]).max() > 1e-3, "different images are told apart"


def test_onnx_files_hold_standard_operations_where_the_bundle_s_engine_has_onnx_runtime_s_own(
    bundle: Bundle, tmp_path: Path
) -> None:
    small = {"vocabulary_size": 2000, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 16}
    text = KerasHubText(class_name="BertBackbone", settings=small, max_tokens=32)
    model = DualEncoder(dataclasses.replace(CONFIG, text_backbone=text))
    bundle = save_bundle(tmp_path / "m", model, bundle.tokenizer(), name="m", card="", trained={})
    engine = bundle.engine_file("text_tower")
    assert engine is not None
    assert "com.microsoft" in {node.domain for node in onnx.load(engine).graph.node}
    export(bundle, tmp_path / "towers", "onnx")
    for name in ("image.onnx", "text.onnx"):
        written = onnx.load(tmp_path / "towers" / name)
        onnx.checker.check_model(written, full_check=True)
        assert not written.functions
        assert "com.microsoft" not in {entry.domain for entry in written.opset_import}
    words, exported = bundle.tokenizer(), tmp_path / "towers" / "text.onnx"
    found, own = (run_on_texts(OnnxEngine(path), words, CAPTIONS) for path in (exported, engine))
    np.testing.assert_allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("tower", ["image_tower", "text_tower"])
def test_an_engine_that_differs_is_not_published(bundle: Bundle, tmp_path: Path, tower: str) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "m"))
    graph = onnx.load(copy / f"{tower}.onnx")
    largest = max(graph.graph.initializer, key=lambda weight: math.prod(weight.dims))
    values = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1), largest.name))
    onnx.save(graph, copy / f"{tower}.onnx")
    with pytest.raises(BundleError, match="nothing is written"):
        export(Bundle(copy, bundle.manifest), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_an_export_is_compared_on_the_pairs_that_are_given(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        ImageTextPair("1", ImageBytes(lambda: draw("🍎")), ("an apple", "a fruit")),
        ImageTextPair("2", ImageBytes(lambda: b"no image"), ("nothing",)),
    ]
    seen = []
    measure = export_module.largest_difference
    monkeypatch.setattr(export_module, "largest_difference", lambda *all_: seen.append(all_[3:]) or measure(*all_))
    export(bundle, tmp_path / "out", "onnx", given)
    ((texts, pixels),) = seen
    assert texts == [*SAMPLE, "an apple", "a fruit", "nothing"]
    np.testing.assert_array_equal(pixels[-1], load_pixels(draw("🍎"), bundle.preprocessing))
    with pytest.raises(SourceError, match="do not"):
        export(bundle, tmp_path / "other", "onnx", given[1:])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
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
