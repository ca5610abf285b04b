"""Training throughput: a pair of Transformers against OpenCLIP, cached features against the Keras example's way.

python -m benchmarks.training_speed --json build/training_speed.json

Everything runs on random data in memory and takes turns on the same cores, a few steps each; figures are medians over
the turns. Ours goes through the trainer, as `python -m dual_encoder.train` does. The peers' environment is made by
`make peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_process import DEFAULT_PYTHON, PeerProcess, peer_python
from benchmarks.report import Report, argument_parser
from data import console
from data.quiet_tensorflow import load_tensorflow

if TYPE_CHECKING:
    from dual_encoder.feature_batches import Batches
    from dual_encoder.losses import Objective
    from dual_encoder.model import DualEncoderConfig

IMAGE = {"size": 112, "patch": 16, "width": 192, "layers": 6, "heads": 3}
TEXT = {"length": 32, "vocabulary": 8192, "width": 192, "layers": 4, "heads": 3}
BATCH = 64
EMBEDDING_DIM = 192
STEPS = 4  # a turn
FEATURES_BATCH = 256  # the Keras example's
FEATURES_ROWS = 10_240

OPEN_CLIP_TASKS = ("scratch_pair", "frozen_text", "frozen_text_recomputed")
CACHED = "cached_features"
EXAMPLE = "the example's way"
# Task → whose images a second must reach how many times whose.
CHECKS = {
    "scratch_pair": ("ours", "open_clip", 1.0),
    "frozen_text": ("ours", "open_clip", 1.0),
    CACHED: ("keras_example", EXAMPLE, 100.0),
}

Turn = Callable[[], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, check the promised ratios."""
    options = _options(argv)
    python = peer_python(options.peer_python) if set(options.tasks) & set(OPEN_CLIP_TASKS) else None
    load_tensorflow()
    _limit_threads(options.threads)
    figures = {}
    for task in options.tasks:
        console.say(task.replace("_", " "))
        figures[task] = (
            _against_keras_example(options.turns)
            if python is None or task == CACHED
            else (_against_open_clip(options, python, task))
        )
    report = Report(
        "training_speed", {"image": IMAGE, "text": TEXT, "batch": BATCH, "threads": options.threads, **figures}
    )
    _print(figures)
    for task, (ours, theirs, target) in CHECKS.items():
        if task in figures:
            report.at_least(f"{task.replace('_', ' ')}: {ours} / {theirs}", _ratio(figures[task], ours, theirs), target)
    return report.finish(options.json)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("training_speed", __doc__)
    help_ = f"interpreter of the environment with benchmarks/requirements.txt, default {DEFAULT_PYTHON}"
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH", help=help_)
    parser.add_argument("--turns", type=int, default=7, help="of each contestant, default 7")
    tasks = (*OPEN_CLIP_TASKS, CACHED)
    parser.add_argument(
        "--tasks", nargs="+", choices=tasks, default=tasks, metavar="TASK", help=f"of {', '.join(tasks)}"
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="of each contestant, default all cores")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile, which takes minutes to compile")
    return parser.parse_args(argv)


def _limit_threads(threads: int) -> None:
    """Ours and the example's; the peers are told theirs."""
    import tensorflow as tf

    if threads != os.cpu_count():
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _against_open_clip(options: argparse.Namespace, python: Path, task: str) -> dict[str, Any]:
    """Images a second in each turn, by contestant."""
    frozen = task != "scratch_pair"
    settings = {
        "image": IMAGE,
        "text": TEXT,
        "batch": BATCH,
        "embedding_dim": EMBEDDING_DIM,
        "frozen_text": frozen,
        "threads": options.threads,
    }
    with contextlib.ExitStack() as stack:
        peers = {}
        for name, compiled in [("open_clip", False), *([("open_clip, compiled", True)] if options.compiled else [])]:
            peers[name] = PeerProcess(python, "open_clip_training.py", {**settings, "compile": compiled})
            stack.callback(peers[name].close)
        turns = {name: _turn(peer) for name, peer in peers.items()}
        rates = _interleaved(_towers(frozen), RandomBatches(task), turns, BATCH * STEPS, options.turns)
        return {"rates": rates, "peer": peers["open_clip"].about}


def _turn(peer: PeerProcess) -> Turn:
    return lambda: peer.seconds(STEPS)


def _towers(frozen_text: bool) -> DualEncoderConfig:
    from dual_encoder.model import DualEncoderConfig
    from dual_encoder.projection_head import LinearHead
    from dual_encoder.towers.scratch import ScratchText
    from dual_encoder.towers.vision_transformer import VisionTransformer

    text = ScratchText(
        TEXT["vocabulary"],
        TEXT["width"],
        TEXT["layers"],
        TEXT["heads"],
        TEXT["length"],
        dropout=0.0,
        trainable=not frozen_text,
    )
    return DualEncoderConfig(VisionTransformer(**IMAGE), text, LinearHead(EMBEDDING_DIM), LinearHead(EMBEDDING_DIM))


def _interleaved(
    model: DualEncoderConfig,
    batches: Batches,
    others: Mapping[str, Turn],
    images: int,
    turns: int,
    objective: Objective | None = None,
    name: str = "ours",
) -> dict[str, list[float]]:
    """Train for `turns` epochs, after one that warms up, and let `others` have a turn after each.

    Gives images a second, where an epoch and a turn of another are `images` images.
    """
    import keras

    from dual_encoder.losses import InfoNCE
    from dual_encoder.model import DualEncoder
    from dual_encoder.recipe import TrainerConfig
    from dual_encoder.schedules import WarmupCosine
    from dual_encoder.trainer import Trainer

    keras.utils.set_random_seed(0)
    objective = objective or InfoNCE()
    timed = TimedEpochs(batches, others)
    config = TrainerConfig(WarmupCosine(peak=1e-4), epochs=turns + 1, batch_size=BATCH, patience=0)
    figures = {"recall": 0.0, "loss": 0.0}  # validation is not what is measured
    with tempfile.TemporaryDirectory() as directory:
        built = DualEncoder(model, objective.initial_scale, initial_bias=objective.initial_bias)
        Trainer(built, objective, config, timed, lambda: figures, Path(directory), "speed").fit()
    rates = {name: timed.seconds, **timed.others_seconds}
    return {contestant: [images / seconds for seconds in every] for contestant, every in rates.items()}


class TimedEpochs:
    """Batches of another, each epoch's training timed; the first is left out. `others` take turns in between."""

    def __init__(self, batches: Batches, others: Mapping[str, Turn]) -> None:
        self.batches, self.others = batches, others
        self.steps_per_epoch = batches.steps_per_epoch
        self.seconds: list[float] = []
        self.others_seconds: dict[str, list[float]] = {name: [] for name in others}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`; what is timed includes making the batches."""
        began = time.perf_counter()
        yield from self.batches.epoch(epoch, start)
        seconds = time.perf_counter() - began
        others = {name: turn() for name, turn in self.others.items()}
        if epoch:
            self.seconds.append(seconds)
            for name, value in others.items():
                self.others_seconds[name].append(value)


class RandomBatches:
    """The same random pixels and full-length captions at every step, or text features for a tower that is cached."""

    steps_per_epoch = STEPS

    def __init__(self, task: str) -> None:
        generator = np.random.default_rng(0)
        rows, size = np.arange(BATCH, dtype=np.int32), IMAGE["size"]
        pixels = generator.standard_normal((BATCH, size, size, 3), np.float32)
        self.batch: dict[str, Any] = {"image": pixels, "image_row": rows, "caption_group": rows}
        if task == "frozen_text":
            self.batch["text_features"] = generator.standard_normal((BATCH, TEXT["width"]), np.float32)
        else:
            self.batch["ids"] = generator.integers(1, TEXT["vocabulary"], (BATCH, TEXT["length"]), np.int32)
            self.batch["mask"] = np.ones((BATCH, TEXT["length"]), np.int32)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`."""
        yield from [self.batch] * (STEPS - start)


def _against_keras_example(turns: int) -> dict[str, Any]:
    """Images a second of the recipes' heads on cached features, and of the example's recipe through its backbones."""
    from dual_encoder.recipe import load_recipe

    rates: dict[str, list[float]] = {}
    for name in ("openstax", "keras_example"):
        recipe = load_recipe(name)
        batches = _feature_batches()
        others = {} if name == "openstax" else {EXAMPLE: _through_backbones(recipe.model, recipe.objective)}
        found = _interleaved(recipe.model, batches, others, FEATURES_ROWS, turns, recipe.objective, name)
        rates.update({contestant: every for contestant, every in found.items() if contestant != EXAMPLE})
        if others:  # a turn of these is one batch
            share = FEATURES_BATCH / FEATURES_ROWS
            rates[EXAMPLE] = [rate * share for rate in found[EXAMPLE]]
    return {"rates": rates}


def _feature_batches() -> Batches:
    from dual_encoder.feature_batches import FeatureBatches

    generator = np.random.default_rng(0)
    images = generator.standard_normal((FEATURES_ROWS, 1280), np.float32)
    texts = generator.standard_normal((FEATURES_ROWS, 384), np.float32)
    captions = [f"caption {number}" for number in range(FEATURES_ROWS)]
    return FeatureBatches([images], texts, [[n] for n in range(FEATURES_ROWS)], captions, FEATURES_BATCH, seed=0)


def _through_backbones(config: DualEncoderConfig, objective: Objective) -> Turn:
    """One step as in the example: pixels and tokens through frozen backbones in TensorFlow, gradients of the heads."""
    import keras
    import tensorflow as tf

    from dual_encoder.losses import Matches
    from dual_encoder.model import DualEncoder

    model = DualEncoder(config, objective.initial_scale)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1.0)
    variables = model.trainable_variables
    optimizer.build(variables)
    generator = np.random.default_rng(0)
    pixels = tf.constant(generator.standard_normal((FEATURES_BATCH, 224, 224, 3), np.float32))
    ids = tf.constant(generator.integers(1000, 30_000, (FEATURES_BATCH, 16), np.int32))
    rows = tf.range(FEATURES_BATCH)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            image = model.image_head(model.image_backbone(pixels, training=False), training=True)
            tokens = {"ids": ids, "mask": tf.ones_like(ids)}
            text = model.text_head(model.text_backbone(tokens, training=False), training=True)
            loss = objective(image, text, model.log_scale, Matches(rows, rows))
        gradients = tape.gradient(loss, variables)
        # The example's loss has no learned scale.
        optimizer.apply_gradients([pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None])
        return loss

    def turn() -> float:
        began = time.perf_counter()
        float(step())
        return time.perf_counter() - began

    return turn


def _ratio(figures: Mapping[str, Any], ours: str, theirs: str) -> float:
    """Median of the ratios of turns that followed each other."""
    pairs = zip(figures["rates"][ours], figures["rates"][theirs], strict=True)
    return statistics.median(our / their for our, their in pairs)


def _print(figures: Mapping[str, dict[str, Any]]) -> None:
    table = []
    for task, row in figures.items():
        slowest = min(row["rates"].values(), key=statistics.median)
        for contestant, rates in row["rates"].items():
            median = statistics.median(rates)
            spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
            ratio = f"{median / statistics.median(slowest):.2f}"
            table.append([task.replace("_", " "), contestant, f"{median:,.0f}", spread, ratio])
    heads = ["task", "contestant", "images/s", "turns", "to the slowest"]
    console.print_table("training throughput", heads, table)


if __name__ == "__main__":
    console.run(main)
