"""Training from a command line or from Python: it learns, repeats itself, resumes, and refuses clearly."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from server_process import ROOT
from shapes import FROZEN, RECIPE, write_shapes

from data.errors import BundleError, SourceError, TrainingError
from data.sources import open_source
from data.splits import split_pairs
from dual_encoder.bundle import METRICS, Bundle, open_bundle
from dual_encoder.evaluate import evaluate
from dual_encoder.runtime import Runtime
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.scratch import ScratchImage
from dual_encoder.train import main, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def learned(data: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both towers trained from pixels."""
    return train(RECIPE, data, tmp_path_factory.mktemp("learned") / "model")


def test_towers_trained_from_pixels_tell_the_shapes_apart(data: str, learned: Bundle) -> None:
    runtime = Runtime.load(learned.path)
    assert runtime.image_engine.name == "onnxruntime"
    pairs = split_pairs(open_source(data))["test"]  # the same shapes, each at a place it never was in
    report = evaluate(runtime, pairs)
    assert report["text_to_image"]["recall@1"] == 1.0
    assert report["image_to_text"]["recall@1"] == 1.0
    assert report["text_to_image"]["gallery"] == 12


def test_a_bundle_says_where_it_comes_from(data: str, learned: Bundle) -> None:
    trained = learned.manifest["trained"]
    assert trained["recipe"]["name"] == "shapes"
    assert trained["recipe"]["trainer"]["schedule"] == {
        "kind": "WarmupCosine",
        "peak": 0.004,
        "warmup": 0.1,
        "floor": 0,
    }
    assert trained["recipe"]["objective"]["kind"] == "info_nce"
    assert trained["pairs"] == {"train": 60, "validation": 12, "test": 12}
    assert trained["data"] == data
    assert 1 <= trained["best_epoch"] <= trained["epochs"] == 40
    assert learned.calibration is None, "24 captions are too few"
    figures = json.loads((learned.path / METRICS).read_text())["validation"]
    assert METRICS in learned.manifest["files"]
    assert figures["text_to_image"]["gallery"] == 12
    card = (learned.path / "README.md").read_text()
    assert f"| validation | text to image | {100 * figures['text_to_image']['recall@1']:.1f} (" in card
    assert trained["backbones"]["image_backbone"]["trainable"] == "trained"
    assert trained["seconds"] > 0
    assert trained["data_licences"] == {"images": 60, "credited": 0, "licences": {}}
    run = learned.path.with_name("model.run")
    history = json.loads((run / "history.json").read_text())
    assert len(history) == 40
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_same_call_again_leaves_the_bundle_as_it_is(
    data: str, learned: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (learned.path / "bundle.json").stat()
    again = train(RECIPE, data, learned.path)
    after = (learned.path / "bundle.json").stat()
    assert (again.fingerprint, before.st_ino, before.st_mtime_ns) == (
        learned.fingerprint,
        after.st_ino,
        after.st_mtime_ns,
    )
    assert "left as it is" in capfd.readouterr().err


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize("keep_run", [pytest.param(True, marks=pytest.mark.slow), False])
def test_fresh_trains_again_whether_or_not_the_run_s_files_are_there(data: str, tmp_path: Path, keep_run: bool) -> None:
    recipe = FROZEN.with_settings(epochs=1)
    out = tmp_path / "model"
    first = train(recipe, data, out)
    written = (out / "bundle.json").stat().st_ino
    if not keep_run:
        shutil.rmtree(tmp_path / "model.run")
    again = train(recipe, data, out, fresh=True)
    assert (out / "bundle.json").stat().st_ino != written
    assert again.fingerprint == first.fingerprint, "the same seed gives the same weights"


@pytest.mark.usefixtures("no_engines")
def test_a_finished_run_writes_a_lost_bundle_again_without_training(data: str, tmp_path: Path) -> None:
    recipe = FROZEN.with_settings(epochs=1)
    first = train(recipe, data, tmp_path / "model")
    history = (tmp_path / "model.run" / "history.json").read_text()
    shutil.rmtree(tmp_path / "model")
    again = train(recipe, data, tmp_path / "model")
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "model.run" / "history.json").read_text() == history


@dataclass(frozen=True)
class Interrupting(WarmupCosine):
    """A schedule during which someone presses Ctrl-C."""

    at: ClassVar[int | None] = None

    def learning_rate(self, step: int, total_steps: int, validation_losses) -> float:
        if step == Interrupting.at:
            Interrupting.at = None
            os.kill(os.getpid(), signal.SIGINT)
        return super().learning_rate(step, total_steps, validation_losses)


SMALL = dataclasses.replace(
    RECIPE,
    model=dataclasses.replace(RECIPE.model, image_backbone=ScratchImage(size=16, width=8, stages=1, depth=1)),
)


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize(
    "kind", [pytest.param(SMALL, id="pixels", marks=pytest.mark.slow), pytest.param(FROZEN, id="features")]
)
def test_an_interrupted_call_goes_on_to_the_very_same_bundle(data: str, tmp_path: Path, kind) -> None:
    recipe = dataclasses.replace(kind, trainer=dataclasses.replace(kind.trainer, schedule=Interrupting(1e-2), epochs=2))
    straight = train(recipe, data, tmp_path / "straight")
    Interrupting.at = 7  # in the middle of the second epoch
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    resumed = train(recipe, data, tmp_path / "stopped")
    assert Interrupting.at is None
    assert resumed.fingerprint == straight.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision"), [(SMALL, "mixed_bfloat16"), (FROZEN, "mixed_float16")])
def test_a_bundle_trained_in_mixed_precision_runs_in_float32_like_any_other(
    data: str, tmp_path: Path, recipe, precision: str
) -> None:
    import keras

    bundle = train(recipe.with_settings(epochs=1, precision=precision), data, tmp_path / recipe.name)
    assert bundle.engine_file("image_tower")
    assert bundle.engine_file("text_tower")
    fast, slow = (Runtime.load(bundle.path, engine=engine) for engine in ("onnxruntime", "keras"))
    captions = ["a red circle", "square, painted blue"]
    np.testing.assert_allclose(fast.embed_texts(captions), slow.embed_texts(captions), atol=1e-4)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.usefixtures("no_engines")
def test_another_run_at_the_same_place_is_refused_until_fresh_is_asked_for(data: str, tmp_path: Path) -> None:
    recipe = FROZEN.with_settings(epochs=1)
    train(recipe, data, tmp_path / "model")
    other = recipe.with_settings(seed=7)
    with pytest.raises(TrainingError, match="--fresh"):
        train(other, data, tmp_path / "model")
    kept = open_bundle(tmp_path / "model")
    assert train(other, data, tmp_path / "model", fresh=True).fingerprint != kept.fingerprint


def test_a_directory_of_other_things_is_not_replaced(data: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="holds something else"):
        train(FROZEN, data, tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_a_recipe_that_asks_for_cached_features_needs_frozen_backbones(data: str, tmp_path: Path) -> None:
    for setting, expected in (("mirrored", "images that come from a cache"), ("class_prototypes", "a frozen image")):
        with pytest.raises(TrainingError, match=expected):
            train(dataclasses.replace(RECIPE, **{setting: True}), data, tmp_path / "model")
    with pytest.raises(TrainingError, match="scratch_image, which has none"):
        train(dataclasses.replace(FROZEN, class_prototypes=True), data, tmp_path / "model")


@pytest.mark.usefixtures("no_engines")
def test_an_image_that_does_not_decode_is_left_out_or_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_shapes(tmp_path / "shapes")
    for name in ("train-0-red-circle.png", "validation-2-red-circle.png"):
        (tmp_path / "shapes" / "images" / name).write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    bundle = train(FROZEN.with_settings(epochs=1), data, tmp_path / "frozen")
    assert "1 images cannot be decoded and are left out: images/train-0-red-circle.png" in capfd.readouterr().err
    assert json.loads((bundle.path / METRICS).read_text())["validation"]["text_to_image"]["gallery"] == 11
    with pytest.raises(TrainingError, match=r"images/train-0-red-circle\.png"):
        train(RECIPE.with_settings(epochs=1), data, tmp_path / "pixels")


def test_a_source_without_captions_or_without_a_split_is_refused(tmp_path: Path) -> None:
    bare = write_shapes(tmp_path / "bare", captions=[])
    with pytest.raises(SourceError, match="captioned images in the train split"):
        train(FROZEN, bare, tmp_path / "model")
    no_validation = write_shapes(tmp_path / "no_validation", splits=["train", "test"])
    with pytest.raises(SourceError, match="captioned images in the validation split"):
        train(FROZEN, no_validation, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("no_engines")
def test_a_recipe_file_and_settings_are_taken_from_the_command_line(data: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import dataclasses\nfrom shapes import FROZEN\nRECIPE = dataclasses.replace(FROZEN, name='mine')\n"
    )
    out = tmp_path / "model"
    options = ["--epochs", "1", "--batch-size", "5", "--seed", "3", "--precision", "mixed_bfloat16"]
    assert main(["--recipe", str(path), "--data", data, "--out", str(out), *options]) == 0
    recipe = open_bundle(out).manifest["trained"]["recipe"]
    assert recipe["name"] == "mine"
    expected = {"epochs": 1, "batch_size": 5, "seed": 3, "precision": "mixed_bfloat16"}
    assert {key: recipe["trainer"][key] for key in expected} == expected


def test_an_unknown_recipe_or_source_is_refused_by_name(data: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as recipe:
        main(["--recipe", "openstacks", "--data", data, "--out", str(tmp_path / "m")])
    assert "tiny_scratch" in recipe.value.expected
    assert "openstacks" in recipe.value.received
    with pytest.raises(SourceError, match="nowhere"):
        main(["--recipe", "tiny_scratch", "--data", f"jsonl:{tmp_path}/nowhere", "--out", str(tmp_path / "m")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dual_encoder.evaluate", "--bundle", "nowhere", "--data", "emoji"], "nothing at nowhere"),
        (["dual_encoder.evaluate", "--bundle", "default", "--data", "nowhere"], "'nowhere'"),
        (["dual_encoder.train", "--recipe", "openstacks", "--data", "emoji", "--out", "m"], "'openstacks'"),
    ],
)
def test_a_refusal_leaves_a_process_with_code_2_and_no_traceback(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
