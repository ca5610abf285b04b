"""Retrieval quality on test splits: recipe against the Keras example's recipe, and against no training.

python -m benchmarks.training_quality --json build/training_quality.json

Every recipe sees the same splits, backbones and number of epochs; the validation split alone chooses the epoch. The
published recipe stops after 5 epochs, so it is measured with those too. A model trained on one data set is measured on
the test splits of the others too, whose kind of pictures it never saw.
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
    from dual_encoder.training_run import TrainingRun

METRICS = ("recall@1", "recall@5", "recall@10", "median_rank")
DIRECTIONS = ("text_to_image", "image_to_text")
Splits = dict[str, list["ImageTextPair"]]
Measured = dict[str, list[dict[str, Any]]]  # by the data set that is searched: figures of each seed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, check the promised ratios."""
    parser = argument_parser("training_quality", __doc__)
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        action="append",
        help="may be repeated; checks are of the first (default: openstax and openclipart of $DATASETS_DIR, emoji)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    options = parser.parse_args(argv)
    sources = [open_source(name) for name in options.data or default_data()]
    load_tensorflow()
    from dual_encoder.recipe import load_recipe

    data = {source.name: split_pairs(source) for source in sources}
    first = sources[0].name
    ours, published = load_recipe("openstax"), load_recipe("keras_example")
    same_epochs = published.with_settings(epochs=ours.trainer.epochs)
    report = Report("training_quality")
    untrained = {name: [_untrained(splits["test"])] for name, splits in data.items()}
    baseline = {name: _trained(same_epochs, name, data, options.seeds) for name in data}
    best = {name: _trained(ours, name, data, options.seeds) for name in data}
    rows = {
        "untrained default": untrained[first],
        f"keras_example, {published.trainer.epochs} epochs": _trained(published, first, data, options.seeds)[first],
        f"keras_example, {same_epochs.trainer.epochs} epochs": baseline[first][first],
        f"openstax, {ours.trainer.epochs} epochs": best[first][first],
    }
    report.figures = {"data": list(data), "runs": rows, "untrained": untrained, "keras_example": baseline, "ours": best}
    _print(rows, first, len(data[first]["test"]))
    _print_across(untrained, baseline, best)
    _print_hubness(best)
    chance = 10 / len(data[first]["test"])
    report.at_least("untrained R@10 / chance", _mean(untrained[first], "recall@10") / chance, 9)
    report.at_least(
        "R@10 / keras_example's, same epochs", _ratio(best[first], baseline[first], first, "recall@10"), 1.5
    )
    report.at_least("R@1 / keras_example's, same epochs", _ratio(best[first], baseline[first], first, "recall@1"), 2.0)
    return report.finish(options.json)


def default_data() -> list[str]:
    """Where the data sets are that figures in the documents are of; `SourceError` where there are none."""
    root = Path(os.environ.get("DATASETS_DIR", "datasets"))
    missing = [root / name for name in ("openstax", "openclipart") if not (root / name).is_dir()]
    if missing:
        raise SourceError(
            "directories of image–caption pairs to measure on",
            f"no {missing[0]}",
            "set DATASETS_DIR, or give any captioned data set with --data; docs/benchmarks.md says how to get one",
        )
    return [f"jsonl:{root / 'openstax'}", f"jsonl:{root / 'openclipart'}", "emoji"]


def _untrained(test: list[ImageTextPair]) -> dict[str, Any]:
    from dual_encoder.evaluate import evaluate
    from dual_encoder.runtime import Runtime
    from dual_encoder.training_data import captioned

    return _kept(evaluate(Runtime.load("default"), captioned(test, "test")))


def _trained(recipe: Recipe, name: str, data: dict[str, Splits], seeds: int) -> Measured:
    """Train on the data set `name`; measure on the test splits of all."""
    from dual_encoder.training_run import TrainingRun

    results: Measured = {other: [] for other in data}
    for seed in range(seeds):
        console.say(f"{recipe.name} on {name}, {recipe.trainer.epochs} epochs, seed {seed}")
        run = TrainingRun(recipe.with_settings(seed=seed), data[name]["train"], data[name]["validation"])
        with tempfile.TemporaryDirectory() as directory:
            progress = run.fit(Path(directory), run_key=f"seed {seed}")
        for other, splits in data.items():
            results[other].append(
                {**_figures(run, splits["test"]), "seed": seed, "best_epoch": progress.best_epoch + 1}
            )
    return results


def _figures(run: TrainingRun, test: list[ImageTextPair]) -> dict[str, Any]:
    """As the model is served, and text → image without its hubness correction, if it has one."""
    figures = _kept(run.metrics(test))
    if run.hubness is not None:
        correction, run.hubness = run.hubness, None
        figures["without_correction"] = {"text_to_image": run.metrics(test)["text_to_image"]}
        figures["weight"], run.hubness = correction.weight, correction
    return figures


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    return {direction: figures[direction] for direction in DIRECTIONS}


def _mean(runs: Sequence[dict[str, Any]], metric: str, direction: str = "text_to_image") -> float:
    return float(np.mean([run[direction][metric] for run in runs]))


def _ratio(ours: Measured, baseline: Measured, searched: str, metric: str) -> float:
    return _mean(ours[searched], metric) / _mean(baseline[searched], metric)


def _print(rows: dict[str, list[dict[str, Any]]], data: str, images: int) -> None:
    for direction in DIRECTIONS:
        table = [
            [name, len(runs), *(_cell(runs, metric, direction) for metric in METRICS)] for name, runs in rows.items()
        ]
        title = f"{direction.replace('_to_', ' → ')}, test split of {data} ({images} images), mean ± spread of seeds"
        console.print_table(title, ["recipe", "seeds", "R@1 %", "R@5 %", "R@10 %", "median rank"], table)


def _print_across(untrained: Measured, baseline: dict[str, Measured], best: dict[str, Measured]) -> None:
    """Every data set trained on, by every data set searched."""
    table = []
    for trained in best:
        for searched in best:
            ours, theirs = best[trained][searched], baseline[trained][searched]
            table.append(
                [
                    *(name.rsplit("/", 1)[-1] for name in (trained, searched)),
                    *(_cell(runs, "recall@10") for runs in (untrained[searched], theirs, ours)),
                ]
                + [f"{_ratio(best[trained], baseline[trained], searched, metric):.2f}" for metric in METRICS[:3:2]]
            )
    columns = ["trained on", "searched (test)", "untrained R@10 %", "keras_example", "openstax recipe"]
    console.print_table("text → image across data sets", [*columns, "ratio of R@1", "ratio of R@10"], table)


def _print_hubness(best: dict[str, Measured]) -> None:
    """What the correction changes, for the runs whose validation split asked for one."""
    table = []
    for trained, measured in best.items():
        for searched, runs in measured.items():
            corrected = [run for run in runs if "weight" in run]
            if not corrected:
                continue
            plain = [run["without_correction"] for run in corrected]
            weights = ", ".join(f"{run['weight']:g}" for run in corrected)
            names = (name.rsplit("/", 1)[-1] for name in (trained, searched))
            recalls = (_cell(which, metric) for metric in METRICS[:3:2] for which in (plain, corrected))
            table.append([*names, f"{len(corrected)} of {len(runs)}", weights, *recalls])
    columns = ["trained on", "searched (test)", "seeds corrected", "weights", "R@1 % without", "with"]
    console.print_table("Hubness correction, text → image", [*columns, "R@10 % without", "with"], table)


def _cell(runs: Sequence[dict[str, Any]], metric: str, direction: str = "text_to_image") -> str:
    scale = 1 if metric == "median_rank" else 100
    values = [scale * run[direction][metric] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    console.run(main)
