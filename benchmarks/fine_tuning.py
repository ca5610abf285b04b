"""What each way of fine-tuning brings: variants of the `finetune` recipe on the validation splits, side by side.

python -m benchmarks.fine_tuning --seeds 3 --json build/fine_tuning.json

Figures are of the validation split that chose the epoch, and of a second data set that no choice was made on; the test
split is not read.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report import Report, argument_parser
from data import console
from data.errors import UserError
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from dual_encoder.recipe import Recipe

SHOWN = (("openstax", "recall@1"), ("openstax", "recall@10"), ("transfer", "recall@1"), ("transfer", "recall@10"))


def main(argv: Sequence[str] | None = None) -> int:
    """Train every variant, print a table."""
    root = os.environ.get("DATASETS_DIR", "datasets")
    parser = argument_parser("fine_tuning", __doc__)
    parser.add_argument("--data", default=f"jsonl:{root}/openstax", metavar="SOURCE", help="to train on")
    parser.add_argument("--transfer", default=f"jsonl:{root}/openclipart", metavar="SOURCE", help="to measure on too")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these")
    options = parser.parse_args(argv)
    load_tensorflow()
    variants = all_variants()
    if unknown := set(options.variants or ()) - set(variants):
        raise UserError(f"variants among {', '.join(variants)}", ", ".join(sorted(unknown)), "correct --variants")
    splits = split_pairs(open_source(options.data))
    transfer = split_pairs(open_source(options.transfer))["validation"]
    rows: dict[str, list[dict[str, Any]]] = {}
    report = Report("fine_tuning", {"data": options.data, "transfer": options.transfer, "runs": rows})
    for name in options.variants or variants:
        rows[name] = [_measure(variants[name].with_settings(seed=s), splits, transfer) for s in range(options.seeds)]
        console.say(f"{name}: " + ", ".join(_cell(rows[name], *shown) for shown in SHOWN))
    table = [
        [name, *(_cell(runs, *shown) for shown in SHOWN), f"{runs[0]['seconds']:.0f}"] for name, runs in rows.items()
    ]
    heads = ["variant", "R@1 %", "R@10 %", "transfer R@1 %", "transfer R@10 %", "seconds"]
    console.print_table(f"text → image, validation splits, {options.seeds} seeds", heads, table)
    return report.finish(options.json)


def all_variants() -> dict[str, Recipe]:
    """Each differs from `finetune` in what its name says."""
    from data.augmentation import Augmentation
    from dual_encoder.fine_tuning import FineTuning
    from dual_encoder.projection_head import LinearHead
    from dual_encoder.recipe import load_recipe
    from dual_encoder.schedules import OneCycle
    from dual_encoder.towers.efficientnet_lite import EfficientNetLite
    from dual_encoder.towers.minilm import MiniLM

    base = load_recipe("finetune")
    tuning = base.trainer.fine_tuning

    def tuned(**changes: Any) -> Recipe:
        return base.with_settings(fine_tuning=dataclasses.replace(tuning, **changes))

    frozen = dataclasses.replace(base.model, image_backbone=EfficientNetLite("lite0"))
    words = dataclasses.replace(
        frozen,
        text_backbone=MiniLM(trainable=True),
        image_head=LinearHead(384, dropout=0.5),
    )
    text_tuning = FineTuning(text_top=1, rate=tuning.rate)
    return {
        "frozen image tower": dataclasses.replace(base, model=frozen),
        "finetune": base,
        "no layer-wise rates": tuned(rate_decay=1.0),
        "rate 0.1": tuned(rate=0.1),
        "rate of the heads": tuned(rate=1.0),
        "unfreezing every 2 epochs": tuned(unfreeze_every=2),
        "batch normalisation trains": tuned(train_batch_norm=True),
        "one group": tuned(image_top=1),
        "three groups": tuned(image_top=3),
        "one-cycle": base.with_settings(schedule=OneCycle(peak=3e-3)),
        "moving average 0.98": base.with_settings(average_decay=0.98),
        "WiSE-FT": base.with_settings(interpolate=(0.0, 0.25, 0.5, 0.75, 1.0)),
        "mirrored views": dataclasses.replace(base, mirrored=True),
        "crop 0.5": dataclasses.replace(base, augmentation=Augmentation(crop=0.5)),
        "flip": dataclasses.replace(base, augmentation=Augmentation(flip=True)),
        "colour 0.3": dataclasses.replace(base, augmentation=Augmentation(colour=0.3)),
        "last text layer": dataclasses.replace(base, model=words).with_settings(fine_tuning=text_tuning),
        "last text layer, word dropout 0.1": dataclasses.replace(
            base, model=words, augmentation=Augmentation(word_dropout=0.1)
        ).with_settings(fine_tuning=text_tuning),
    }


def _measure(recipe: Recipe, splits: dict[str, Any], transfer: Any) -> dict[str, Any]:
    from dual_encoder.training_run import TrainingRun

    run = TrainingRun(recipe, splits["train"], splits["validation"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        progress = run.fit(Path(directory), run_key="")
    return {
        "seconds": time.perf_counter() - started,
        "best_epoch": progress.best_epoch + 1,
        "alpha": progress.alpha,
        "alpha_scores": progress.alpha_scores,
        "history": progress.history,
        "openstax": run.metrics()["text_to_image"],
        "transfer": run.metrics(transfer)["text_to_image"],
    }


def _cell(runs: Sequence[dict[str, Any]], data: str, metric: str) -> str:
    values = [100 * run[data][metric] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    console.run(main)
