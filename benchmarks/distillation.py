"""What a teacher brings: the `openstax` recipe with and without one that has a larger image tower.

python -m benchmarks.distillation --seeds 3 --json build/distillation.json

The teacher is the same recipe on EfficientNet-Lite2, or a bundle of your own. Weight and temperature are chosen on the
validation split, then the test split is read once, for the chosen ones.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report import Report, argument_parser
from benchmarks.training_quality import default_data
from data import console
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle
    from dual_encoder.recipe import Recipe

DIRECTIONS = ("text_to_image", "image_to_text")
SHOWN = [(direction, f"recall@{k}") for direction in DIRECTIONS for k in (1, 10)]
COLUMNS = ["", "seeds", "t→i R@1 %", "t→i R@10 %", "i→t R@1 %", "i→t R@10 %"]
Runs = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Train the teacher, students of every setting, and print what the validation split and then the test split say."""
    parser = argument_parser("distillation", __doc__)
    parser.add_argument("--data", metavar="SOURCE", help="(default: $DATASETS_DIR/openstax)")
    parser.add_argument("--teacher", metavar="BUNDLE", help="instead of the one that is trained on EfficientNet-Lite2")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--choice-seeds", type=int, default=1, help="how many to choose by (default: %(default)s)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 0.9], metavar="W")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 3.0], metavar="T")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    options = parser.parse_args(argv)
    load_tensorflow()
    from dual_encoder.bundle import open_bundle
    from dual_encoder.distillation import Distillation
    from dual_encoder.recipe import load_recipe
    from dual_encoder.train import train

    source = options.data or default_data()[0]
    splits, student = split_pairs(open_source(source)), load_recipe("openstax").with_settings(epochs=options.epochs)
    with tempfile.TemporaryDirectory() as directory:
        given = options.teacher
        teacher = open_bundle(given) if given else train(larger(student), source, Path(directory) / "teacher")

        def taught(weight: float, temperature: float) -> Recipe:
            return dataclasses.replace(student, distillation=Distillation(teacher, weight, temperature))

        settings = [(w, t) for w in options.weights for t in options.temperatures]
        tried = {name: _trained(taught(*name), splits, "validation", options.choice_seeds) for name in settings}
        best = max(tried, key=lambda name: _score(tried[name]))
        label = f"weight {best[0]:g}, temperature {best[1]:g}"
        test = {
            "no teacher": _trained(student, splits, "test", options.seeds),
            "the teacher": [_figures_of(teacher, splits["test"])],
            label: _trained(taught(*best), splits, "test", options.seeds),
        }
        validation = {
            "no teacher": _trained(student, splits, "validation", options.choice_seeds),
            "the teacher": [_figures_of(teacher, splits["validation"])],
            **{f"weight {w:g}, temperature {t:g}": runs for (w, t), runs in tried.items()},
        }
    report = Report("distillation", {"data": source, "chosen": label, "validation": validation, "test": test})
    for split, rows in (("validation", validation), ("test", test)):
        table = [[name, len(runs), *(_cell(runs, *shown) for shown in SHOWN)] for name, runs in rows.items()]
        console.print_table(f"{split} split, mean ± spread of seeds", COLUMNS, table)
    for metric in ("recall@1", "recall@10"):
        taught_mean, alone = (_mean(test[name], "text_to_image", metric) for name in (label, "no teacher"))
        ratio = taught_mean / alone if alone else 1.0
        report.at_least(f"{metric} with a teacher / without, test", ratio, 1.0)
    return report.finish(options.json)


def larger(recipe: Recipe) -> Recipe:
    """The teacher's recipe: the student's on EfficientNet-Lite2."""
    from dual_encoder.towers.efficientnet_lite import EfficientNetLite

    model = dataclasses.replace(recipe.model, image_backbone=EfficientNetLite("lite2"))
    return dataclasses.replace(recipe, name=f"{recipe.name} on lite2", model=model)


def _trained(recipe: Recipe, splits: dict[str, Any], measured: str, seeds: int) -> Runs:
    from dual_encoder.training_run import TrainingRun

    runs = []
    for seed in range(seeds):
        run = TrainingRun(recipe.with_settings(seed=seed), splits["train"], splits["validation"])
        with tempfile.TemporaryDirectory() as directory:
            progress = run.fit(Path(directory), run_key="")
        figures = run.metrics(None if measured == "validation" else splits[measured])
        runs.append({**{name: figures[name] for name in DIRECTIONS}, "best_epoch": progress.best_epoch + 1})
    return runs


def _figures_of(bundle: Bundle, pairs: Any) -> dict[str, Any]:
    from dual_encoder.evaluate import evaluate
    from dual_encoder.runtime import Runtime
    from dual_encoder.training_data import captioned

    figures = evaluate(Runtime.load(bundle.path), captioned(pairs, "given"))
    return {name: figures[name] for name in DIRECTIONS}


def _score(runs: Runs) -> float:
    """What the setting is chosen by: recall@1 and @10, both directions, averaged."""
    return float(np.mean([_mean(runs, *shown) for shown in SHOWN]))


def _mean(runs: Runs, direction: str, metric: str) -> float:
    return float(np.mean([run[direction][metric] for run in runs]))


def _cell(runs: Runs, direction: str, metric: str) -> str:
    values = [100 * run[direction][metric] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    console.run(main)
