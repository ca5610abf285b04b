"""Chooses a recipe from what is known of the data and the machine, and says why; measures neither, trains nothing.

A pure function, so that the same facts give the same recipe: a run stores the facts it began with. It starts from the
recipe `openstax` and changes what size and machine ask for. Rules without a source are those of the project's own
measurements in docs/training.md, and there are none for sizes that nobody here has trained on: those say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.augmentation import Augmentation
from data.errors import TrainingError
from dual_encoder.fine_tuning import FineTuning

if TYPE_CHECKING:
    from dual_encoder.recipe import Recipe

FINE_TUNE_FROM = 20_000  # images from which an image tower gets to change, where there is a GPU
MEASURED_UP_TO = 5_000  # images of the largest data set that the rules were measured on
SHORT = 8  # words a caption; names and titles have two to four, sentences twenty
SIDED = 0.25  # share of captions that name left or right from which mirror images would teach wrong things
PROTOTYPES = 1000  # classes of the image backbone, each a row beside the images
IMAGES_PER_CORE = 85  # a second, Lite0 in ONNX Runtime on an AMD EPYC
STEPS = 120  # updates below which the heads have hardly moved
# The layers of EfficientNet-Lite0 put out 20 million numbers an image, which are held until its gradient is known.
ACTIVATIONS = 20e6
AVERAGED_FROM = 5_000  # updates, several times the span of a moving average of 0.999
CAUTIOUS_CHUNK = 64  # rows at a time on a GPU whose memory is not known


@dataclass(frozen=True)
class Machine:
    """What is there to compute with; `gpu_memory_gb` is that of the smallest GPU, 0 where it is not
    known, `compute_capability` NVIDIA's."""

    cores: int
    memory_gb: float
    gpus: int = 0
    gpu_memory_gb: float = 0.0
    compute_capability: float = 0.0


@dataclass(frozen=True)
class DataFacts:
    """Training images and their captions, validation images, the mean number of words in a caption, the share of
    captions that name left or right; and the machine."""

    images: int
    captions: int
    validation: int
    words: float
    sided: float
    machine: Machine

    def to_config(self) -> dict[str, Any]:
        """JSON form, read back by `from_config`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DataFacts:
        """The inverse of `to_config`; `TrainingError` for other keys."""
        try:
            return cls(**{**config, "machine": Machine(**config["machine"])})
        except (TypeError, KeyError) as error:
            raise TrainingError("facts as `to_config` writes them", str(error), "add --fresh to choose anew") from None


@dataclass(frozen=True)
class Choice:
    """One setting, its value and the reason, in words."""

    setting: str
    value: str
    reason: str


def choose_recipe(facts: DataFacts) -> tuple[Recipe, list[Choice]]:
    """A recipe for these facts, and every choice with its reason."""
    from dual_encoder.recipes.openstax import RECIPE as BASE
    from dual_encoder.schedules import WarmupCosine
    from dual_encoder.towers import provenance_of

    chosen = _Choices()
    tuned = _fine_tuned(facts, provenance_of(BASE.model.image_backbone).weights, chosen)
    dropout = _dropout(facts, chosen)
    prototypes = _prototypes(facts, tuned, chosen)
    rows = facts.images + PROTOTYPES * prototypes
    batch = _batch(facts, rows, tuned, chosen)
    epochs = _epochs(facts, rows // batch, tuned, chosen)
    precision = _precision(facts, tuned, chosen)
    backbone: Any = BASE.model.image_backbone
    image_head: Any = BASE.model.image_head
    text_head: Any = BASE.model.text_head
    model = dataclasses.replace(
        BASE.model,
        image_backbone=dataclasses.replace(backbone, trainable=tuned),
        image_head=dataclasses.replace(image_head, dropout=dropout),
        text_head=dataclasses.replace(text_head, dropout=dropout),
    )
    trainer = dataclasses.replace(
        BASE.trainer,
        schedule=WarmupCosine(peak=_peak_rate(tuned, chosen)),
        epochs=epochs,
        batch_size=batch,
        chunk_size=_chunk(facts, batch, precision, tuned, chosen),
        precision=precision,
        patience=_patience(epochs, chosen),
        monitor=_monitor(facts, chosen),
        fine_tuning=_fine_tuning(facts, tuned, chosen),
        average_decay=_average(epochs * (rows // batch), tuned, chosen),
    )
    mirrored = _mirrored(facts, tuned, chosen)
    recipe = dataclasses.replace(
        BASE,
        name="auto",
        model=model,
        trainer=trainer,
        class_prototypes=prototypes,
        mirrored=mirrored,
        augmentation=_augmentation(facts, tuned, chosen),
    )
    _warn(facts, tuned, mirrored, chosen)
    return recipe, chosen.made


class _Choices:
    """Notes choices as they are made."""

    def __init__(self) -> None:
        self.made: list[Choice] = []

    def note(self, setting: str, value: object, reason: str) -> Any:
        """Note a choice and give its value back."""
        shown = (
            {True: "on", False: "off"}[value]
            if isinstance(value, bool)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        self.made.append(Choice(setting, shown, reason))
        return value


def _fine_tuned(facts: DataFacts, image: str, chosen: _Choices) -> bool:
    gpus = facts.machine.gpus
    if not gpus:
        reason = "no GPU: features are computed once, and the heads learn from them within minutes"
    elif facts.images < FINE_TUNE_FROM:
        reason = f"under {FINE_TUNE_FROM:,} images a tower that changes learns them by heart"
    else:
        chosen.note("image tower", f"{image}, fine-tuned", f"{facts.images:,} images, and a GPU to do it on")
        chosen.note("text tower", "MiniLM, frozen", "it has seen a billion sentence pairs, and anchors the images")
        return True
    chosen.note("towers", f"{image} and MiniLM, frozen", reason)
    return False


def _dropout(facts: DataFacts, chosen: _Choices) -> float:
    if facts.images < 20_000 and facts.words < SHORT:
        told = f"{facts.words:.1f} words a caption: short ones say little, and less of it should be lost"
        return chosen.note("dropout", 0.3, told)
    for limit, dropout in ((20_000, 0.5), (200_000, 0.3), (2_000_000, 0.1)):
        if facts.images < limit:
            return chosen.note("dropout", dropout, f"fewer than {limit:,} images; the fewer, the more of it")
    return chosen.note("dropout", 0.0, "so many images are not learnt by heart")


def _prototypes(facts: DataFacts, tuned: bool, chosen: _Choices) -> bool:
    if tuned:
        return chosen.note("class prototypes", False, "they are features, which change with the tower")
    if facts.images >= 200_000:
        return chosen.note("class prototypes", False, "1,000 rows would not be noticed among so many images")
    return chosen.note("class prototypes", True, "ImageNet's classes and their names are 1,000 more pairs for nothing")


def _mirrored(facts: DataFacts, tuned: bool, chosen: _Choices) -> bool:
    share = f"{100 * facts.sided:.0f} % of captions name left or right"
    if tuned:
        return False  # a view of cached features; pixels are flipped by the augmentation
    if facts.sided >= SIDED:
        return chosen.note("mirror images", False, f"{share}, which a mirror image would belie")
    if facts.images >= 200_000:
        return chosen.note("mirror images", False, "they double the time for features, and there are enough images")
    return chosen.note("mirror images", True, f"a second view of each image; {share}")


def _batch(facts: DataFacts, rows: int, tuned: bool, chosen: _Choices) -> int:
    largest = 1024 if facts.images < 200_000 else 4096
    if tuned and facts.images >= 2_000_000:
        largest = 4096 * min(4, max(1, facts.machine.gpus // 2))
    batch = max(1, min(largest, _power_of_two(rows / 4)))
    reason = "at least four updates an epoch" if batch < largest else "more negatives for each pair"
    return chosen.note("batch size", batch, f"{rows:,} rows: {reason}")


def _epochs(facts: DataFacts, steps: int, tuned: bool, chosen: _Choices) -> int:
    passes = next(
        (e for limit, e in ((2_000, 40), (20_000, 30), (200_000, 20), (2_000_000, 10)) if facts.images < limit), 4
    )
    epochs = max(passes, math.ceil(STEPS / max(1, steps)))
    total = epochs * max(1, steps)
    why = f"{total:,} updates; the best epoch on the validation split is kept"
    return chosen.note("epochs", epochs, why)


def _precision(facts: DataFacts, tuned: bool, chosen: _Choices) -> Any:
    capability = facts.machine.compute_capability
    if not tuned:
        return chosen.note("precision", "float32", "heads alone gain nothing from less")
    if capability >= 8:
        return chosen.note("precision", "mixed_bfloat16", f"the GPU has it (compute capability {capability:g})")
    if capability >= 7:
        reason = f"the GPU's tensor cores have it (compute capability {capability:g}), with loss scaling"
        return chosen.note("precision", "mixed_float16", reason)
    return chosen.note("precision", "float32", f"the GPU is no faster with less (compute capability {capability:g})")


def _peak_rate(tuned: bool, chosen: _Choices) -> float:
    if tuned:
        return chosen.note("learning rate", 1e-3, "of the heads; more would shake the tower below them")
    return chosen.note("learning rate", 3e-3, "only the heads learn")


def _fine_tuning(facts: DataFacts, tuned: bool, chosen: _Choices) -> FineTuning:
    if not tuned:
        return FineTuning()
    top = 4 if facts.images < 200_000 else None
    chosen.note("layers that train", f"the top {top} groups" if top else "all", f"{facts.images:,} images")
    told = "a tenth of the heads' at the top, and 2.6 times less a group below, as in ULMFiT"
    chosen.note("tower's learning rate", "0.1, decay 1 / 2.6", told)
    return FineTuning(image_top=top, rate=0.1, rate_decay=1 / 2.6)


def _average(updates: int, tuned: bool, chosen: _Choices) -> float:
    if not tuned or updates < AVERAGED_FROM:
        return 0.0
    return chosen.note("moving average", 0.999, f"{updates:,} updates, of which it looks back over a thousand")


def _augmentation(facts: DataFacts, tuned: bool, chosen: _Choices) -> Augmentation:
    if not tuned:
        return Augmentation()
    told = f"not where captions name sides, {100 * facts.sided:.0f} % of them do, or writing"
    chosen.note("augmentation", "crop to half, flip", f"pixels vary from epoch to epoch; flipped {told}")
    return Augmentation(crop=0.5, flip=True)


def _chunk(facts: DataFacts, batch: int, precision: str, tuned: bool, chosen: _Choices) -> int:
    if not tuned:
        return 0
    share = math.ceil(batch / max(1, facts.machine.gpus))
    memory = facts.machine.gpu_memory_gb
    if memory:
        row = ACTIVATIONS * (4 if precision == "float32" else 2)
        fits = _power_of_two(memory * 1e9 / 2 / row)
        told = f"about {row / 1e6:.0f} MB a row, so {fits:,} fit in half of {memory:.0f} GB"
    else:
        fits, told = CAUTIOUS_CHUNK, "the GPU's memory is not known"
    if share <= fits:
        return chosen.note("chunk size", 0, f"{told}: a GPU's {share:,} rows go in one pass")
    return chosen.note("chunk size", fits, f"{told}; the rest of the batch by gradient caching")


def _patience(epochs: int, chosen: _Choices) -> int:
    return chosen.note("patience", max(3, epochs // 3), "a third of the epochs without a better one end the run")


def _monitor(facts: DataFacts, chosen: _Choices) -> Any:
    sure = 98 / math.sqrt(max(1, facts.validation))
    told = f"{facts.validation:,} validation images"
    if facts.validation < 100:
        return chosen.note("best epoch by", "loss", f"{told}: recall is sure to ± {sure:.0f} points only; add to them")
    return chosen.note("best epoch by", "recall", f"{told}: recall is sure to ± {sure:.1f} points or better")


def _warn(facts: DataFacts, tuned: bool, mirrored: bool, chosen: _Choices) -> None:
    """Note what no setting mends."""
    if facts.images > MEASURED_UP_TO:
        known = f"the rules were measured on up to {MEASURED_UP_TO:,} images; compare with other settings on validation"
        chosen.note("mind", "size", known)
    if tuned:
        return
    images = facts.images * (2 if mirrored else 1)
    hours = images / (IMAGES_PER_CORE * facts.machine.cores) / 3600
    if hours > 1 and not facts.machine.gpus:
        told = f"at {IMAGES_PER_CORE} images a second and core, as measured on one machine"
        chosen.note("mind", "time", f"features take about {hours:,.0f} hours, once, {told}")
    needed = 4e-9 * (images * 1280 + facts.captions * 384)
    if needed > facts.machine.memory_gb / 2:
        told = f"features take {needed:,.0f} GB of {facts.machine.memory_gb:,.0f} GB memory"
        chosen.note("mind", "memory", f"{told}: train on a part of the data, or on a larger machine")


def _power_of_two(value: float) -> int:
    """The largest power of two that is not above `value`, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
