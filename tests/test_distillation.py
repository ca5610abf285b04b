"""A student learns its teacher's similarities: the loss is the paper's, the teacher stands still, and runs resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from shapes import FROZEN, RECIPE, write_shapes
from test_losses import batch, log_softmax, numeric_gradient, unit

from data.errors import BundleError, TrainingError
from data.sources import open_source
from data.splits import split_pairs
from dual_encoder.bundle import Bundle
from dual_encoder.distillation import Distillation, Taught
from dual_encoder.gradient_cache import GradientCache
from dual_encoder.losses import InfoNCE, KerasExampleLoss, Matches, SigmoidLoss
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import Recipe
from dual_encoder.runtime import Runtime
from dual_encoder.schedules import WarmupCosine
from dual_encoder.teacher import TaughtBatches
from dual_encoder.towers.scratch import ScratchImage
from dual_encoder.train import main, train
from dual_encoder.training_run import TrainingRun

NOBODY = Bundle(Path("nowhere"), {"name": "nobody", "fingerprint": "ab" * 32, "trained": {}})
# Rows 0 and 3 show one image, rows 1 and 2 have one caption; row 4 counts half; the teacher does not know row 5.
MATCHES = Matches(
    np.array([9, 1, 2, 9, 4, 5]), np.array([0, 7, 7, 3, 4, 5]), np.array([1, 1, 1, 1, 0.5, 1], np.float32)
)
UNKNOWN = 5


def teacher_of(image: np.ndarray, text: np.ndarray, wider: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of another size than the student's, of which one row is unknown."""
    generator = np.random.default_rng(5)
    sides = [unit(np.hstack([side, generator.normal(size=(len(side), wider))])) for side in (image, text)]
    for side in sides:
        side[UNKNOWN] = 0
    return sides[0], sides[1]


def divergence(image, text, scale, teacher, teacher_scale, temperature, weights) -> float:
    """Row by row in float64: sum of p log(p / q) among the rows the teacher knows, both ways round."""
    known = [row for row in range(len(image)) if teacher[0][row].any() and teacher[1][row].any()]
    student = scale * unit(image) @ unit(text).T / temperature
    target = teacher_scale * teacher[0] @ teacher[1].T / temperature
    total = 0.0
    for ours, theirs in ((student, target), (student.T, target.T)):
        for row in known:
            log_q = log_softmax(ours[row : row + 1, known])[0]
            log_p = log_softmax(theirs[row : row + 1, known])[0]
            total += float(weights[row]) * float(np.sum(np.exp(log_p) * (log_p - log_q)))
    return temperature**2 * total / (2 * sum(float(weights[row]) for row in known))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_and_its_gradients_equal_the_reference(temperature: float) -> None:
    image, text, _ = batch()
    teacher = teacher_of(image, text)
    setting = Distillation(NOBODY, 1.0, temperature, teacher_scale=12.0)
    variables = [tf.Variable(value, dtype=tf.float32) for value in (image, text, np.log(6.0), *teacher)]
    with tf.GradientTape() as tape:
        taught = Taught(MATCHES, *variables[3:])
        loss = setting.mixed(InfoNCE(), *variables[:3], taught)
    *gradients, by_their_image, by_their_text = tape.gradient(loss, variables)
    assert by_their_image is None, "the teacher learns nothing"
    assert by_their_text is None

    def reference(i: np.ndarray, t: np.ndarray, s: np.ndarray) -> float:
        return divergence(i, t, np.exp(float(s)), teacher, 12.0, temperature, MATCHES.weights)

    scale = np.array(np.log(6.0))
    assert float(loss) == pytest.approx(reference(image, text, scale), rel=1e-5)
    expected = [
        numeric_gradient(lambda i: reference(i, text, scale), image),
        numeric_gradient(lambda t: reference(image, t, scale), text),
        numeric_gradient(lambda s: reference(image, text, s), scale),
    ]
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, atol=3e-5)
        assert np.abs(theirs).max() > 1e-3
    np.testing.assert_array_equal(np.asarray(gradients[0])[UNKNOWN], 0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teacher_equal_to_the_student_has_no_divergence_and_no_gradient(temperature: float) -> None:
    image, text, _ = batch()
    setting = Distillation(NOBODY, 1.0, temperature, teacher_scale=9.0)
    variables = [tf.Variable(value, dtype=tf.float32) for value in (image, text, np.log(9.0))]
    with tf.GradientTape() as tape:
        loss = setting.mixed(InfoNCE(), *variables, Taught(MATCHES, image, text))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    for gradient in tape.gradient(loss, variables):
        np.testing.assert_allclose(np.asarray(gradient), 0, atol=2e-5)
    other = setting.mixed(InfoNCE(), *variables, Taught(MATCHES, image, text[::-1]))
    assert float(other) > 0.1


@pytest.mark.parametrize("objective", [InfoNCE(multi_positive=True), SigmoidLoss()], ids=["multi-positive", "sigmoid"])
def test_the_weight_mixes_the_objective_with_the_divergence_and_shares_add_up(objective) -> None:
    image, text, _ = batch()
    taught = Taught(MATCHES, *teacher_of(image, text))
    scale = float(np.log(6.0))
    setting = Distillation(NOBODY, 0.3, 2.0, teacher_scale=12.0)
    whole = float(setting.mixed(objective, image, text, scale, taught, -2.0))
    own = float(objective(image, text, scale, MATCHES, -2.0))
    theirs = divergence(image, text, 6.0, taught[1:], 12.0, 2.0, MATCHES.weights)
    assert whole == pytest.approx(0.7 * own + 0.3 * theirs, rel=1e-5)
    parts = [float(setting.mixed(objective, image, text, scale, taught, -2.0, (part, 3))) for part in range(3)]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_the_gradient_in_chunks_is_that_of_one_pass() -> None:
    image, text, _ = batch()
    setting = Distillation(NOBODY, 0.6, teacher_scale=12.0)
    taught = Taught(Matches(*map(tf.constant, MATCHES)), *(tf.constant(s, tf.float32) for s in teacher_of(image, text)))
    rows = {"image": tf.constant(image, tf.float32), "text": tf.constant(text, tf.float32)}
    weights = [tf.Variable(np.random.default_rng(n).normal(size=(4, 3)), dtype=tf.float32) for n in (1, 2)]

    def project(batch):
        return batch["image"] @ weights[0], batch["text"] @ weights[1]

    def loss(image, text, taught):
        value = setting.mixed(InfoNCE(), image, text, tf.constant(1.5), taught)
        return value, value

    with tf.GradientTape() as tape:
        value = loss(*project(rows), taught)[0]
    cached, gradients = tf.function(GradientCache(project, loss, weights, [], chunk_size=4))(rows, taught)
    assert float(cached) == pytest.approx(float(value), rel=1e-6)
    for ours, theirs in zip(gradients, tape.gradient(value, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_prototypes_are_rows_that_the_teacher_does_not_know() -> None:
    class Drawn:
        steps_per_epoch = 1

        def epoch(self, epoch: int, start: int = 0):
            yield {"image_row": np.array([1, 2, 0]), "caption_group": np.array([0, 3, 1])}

    images, texts = np.eye(2, dtype=np.float32), 2 * np.eye(3, dtype=np.float32)
    (given,) = TaughtBatches(Drawn(), images, texts).epoch(0)
    np.testing.assert_array_equal(given["teacher_image"], [[0, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(given["teacher_text"], [[2, 0, 0], [0, 0, 0], [0, 2, 0]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def teacher(data: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Larger images, a larger embedding, and trained with label smoothing."""
    model = dataclasses.replace(
        RECIPE.model,
        image_backbone=ScratchImage(size=20, width=16, stages=2, depth=1),
        image_head=LinearHead(20),
        text_head=LinearHead(20),
    )
    recipe = dataclasses.replace(RECIPE, name="teacher", model=model, objective=InfoNCE(label_smoothing=0.1))
    return train(recipe.with_settings(epochs=15), data, tmp_path_factory.mktemp("teacher") / "teacher")


def similarities(bundle: Bundle, data: str) -> np.ndarray:
    runtime, pairs = Runtime.load(bundle.path), split_pairs(open_source(data))["test"]
    images = runtime.embed_images([pair.image.read() for pair in pairs])
    return images @ runtime.embed_texts([pair.captions[0] for pair in pairs]).T


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


STUDENTS = {
    "cached features": FROZEN.with_settings(epochs=8),
    "pixels in chunks": RECIPE.with_settings(epochs=4, chunk_size=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "pixels" in n else ()) for n in STUDENTS])
def test_a_student_agrees_more_with_its_teacher_and_says_whose_it_is(
    name: str, data: str, teacher: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(STUDENTS[name], objective=InfoNCE(multi_positive=True), group_positives=True)
    alone = train(recipe, data, tmp_path / "alone")
    assert "label smoothing" not in capfd.readouterr().err
    taught = train(dataclasses.replace(recipe, distillation=Distillation(teacher, 0.9, 2.0)), data, tmp_path / "taught")
    told = " ".join(capfd.readouterr().err.split())
    assert "trained with label smoothing 0.1" in told
    assert "Müller, Kornblith, Hinton 2019" in told
    assert "label_smoothing=0" in told
    theirs = similarities(teacher, data)
    assert agreement(similarities(taught, data), theirs) > agreement(similarities(alone, data), theirs) + 0.02
    assert "distillation" not in alone.manifest["trained"]["recipe"]
    stored = taught.manifest["trained"]["recipe"]["distillation"]
    assert (stored["teacher"], stored["fingerprint"]) == (teacher.name, teacher.fingerprint)
    assert (stored["weight"], stored["temperature"]) == (0.9, 2.0)
    learned = json.loads((teacher.path.with_name("teacher.run") / "history.json").read_text())
    best = teacher.manifest["trained"]["best_epoch"] - 1
    assert stored["teacher_scale"] == pytest.approx(learned[best]["scale"], rel=1e-5)
    card = (taught.path / "README.md").read_text()
    assert f"| teacher | {teacher.name}, fingerprint {teacher.fingerprint[:12]} (weight 0.9" in card
    assert "a poor teacher" in (teacher.path / "README.md").read_text()
    assert "a poor teacher" not in card


@dataclasses.dataclass(frozen=True)
class Interrupting(WarmupCosine):
    """A schedule during which someone presses Ctrl-C, once."""

    armed = [False]  # noqa: RUF012

    def learning_rate(self, step: int, total_steps: int, validation_losses) -> float:
        if step == 7 and Interrupting.armed.pop():
            os.kill(os.getpid(), signal.SIGINT)
        return super().learning_rate(step, total_steps, validation_losses)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_very_same_bundle(
    data: str, teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FROZEN.with_settings(epochs=2, schedule=Interrupting(1e-2))
    monkeypatch.setattr(Interrupting, "armed", [False])
    straight = train(recipe, data, tmp_path / "straight", teacher=teacher.path)
    Interrupting.armed[:] = [False, True]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "stopped", teacher=teacher.path)
    resumed = train(recipe, data, tmp_path / "stopped", teacher=teacher.path)
    assert resumed.fingerprint == straight.fingerprint
    with pytest.raises(TrainingError, match="--fresh"):
        train(recipe, data, tmp_path / "stopped")


@pytest.mark.slow
def test_the_teacher_s_embeddings_are_computed_once(
    data: str, teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = split_pairs(open_source(data))
    recipe = dataclasses.replace(FROZEN, distillation=Distillation(teacher))
    first = next(TrainingRun(recipe, pairs["train"], pairs["validation"]).batches.epoch(0))
    monkeypatch.setattr("dual_encoder.frozen_features.run_on_pixels", None)
    monkeypatch.setattr("dual_encoder.frozen_features.run_on_texts", None)
    run = TrainingRun(recipe, pairs["train"], pairs["validation"])
    again = next(run.batches.epoch(0))
    np.testing.assert_array_equal(first["teacher_image"], again["teacher_image"])
    runtime, row = Runtime.load(teacher.path), int(again["image_row"][0])
    embedded = runtime.embed_images([run.train[row].image.read()])[0]
    np.testing.assert_allclose(again["teacher_image"][0], embedded, atol=1e-5)
    own = runtime.embed_texts(run.train[row].captions)
    assert min(np.abs(own - again["teacher_text"][0]).max(axis=1)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FROZEN, RECIPE], ids=["cached features", "pixels"])
def test_every_row_has_its_own_image_and_caption_of_the_teacher(kind: Recipe, data: str, teacher: Bundle) -> None:
    pairs = split_pairs(open_source(data))
    run = TrainingRun(
        dataclasses.replace(kind, distillation=Distillation(teacher)), pairs["train"], pairs["validation"]
    )
    runtime = Runtime.load(teacher.path)
    given = next(run.batches.epoch(1))
    shown = [run.train[int(row)] for row in given["image_row"]]
    images = runtime.embed_images([pair.image.read() for pair in shown])
    np.testing.assert_allclose(given["teacher_image"], images, atol=1e-5)
    for pair, text in zip(shown, given["teacher_text"], strict=True):
        assert np.abs(runtime.embed_texts(pair.captions) - text).max(axis=1).min() < 1e-5


@pytest.mark.slow
def test_what_cannot_be_taught_is_refused(data: str, teacher: Bundle, tmp_path: Path) -> None:
    for wrong in ({"weight": 0.0}, {"weight": 1.5}, {"temperature": 0.0}, {"teacher_scale": -1.0}):
        with pytest.raises(TrainingError, match="correct the recipe's distillation"):
            Distillation(teacher, **wrong)
    example = dataclasses.replace(FROZEN, objective=KerasExampleLoss()).with_settings(epochs=1)
    with pytest.raises(TrainingError, match="keras_example, which has none"):
        train(example, data, tmp_path / "student", teacher=teacher.path)
    unscaled = train(example, data, tmp_path / "unscaled")
    with pytest.raises(TrainingError, match="teacher_scale=20"):
        train(FROZEN, data, tmp_path / "student", teacher=unscaled.path)
    given = dataclasses.replace(FROZEN, distillation=Distillation(teacher, teacher_scale=20.0)).with_settings(epochs=1)
    student = train(given, data, tmp_path / "student", teacher=unscaled.path)
    assert student.manifest["trained"]["recipe"]["distillation"]["fingerprint"] == unscaled.fingerprint
    command = ["--recipe", "tiny_scratch", "--data", data]
    with pytest.raises(TrainingError, match="--teacher"):
        main([*command, "--out", str(teacher.path), "--teacher", str(teacher.path)])
    with pytest.raises(BundleError, match="nothing at"):
        main([*command, "--out", str(tmp_path / "other"), "--teacher", str(tmp_path / "nobody")])
