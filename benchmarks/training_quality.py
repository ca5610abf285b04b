"""Retrieval quality on a data set's test split: recipe against the Keras example's recipe, and against no training.

python -m benchmarks.training_quality --json build/training_quality.json

Every recipe sees the same splits, backbones and number of epochs; the validation split alone chooses the epoch. The
published recipe stops after 5 epochs, so it is measured with those too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report import Report, argument_parser
from data import console
from data.errors import SourceError
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.recipe import Recipe

METRICS = ("recall@1", "recall@5", "recall@10", "median_rank")
DIRECTIONS = ("text_to_image", "image_to_text")
Splits = dict[str, list["ImageTextPair"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, check the promised ratios."""
    parser = argument_parser("training_quality", __doc__)
    parser.add_argument("--data", metavar="SOURCE", help="default: jsonl:$DATASETS_DIR/openstax")
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    options = parser.parse_args(argv)
    source = open_source(options.data or _default_data())
    load_tensorflow()
    from dual_encoder.recipe import load_recipe

    splits = split_pairs(source)
    ours, published = load_recipe("openstax"), load_recipe("keras_example")
    same_epochs = published.with_settings(epochs=ours.trainer.epochs)
    rows = {
        "untrained default": [_untrained(splits["test"])],
        f"keras_example, {published.trainer.epochs} epochs": _trained(published, splits, options.seeds),
        f"keras_example, {same_epochs.trainer.epochs} epochs": _trained(same_epochs, splits, options.seeds),
        f"openstax, {ours.trainer.epochs} epochs": _trained(ours, splits, options.seeds),
    }
    report = Report("training_quality", {"data": source.name, "runs": rows})
    _print(rows, source.name, len(splits["test"]))
    untrained, _, baseline, best = rows.values()
    chance = 10 / len(splits["test"])
    report.at_least("untrained R@10 / chance", _mean(untrained, "recall@10") / chance, 9)
    report.at_least("R@10 / keras_example's, same epochs", _ratio(best, baseline, "recall@10"), 1.3)
    report.at_least("R@1 / keras_example's, same epochs", _ratio(best, baseline, "recall@1"), 1.3)
    return report.finish(options.json)


def _default_data() -> str:
    root = Path(os.environ.get("DATASETS_DIR", "datasets"))
    if not (root / "openstax").is_dir():
        raise SourceError(
            "a directory of image–caption pairs to measure on",
            f"no {root / 'openstax'}",
            "set DATASETS_DIR, or give any captioned data set with --data; docs/benchmarks.md says how to get one",
        )
    return f"jsonl:{root / 'openstax'}"


def _untrained(test: list[ImageTextPair]) -> dict[str, Any]:
    from dual_encoder.evaluate import evaluate
    from dual_encoder.runtime import Runtime
    from dual_encoder.training_data import captioned

    return _kept(evaluate(Runtime.load("default"), captioned(test, "test")))


def _trained(recipe: Recipe, splits: Splits, seeds: int) -> list[dict[str, Any]]:
    from dual_encoder.training_run import TrainingRun

    results = []
    for seed in range(seeds):
        console.say(f"{recipe.name}, {recipe.trainer.epochs} epochs, seed {seed}")
        run = TrainingRun(recipe.with_settings(seed=seed), splits["train"], splits["validation"])
        with tempfile.TemporaryDirectory() as directory:
            progress = run.fit(Path(directory), run_key=f"seed {seed}")
        results.append({**_kept(run.metrics(splits["test"])), "seed": seed, "best_epoch": progress.best_epoch + 1})
    return results


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    return {direction: figures[direction] for direction in DIRECTIONS}


def _mean(runs: Sequence[dict[str, Any]], metric: str, direction: str = "text_to_image") -> float:
    return float(np.mean([run[direction][metric] for run in runs]))


def _ratio(ours: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], metric: str) -> float:
    return _mean(ours, metric) / _mean(baseline, metric)


def _print(rows: dict[str, list[dict[str, Any]]], data: str, images: int) -> None:
    for direction in DIRECTIONS:
        table = [
            [name, len(runs), *(_cell(runs, metric, direction) for metric in METRICS)] for name, runs in rows.items()
        ]
        title = f"{direction.replace('_to_', ' → ')}, test split of {data} ({images} images), mean ± spread of seeds"
        console.print_table(title, ["recipe", "seeds", "R@1 %", "R@5 %", "R@10 %", "median rank"], table)


def _cell(runs: Sequence[dict[str, Any]], metric: str, direction: str) -> str:
    scale = 1 if metric == "median_rank" else 100
    values = [scale * run[direction][metric] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    console.run(main)
