"""An experiment as an object: model, objective and training settings; knows no data set.

A recipe is a Python file with a `RECIPE`; those of this project are in `dual_encoder/recipes/`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data.augmentation import Augmentation
from data.errors import TrainingError
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.fine_tuning import FineTuning

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle
    from dual_encoder.distillation import Distillation
    from dual_encoder.losses import Objective
    from dual_encoder.model import DualEncoderConfig
    from dual_encoder.schedules import Schedule

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of the training loop.

    `schedule` gives the learning rate; `weight_decay` is AdamW's, decoupled and multiplied by the rate, and spares
    biases, norms, the scale and embeddings of positions unless `decay_all`. Training stops after `patience` epochs
    without a better `monitor` (0: never), and the best epoch's weights are kept.

    With `chunk_size`, a batch goes through the towers that many rows at a time and every row still meets every other in
    the objective (`gradient_cache`): memory of a small batch, negatives of a large one, for a second forward pass. 0 is
    one pass.

    With `average_decay` (0.999 is usual for long runs), an exponential moving average of the weights is what is
    validated, kept and exported. `interpolate` gives shares of the way from the weights at the start to the best
    epoch's (WiSE-FT): one is taken as it is, of several the one with the best `monitor` on the validation split.
    """

    schedule: Schedule
    epochs: int = 30
    batch_size: int = 256
    chunk_size: int = 0
    weight_decay: float = 0.01
    decay_all: bool = False
    seed: int = 0
    patience: int = 10
    monitor: Literal["recall", "loss"] = "recall"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    fine_tuning: FineTuning = FineTuning()
    average_decay: float = 0.0
    interpolate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings with which no step can be taken."""
        if min(self.epochs, self.batch_size) < 1 or min(self.patience, self.chunk_size) < 0:
            raise TrainingError(
                "epochs and batch_size of at least 1, patience and chunk_size of at least 0",
                f"epochs {self.epochs}, batch_size {self.batch_size}, patience {self.patience}, "
                f"chunk_size {self.chunk_size}",
                "correct the recipe or the command line",
            )
        if not 0 <= self.average_decay < 1 or any(not 0 <= alpha <= 1 for alpha in self.interpolate):
            raise TrainingError(
                "an average_decay in [0, 1) and shares to interpolate in [0, 1]",
                f"average_decay {self.average_decay}, interpolate {self.interpolate}",
                "correct the recipe",
            )


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    `class_prototypes` adds the rows of the image backbone's classifier, paired with the names and descriptions of
    their classes, to the training pairs. `mirrored` adds the mirror image of each image as a second view. With
    `group_positives`, images of one group (near-duplicates, where the data set names them) match each other's captions
    in a batch, as one image's do. `choose_bridge` takes temperature and number of classes of an `AnchoredHead`'s bridge
    from the validation split (`bridge_choice`) instead of the head's settings. `hubness_correction` takes images that
    stand near every query down where that helps on the validation split (`hubness`). `augmentation` varies images and
    captions from epoch to epoch, where the backbone they go through trains. `start` is the bundle whose weights and
    tokeniser training begins with; `model` then has its towers (`starting_bundle.start_from`). With `distillation`,
    the model learns from another one's similarities too.
    """

    name: str
    model: DualEncoderConfig
    objective: Objective
    trainer: TrainerConfig
    class_prototypes: bool = False
    mirrored: bool = False
    group_positives: bool = False
    choose_bridge: bool = False
    hubness_correction: bool = True
    augmentation: Augmentation = Augmentation()
    start: Bundle | None = None
    distillation: Distillation | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def with_settings(self, **settings: Any) -> Recipe:
        """A copy with other trainer settings; None leaves one as it is."""
        changed = {key: value for key, value in settings.items() if value is not None}
        return dataclasses.replace(self, trainer=dataclasses.replace(self.trainer, **changed))


def recipe_names() -> list[str]:
    """The recipes that come with the project; reads file names only."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def check_named(name: str) -> None:
    """Refuse what is neither the name of a recipe nor a Python file; loads nothing."""
    path = Path(name)
    if name not in recipe_names() and (path.suffix != ".py" or not path.is_file()):
        raise TrainingError(
            f"a recipe among {', '.join(recipe_names())}, or a Python file", repr(name), "see --help for the names"
        )


def load_recipe(name: str) -> Recipe:
    """The recipe of a name, or of a path to a Python file of the user's own that defines `RECIPE`."""
    check_named(name)
    load_tensorflow()
    if name in recipe_names():
        return importlib.import_module(f"dual_encoder.recipes.{name}").RECIPE
    path = Path(name)
    # Registered under a name that hides no other module: dataclasses look their module up.
    spec = importlib.util.spec_from_file_location(f"recipe_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise TrainingError("a file that defines RECIPE, a Recipe", f"{path} without it", "copy one of the recipes")
    return recipe
