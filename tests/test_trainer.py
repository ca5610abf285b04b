"""Training learns, stops at the best epoch, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from server_process import ROOT
from tiny_training import EPOCHS, STEPS, Batches, everything, recall_at_1, trainer

import dual_encoder.trainer
from data.errors import TrainingError
from dual_encoder.losses import InfoNCE
from dual_encoder.schedules import WarmupCosine
from dual_encoder.trainer import CHECKPOINT, Trainer

DRIVER = [sys.executable, str(ROOT / "tests" / "trainer_driver.py")]


def at(*steps: int) -> Callable[[int], None]:
    """Press Ctrl-C, once, at each of these steps of the run."""
    left = set(steps)

    def before(step: int) -> None:
        if step in left:
            left.discard(step)
            os.kill(os.getpid(), signal.SIGINT)

    return before


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run that nothing interrupts."""
    run = trainer(tmp_path_factory.mktemp("straight"))
    run.fit()
    return run


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was stopped in its third step."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        trainer(directory, before=at(2)).fit()
    return directory


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of that run's directory, to spoil."""
    return Path(shutil.copytree(stopped_run, tmp_path / "stopped"))


def assert_same_run(resumed: Trainer, straight: Trainer) -> None:
    assert resumed.progress == straight.progress
    left, expected = everything(resumed), everything(straight)
    assert left.keys() == expected.keys()
    assert [name for name in left if left[name] != expected[name]] == []


def test_a_run_is_repeated_bit_by_bit(tmp_path: Path, straight: Trainer) -> None:
    again = trainer(tmp_path)
    again.fit()
    assert_same_run(again, straight)


def test_another_seed_is_another_run(tmp_path: Path, straight: Trainer) -> None:
    other = trainer(tmp_path, seed=5)
    other.fit()
    assert everything(other)["model/image_head/0000"] != everything(straight)["model/image_head/0000"]


def test_dropout_is_on_and_its_generator_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    head = run.model.image_head
    states = [v for v in head.variables if "seed" in v.path]
    assert len(states) == 1
    assert any(v is states[0] for v in run._checkpoint_variables().values())
    x = np.ones((4, 16), np.float32)
    assert np.abs(np.asarray(head(x, training=True)) - np.asarray(head(x, training=False))).max() > 1e-3


# In the middle of an epoch, the last step of one, the very last; and the first of all, the first of the second epoch.
@pytest.mark.parametrize(
    "step", [STEPS + 1, STEPS - 1, EPOCHS * STEPS - 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, STEPS))]
)
def test_a_run_stopped_by_ctrl_c_goes_on_bit_by_bit(tmp_path: Path, straight: Trainer, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, before=at(step)).fit()
    seen: list[int] = []
    resumed = trainer(tmp_path, before=seen.append)
    resumed.fit()
    assert seen == list(range(step + 1, EPOCHS * STEPS)), "only what was left is done"
    assert_same_run(resumed, straight)


@pytest.mark.slow
def test_a_run_stopped_again_and_again_goes_on_bit_by_bit(tmp_path: Path, straight: Trainer) -> None:
    for step in (1, 2, 7):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path, before=at(step)).fit()
    resumed = trainer(tmp_path)
    resumed.fit()
    assert_same_run(resumed, straight)


def test_ctrl_c_works_as_before_once_training_is_over(straight: Trainer) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    def impatient(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one was not heard")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, before=impatient).fit()


def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, straight: Trainer) -> None:
    last = random.randrange(3, EPOCHS * STEPS)  # anywhere: kill -9 asks nobody
    with subprocess.Popen(
        [*DRIVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            told = [process.stdout.readline() for _ in range(last + 1)]
            process.kill()
            assert told[-1] == f"step {last}\n", process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    seen: list[int] = []
    resumed = trainer(tmp_path, before=seen.append)
    resumed.fit()
    assert len(seen) <= EPOCHS * STEPS - last + 1, f"killed in step {last}, yet {len(seen)} steps were done again"
    assert_same_run(resumed, straight)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, straight: Trainer) -> None:
    trainer(tmp_path).fit()
    seen: list[int] = []
    again = trainer(tmp_path, before=seen.append)
    again.fit()
    assert seen == []
    assert_same_run(again, straight)


def test_a_checkpoint_of_another_run_is_refused_and_kept(stopped: Path) -> None:
    kept = (stopped / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError) as refused:
        trainer(stopped, run_key="another").fit()
    assert "'tiny' instead of 'another'" in refused.value.received
    assert "--fresh" in refused.value.next_step
    assert (stopped / CHECKPOINT).read_bytes() == kept


@pytest.mark.parametrize("keep", [0, 7, 400, -1])
def test_a_cut_checkpoint_is_refused_and_named(stopped: Path, keep: int) -> None:
    path = stopped / CHECKPOINT
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError) as refused:
        trainer(stopped).fit()
    assert str(path) in refused.value.next_step


def test_a_checkpoint_with_a_changed_byte_is_refused_and_named(stopped: Path) -> None:
    path = stopped / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1  # the least bit of a weight
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="changed bytes") as refused:
        trainer(stopped).fit()
    assert str(path) in refused.value.next_step


@pytest.fixture
def no_room() -> Iterator[Callable[[int], None]]:
    """Limits the size of files, which acts like a full disk, and lifts the limit at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_checkpoint_to_go_on_from(
    tmp_path: Path, straight: Trainer, no_room: Callable[[int], None]
) -> None:
    def fill(step: int) -> None:
        if step == STEPS + 2:  # a checkpoint of the first epoch is there
            no_room((tmp_path / CHECKPOINT).stat().st_size // 2)

    with pytest.raises(OSError, match="File too large") as failed:
        trainer(tmp_path, before=fill).fit()
    assert Path(failed.value.filename).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [CHECKPOINT]
    no_room(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    seen: list[int] = []
    resumed = trainer(tmp_path, before=seen.append)
    resumed.fit()
    assert seen == list(range(STEPS, EPOCHS * STEPS))
    assert_same_run(resumed, straight)


def test_training_stops_after_patience_and_restores_the_best_epoch(tmp_path: Path) -> None:
    snapshots: list[list[np.ndarray]] = []

    def watch(model) -> None:
        snapshots.append([np.asarray(weight).copy() for weight in model.trainable_variables])

    recalls = [0.1, 0.5, 0.5, 0.3, 0.9, 0.9]  # an equal figure is no better one
    run = trainer(tmp_path, recalls=recalls, watch=watch, epochs=6, patience=2)
    progress = run.fit()
    assert (len(progress.history), progress.best_epoch) == (4, 1)
    for weight, best, last in zip(run.model.trainable_variables, snapshots[1], snapshots[3], strict=True):
        np.testing.assert_array_equal(np.asarray(weight), best)
        assert np.abs(best - last).max() > 0


def test_without_patience_every_epoch_is_trained(tmp_path: Path) -> None:
    progress = trainer(tmp_path, recalls=[0.9, 0.1, 0.1, 0.1], epochs=4, patience=0).fit()
    assert (len(progress.history), progress.best_epoch) == (4, 0)


def test_the_loss_can_choose_the_best_epoch(tmp_path: Path) -> None:
    progress = trainer(tmp_path, recalls=[0.9, 0.2, 0.1], monitor="loss").fit()
    losses = [row["validation_loss"] for row in progress.history]
    assert progress.best_epoch == int(np.argmin(losses)) != 0


def test_a_loss_that_is_no_number_ends_the_run_clearly_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def poison(step: int) -> None:
        if step == STEPS + 1:
            batches.image_views[0][:] = np.nan

    run = trainer(tmp_path)
    batches = run.batches = Batches(poison)
    with pytest.raises(TrainingError, match="a finite loss; received nan in epoch 2; lower the learning rate"):
        run.fit()
    kept = trainer(tmp_path)
    kept._restore()
    assert (kept.progress.epoch, kept.progress.step) == (1, 0)
    assert all(np.isfinite(np.asarray(variable)).all() for variable in kept.model.trainable_variables)


def test_weights_spoiled_by_the_last_step_are_noticed_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, schedule=WarmupCosine(peak=math.inf, warmup=1.0), epochs=1)
    run.batches.steps_per_epoch = 1
    with pytest.raises(TrainingError, match="a finite validation loss; received nan in epoch 1"):
        run.fit()


def test_the_rate_follows_the_schedule_from_step_to_step(tmp_path: Path) -> None:
    rates: list[float] = []
    run = trainer(tmp_path)
    run.batches = Batches(lambda step: rates.append(float(run.optimizer.learning_rate.numpy())))
    run.fit()
    schedule = WarmupCosine(peak=0.02)
    total = EPOCHS * STEPS
    assert rates[1:] == pytest.approx([schedule.learning_rate(step, total, []) for step in range(total - 1)], rel=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps_also_when_it_was_resumed(tmp_path: Path) -> None:
    losses: list[float] = []

    def recording(run: Trainer) -> Trainer:
        step = run._step

        def record(batch):
            losses.append(float(step(batch)))
            return losses[-1]

        run._step = record
        return run

    with pytest.raises(KeyboardInterrupt):
        recording(trainer(tmp_path, before=at(STEPS + 1))).fit()
    history = recording(trainer(tmp_path)).fit().history
    means = np.reshape(losses, (EPOCHS, STEPS)).mean(axis=1)
    assert [row["loss"] for row in history] == pytest.approx(means.tolist())


def test_weight_decay_spares_biases_norms_and_the_scale_unless_told(tmp_path: Path) -> None:
    for decay_all in (False, True):
        run = trainer(tmp_path, decay_all=decay_all, weight_decay=0.3)
        names = [variable.name for variable in run.model.trainable_variables]
        decayed = [settings.weight_decay == 0.3 for settings in run.optimizer.settings]
        assert sorted(names) == ["kernel", "kernel", "log_scale"]
        assert decayed == [decay_all or name == "kernel" for name in names]


def test_the_scale_stays_within_the_limit_of_its_objective_and_can_fall_from_it(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.objective = InfoNCE(max_scale=2.0)  # the model starts at 5
    scales = [row["scale"] for row in run.fit().history]
    assert max(scales) <= 2.0 * (1 + 1e-6)
    assert min(scales) < 1.99, "an untrained model wants a lower scale, so the limit must not hold it"


def test_tensorboard_sees_every_figure_of_every_epoch(straight: Trainer) -> None:
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    seen: dict[str, dict[int, float]] = {}
    for path in sorted((straight.directory / "tensorboard").glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                seen.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert set(seen) == {"loss", "learning_rate", "scale", "validation_loss", "validation_recall"}
    for name, values in seen.items():
        assert values == pytest.approx({epoch: row[name] for epoch, row in enumerate(straight.progress.history)})


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_every_precision_learns(tmp_path: Path, precision: str) -> None:
    run = trainer(tmp_path, epochs=25, patience=0, precision=precision, monitor="loss")
    before = recall_at_1(run.model)
    progress = run.fit()
    assert before < 0.3
    assert recall_at_1(run.model) > 0.8
    assert progress.history[-1]["loss"] < progress.history[0]["loss"] / 2
    assert run.model.image_head.compute_dtype == precision.removeprefix("mixed_")


def test_loss_scaling_is_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = trainer(tmp_path / "straight", precision="mixed_float16")
    straight.fit()
    monkeypatch.setattr(dual_encoder.trainer, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", precision="mixed_float16", before=at(6)).fit()
    resumed = trainer(tmp_path / "stopped", precision="mixed_float16")
    resumed.fit()
    assert_same_run(resumed, straight)
    assert float(resumed.optimizer.dynamic_scale.numpy()) > 1
    assert int(resumed.optimizer.step_counter.numpy()) + int(resumed.optimizer.iterations.numpy()) > EPOCHS * STEPS


def test_progress_is_plain_json(straight: Trainer) -> None:
    assert json.loads(json.dumps(straight.progress.__dict__)) == straight.progress.__dict__
