"""Backbones of TensorFlow Hub and KerasHub go all the way: trained or frozen, evaluated, exported, indexed, queried."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from published_backbones import (
    place_for_kagglehub,
    place_for_tensorflow_hub,
    write_presets,
    write_saved_models,
)
from shapes import RECIPE, write_shapes

from dual_encoder import evaluate, export
from dual_encoder.bundle import open_bundle
from dual_encoder.bundle_model import load_model
from dual_encoder.recipe import Recipe, load_recipe
from dual_encoder.runtime import Runtime
from dual_encoder.towers.keras_hub import KerasHubImage, KerasHubText
from dual_encoder.towers.tf_hub import TfHubImage, TfHubText
from dual_encoder.train import train
from serving import build_index
from serving.embedded_store import EmbeddedStore
from serving.queries import SearchOptions, TextQuery
from serving.search_engine import SearchEngine

TEXTS = ["a red circle", "square, painted blue", ""]
IMAGES_ADDRESS = "https://tfhub.dev/example/images/1"
TOKENS_ADDRESS = "https://www.kaggle.com/models/example/tokens/TensorFlow2/small/1"
ENCODER = "example/encoder/tensorFlow2/small/1"
PRESET = "keras/bert/keras/bert_tiny_en_uncased/3"  # what KerasHub's "bert_tiny_en_uncased" stands for


@dataclass(frozen=True)
class Published:
    """Where the stand-ins are: `saved` and `presets` in directories, others by name in `kept` alone."""

    saved: Path
    presets: Path
    kept: Path

    def forget(self) -> None:
        """Take all of it away."""
        for place in (self.saved, self.presets, self.kept):
            shutil.rmtree(place)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    return write_saved_models(root / "saved"), write_presets(root / "presets")


@pytest.fixture
def published(originals, no_connection, monkeypatch, tmp_path):
    found = Published(tmp_path / "saved", tmp_path / "presets", tmp_path / "kept")
    for original, copy in zip(originals, (found.saved, found.presets), strict=True):
        shutil.copytree(original, copy)
    for name, address in (("images", IMAGES_ADDRESS), ("tokens", TOKENS_ADDRESS)):
        shutil.copytree(found.saved / name, place_for_tensorflow_hub(found.kept, address))
    shutil.copytree(found.saved / "encoder", place_for_kagglehub(found.kept, ENCODER))
    shutil.copytree(found.presets / "bert", place_for_kagglehub(found.kept, PRESET, found.presets / "bert"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "shapes")


def addresses(published: Published) -> tuple[Any, Any]:
    text = TfHubText(f"kaggle://{ENCODER}", TOKENS_ADDRESS, output="pooled_output")
    return TfHubImage(IMAGES_ADDRESS, size=16), text


def saved_models(published: Published) -> tuple[Any, Any]:
    image = TfHubImage(str(published.saved / "images"), size=16, trainable=True)
    return image, TfHubText(str(published.saved / "sentences"), trainable=True)


def preset_names(published: Published) -> tuple[Any, Any]:
    image = KerasHubImage(preset=str(published.presets / "resnet"), size=32, trainable=True)
    return image, KerasHubText(preset="bert_tiny_en_uncased", max_tokens=12)


def preset_directories(published: Published) -> tuple[Any, Any]:
    text = KerasHubText(preset=str(published.presets / "bert"), max_tokens=12, in_graph_tokenizer=True)
    return KerasHubImage(preset=str(published.presets / "resnet"), size=32), dataclasses.replace(text, trainable=True)


def slow(towers: Callable[[Published], tuple[Any, Any]]) -> Any:
    return pytest.param(towers, marks=pytest.mark.slow)


def recipe_of(image: Any, text: Any) -> Recipe:
    model = dataclasses.replace(RECIPE.model, image_backbone=image, text_backbone=text)
    return dataclasses.replace(RECIPE, name="published", model=model)


@pytest.mark.parametrize("towers", [saved_models, *map(slow, (addresses, preset_names, preset_directories))])
def test_the_whole_way(
    towers: Callable[[Published], tuple[Any, Any]], published: Published, data: str, tmp_path: Path
) -> None:
    recipe = recipe_of(*towers(published))
    start = {part: getattr(recipe.model, part).build().weights for part in ("image_backbone", "text_backbone")}
    start = {part: [np.array(weight) for weight in weights] for part, weights in start.items()}
    bundle = tmp_path / "bundle"
    train(recipe, data, bundle, epochs=2)
    published.forget()  # a bundle needs nothing but itself

    reached = load_model(open_bundle(bundle)).parts()
    for part, before in start.items():
        moved = [not np.array_equal(a, np.asarray(b)) for a, b in zip(before, reached[part], strict=True)]
        assert any(moved) == getattr(recipe.model, part).trainable, part
    check_use(bundle, data, tmp_path)


def check_use(bundle: Path, data: str, directory: Path) -> None:
    """Every engine gives the same embeddings, and the bundle is evaluated, exported, indexed and queried."""
    runtime, in_keras = Runtime.load(bundle), Runtime.load(bundle, engine="keras")
    takes_strings = runtime.tokenizer is None
    assert runtime.image_engine.name == "onnxruntime"
    assert runtime.text_engine.name == ("keras" if takes_strings else "onnxruntime")
    pictures = [path.read_bytes() for path in sorted(Path(data.removeprefix("jsonl:")).glob("images/test-*"))]
    embeddings = runtime.embed_texts(TEXTS)
    np.testing.assert_allclose(in_keras.embed_texts(TEXTS), embeddings, atol=1e-4)
    np.testing.assert_allclose(in_keras.embed_images(pictures), runtime.embed_images(pictures), atol=1e-4)

    assert evaluate.main(["--bundle", str(bundle), "--data", data, "--json", str(directory / "report.json")]) == 0
    assert json.loads((directory / "report.json").read_text())["text_to_image"]["queries"] == 24
    assert export.main(["--bundle", str(bundle), "--out", str(directory / "exported")]) == 0
    exported = tf.saved_model.load(str(directory / "exported")).signatures["embed_texts"]
    np.testing.assert_allclose(exported(texts=tf.constant(TEXTS))["embeddings"], embeddings, atol=1e-4)

    index = directory / "index"
    assert build_index.main(["--bundle", str(bundle), "--data", data, "--out", str(index)]) == 0
    engine = SearchEngine(runtime, EmbeddedStore.open(index, runtime.fingerprint, writable=False))
    hits = asyncio.run(engine.search(TextQuery(TEXTS[0]), SearchOptions(k=3))).hits
    engine.close()
    assert [hit.rank for hit in hits] == [1, 2, 3]
    best = Path(data.removeprefix("jsonl:")) / hits[0].image_id
    image = runtime.embed_images([best.read_bytes()])
    offset = 0.0 if runtime.hubness is None else float(runtime.hubness.offsets(image)[0])
    assert hits[0].score == pytest.approx(float(image[0] @ embeddings[0]) - offset, abs=1e-3)


@pytest.mark.slow
def test_a_trained_bundle_of_strings_is_trained_on(published: Published, data: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(recipe_of(*saved_models(published)), data, first, epochs=1)
    published.forget()
    train(None, data, second, start=first, epochs=1)
    shutil.rmtree(first)
    assert Runtime.load(second).embed_texts(TEXTS).shape == (3, 16)


@pytest.mark.slow
def test_the_keras_example_s_own_pair_is_trained_from_files_that_the_user_put_there(
    published: Published, data: str, tmp_path: Path
) -> None:
    recipe = load_recipe("xception_bert")
    keras.utils.set_random_seed(2)
    weights = tmp_path / "xception.weights.h5"
    keras.applications.Xception(include_top=False, weights=None, input_shape=(71, 71, 3)).save_weights(weights)
    image, text = recipe.model.image_backbone, recipe.model.text_backbone
    bert = json.loads((published.presets / "bert" / "config.json").read_text())["config"]
    small = {name: bert[name] for name in text.settings}
    model = dataclasses.replace(
        recipe.model,
        image_backbone=dataclasses.replace(image, weights=str(weights), size=71),
        text_backbone=dataclasses.replace(text, preset=str(published.presets / "bert"), settings=small),
    )
    bundle = tmp_path / "bundle"
    train(dataclasses.replace(recipe, model=model), data, bundle, epochs=1, batch_size=12)
    weights.unlink()
    published.forget()
    check_use(bundle, data, tmp_path)
