"""A bundle opens only as it was written, says what it is, and replaces nothing but another bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tiny_training import CONFIG, tokenizer

from data.durable import write_json
from data.errors import BundleError
from data.text import CaptionTokenizer
from dual_encoder.bundle import METRICS, Bundle, fingerprint_of, open_bundle
from dual_encoder.bundle_model import load_model, save_bundle
from dual_encoder.model import DualEncoder
from dual_encoder.weights import named_weights


def model(seed: int = 0) -> DualEncoder:
    keras.utils.set_random_seed(seed)
    return DualEncoder(CONFIG, initial_scale=7.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "model"
    return save_bundle(
        out,
        model(),
        tokenizer(),
        name="tiny",
        card="# tiny\n",
        trained={"recipe": None},
        metrics={"validation": {"recall@1": 0.5}},
    )


@pytest.fixture
def copy(original: Bundle, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original.path, tmp_path / "model"))


def change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "bundle.json").read_text("utf-8"))
    change(manifest)
    write_json(path / "bundle.json", manifest)


def test_a_bundle_holds_everything_that_running_it_needs(original: Bundle) -> None:
    assert set(original.manifest["files"]) == {
        "weights.safetensors",
        "tokenizer.json",
        "README.md",
        "metrics.json",
        "image_tower.onnx",
        "text_tower.onnx",
    }
    assert {path.name for path in original.path.iterdir()} == {*original.manifest["files"], "bundle.json"}


def test_an_opened_bundle_says_what_was_written(original: Bundle) -> None:
    opened = open_bundle(original.path)
    assert opened.manifest == original.manifest
    assert (opened.name, opened.embedding_dim) == ("tiny", 12)
    assert opened.preprocessing == CONFIG.image_backbone.preprocessing
    found = opened.tokenizer()
    assert found is not None
    assert found.max_tokens == 12
    assert found.encode(["small red circle"]).ids.tolist() == tokenizer().encode(["small red circle"]).ids.tolist()
    assert opened.engine_file("image_tower") == original.path / "image_tower.onnx"
    assert opened.engine_file("audio_tower") is None


def test_a_model_comes_back_with_every_weight(original: Bundle) -> None:
    expected, loaded = named_weights(model().parts()), named_weights(load_model(original).parts())
    assert list(loaded) == list(expected)
    for name, weight in loaded.items():
        np.testing.assert_array_equal(np.asarray(weight), np.asarray(expected[name]), err_msg=name)


@pytest.mark.usefixtures("no_engines")
def test_the_fingerprint_changes_with_whatever_decides_an_embedding(original: Bundle, tmp_path: Path) -> None:
    def fingerprint(number: int, **changes: Any) -> str:
        settings = {"model": model(), "tokenizer": tokenizer(), "name": "tiny", "card": "", "trained": {}, **changes}
        return save_bundle(tmp_path / f"{number}", **settings).fingerprint

    other_words = CaptionTokenizer.trained(["walk run swim fly"], vocabulary_size=60, max_tokens=12)
    shorter = CaptionTokenizer.from_json(tokenizer().to_json(), 8)
    found = [
        fingerprint(1, model=model(seed=1)),
        fingerprint(2, tokenizer=other_words),
        fingerprint(3, tokenizer=shorter),
        original.fingerprint,
    ]
    assert len(set(found)) == 4
    # Neither name, card, training notes nor figures decide one.
    assert fingerprint(4, name="another", card="other", trained={"run": "x"}) == original.fingerprint


@pytest.mark.parametrize("key", ["config", "preprocessing", "max_tokens", "embedding_dim"])
def test_the_fingerprint_hears_every_setting(original: Bundle, key: str) -> None:
    assert fingerprint_of({**original.manifest, key: "other"}) != original.fingerprint


FILES = ["weights.safetensors", "tokenizer.json", "README.md", "metrics.json", "image_tower.onnx", "text_tower.onnx"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_refused_and_its_file_named(copy: Path, name: str, place: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError) as refused:
        open_bundle(copy)
    assert name in refused.value.received


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_longer_file_is_refused_and_named(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match=f"{name} has .* bytes instead of"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(copy)


def test_a_path_that_leaves_the_directory_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"abc")
    for escape in ("../outside.bin", str(outside)):
        change_manifest(copy, lambda manifest, escape=escape: manifest["files"].update({escape: {"bytes": 3}}))
        with pytest.raises(BundleError, match="outside the directory"):
            open_bundle(copy)
        change_manifest(copy, lambda manifest, escape=escape: manifest["files"].pop(escape))
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to(outside)
    with pytest.raises(BundleError, match=r"README\.md lies outside the directory"):
        open_bundle(copy)


def test_an_unknown_format_is_refused(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest.update(format=2))
    with pytest.raises(BundleError, match="bundle format 1; received 2"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["config"]["image_head"].update(embedding_dim=13),
        lambda manifest: manifest["preprocessing"].update(size=8),
        lambda manifest: manifest.update(max_tokens=11),
        lambda manifest: manifest.update(fingerprint="0" * 64),
    ],
)
def test_a_setting_changed_by_hand_is_refused(copy: Path, change: Callable[[dict], None]) -> None:
    change_manifest(copy, change)
    with pytest.raises(BundleError, match="fingerprint"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(name="a better name"),
        lambda manifest: manifest["trained"].update(recipe="another"),
        lambda manifest: manifest["files"].pop("text_tower.onnx"),
        lambda manifest: manifest["files"]["README.md"].update(note="new"),
    ],
)
def test_anything_else_changed_by_hand_is_refused_too(copy: Path, change: Callable[[dict], None]) -> None:
    change_manifest(copy, change)
    with pytest.raises(BundleError, match="as it was written; received another content"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "{}",
        '{"format": 1}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"a": 1}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=r"a valid bundle\.json"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "key", ["config", "preprocessing", "max_tokens", "embedding_dim", "fingerprint", "name", "trained", "digest"]
)
def test_a_manifest_without_a_part_is_refused(copy: Path, key: str) -> None:
    change_manifest(copy, lambda manifest: manifest.pop(key))
    with pytest.raises(BundleError, match=key):
        open_bundle(copy)


def test_a_manifest_in_another_encoding_is_refused(copy: Path) -> None:
    (copy / "bundle.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(BundleError):
        open_bundle(copy)


def test_nothing_and_other_directories_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing at"):
        open_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match=r"a bundle directory with bundle\.json"):
        open_bundle(tmp_path)


@pytest.mark.usefixtures("no_engines")
def test_a_bundle_replaces_a_bundle_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    def save(out: Path) -> Bundle:
        return save_bundle(out, model(seed=3), tokenizer(), name="new", card="", trained={})

    assert save(copy).fingerprint == open_bundle(copy).fingerprint
    assert open_bundle(copy).name == "new"
    assert METRICS not in open_bundle(copy).manifest["files"], "the old bundle's figures are not the new one's"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("text")
    for taken in (photos, tmp_path / "file"):
        with pytest.raises(BundleError, match="holds something else"):
            save(taken)
    assert (photos / "cat.jpg").read_bytes() == b"cat"
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.usefixtures("no_engines")
def test_a_save_that_fails_leaves_the_old_bundle_and_no_rest(copy: Path, original: Bundle, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_bundle(copy, model(seed=3), tokenizer(), name="new", card="", trained={"recipe": object()})
    assert open_bundle(copy).fingerprint == original.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
