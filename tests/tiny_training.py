"""A training problem of a few kilobytes for tests of the loop, the bundle and the cache; knows no published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from data.text import CaptionTokenizer
from dual_encoder.feature_batches import FeatureBatches
from dual_encoder.losses import InfoNCE, positive_mask
from dual_encoder.metrics import retrieval_metrics
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.scratch import ScratchImage, ScratchText
from dual_encoder.trainer import Trainer

IMAGE = ScratchImage(size=16, width=8, stages=2, depth=1, trainable=False)
TEXT = ScratchText(vocabulary_size=60, width=16, layers=1, heads=2, max_tokens=12, trainable=False)
CONFIG = DualEncoderConfig(IMAGE, TEXT, LinearHead(12, dropout=0.3), LinearHead(12, dropout=0.3))
WORDS = ["red", "green", "blue", "circle", "square", "triangle", "small", "large"]
IMAGES = 24
STEPS = 4  # an epoch
EPOCHS = 3


def settings(**changes: Any) -> TrainerConfig:
    return TrainerConfig(**{"schedule": WarmupCosine(peak=0.02), "epochs": EPOCHS, "batch_size": 6, **changes})


def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.trained([" ".join(WORDS)], vocabulary_size=60, max_tokens=12)


def features() -> tuple[np.ndarray, np.ndarray]:
    """Features of images (N, 16) and captions (N, 16) that a linear map can bring together."""
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(IMAGES, 16))
    image = meaning @ generator.normal(size=(16, 16)) + 0.1 * generator.normal(size=(IMAGES, 16))
    return image.astype(np.float32), meaning.astype(np.float32)


class Batches(FeatureBatches):
    """The problem's batches; `before(step)` is called before each is given, steps counted over the whole run."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        image, text = features()
        captions = [f"caption {number}" for number in range(IMAGES)]
        super().__init__([image], text, [[n] for n in range(IMAGES)], captions, batch_size=6, seed=1)
        self.before = before

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        for step, batch in enumerate(super().epoch(epoch, start), start):
            self.before(epoch * self.steps_per_epoch + step)
            yield batch


def trainer(
    directory: Path,
    before: Callable[[int], None] = lambda step: None,
    recalls: Sequence[float] = (),
    run_key: str = "tiny",
    watch: Callable[[DualEncoder], None] = lambda model: None,
    **changes: Any,
) -> Trainer:
    """A trainer of the problem. `recalls` scripts the validation recall; `watch` sees the model after each epoch."""
    config = settings(**changes)
    keras.utils.set_random_seed(config.seed)
    objective = InfoNCE(initial_scale=5.0)
    model = DualEncoder(CONFIG, objective.initial_scale, precision=config.precision)
    scripted = iter(recalls)

    def validate() -> dict[str, float]:
        watch(model)
        image, text = project(model)
        rows = np.arange(IMAGES)
        loss = float(objective(image, text, model.log_scale, positive_mask(rows, rows)))
        return {"recall": next(scripted, -loss), "loss": loss}

    return Trainer(model, objective, config, Batches(before), validate, directory, run_key)


def project(model: DualEncoder) -> tuple[np.ndarray, np.ndarray]:
    image, text = features()
    return (
        np.asarray(model.image_head(image, training=False), np.float32),
        np.asarray(model.text_head(text, training=False), np.float32),
    )


def recall_at_1(model: DualEncoder) -> float:
    image, text = project(model)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return retrieval_metrics(image, text, np.arange(IMAGES))["text_to_image"]["recall@1"]


def everything(trainer: Trainer) -> dict[str, bytes]:
    """Every bit that a run leaves: weights, generator states, optimizer, the best epoch's weights."""
    variables = {**trainer._checkpoint_variables(), **{f"best/{name}": array for name, array in trainer.best.items()}}
    return {name: np.asarray(variable).tobytes() for name, variable in variables.items()}
