"""How well captions on the wrong images are found, and what cleaning them away saves.

python -m benchmarks.doctor --json build/doctor.json

Captions of the training and validation images are moved in memory: among random images ("shuffled"), or so that many
images carry the caption of one of a few others ("targeted", as in Carlini and Terzis 2022, arXiv:2106.09667). The test
split stays as it is. The epoch is chosen on a validation split as wrong, or as cleaned, as the training split.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks.report import Report, argument_parser
from benchmarks.training_quality import default_data
from data import console
from data.doctor import LISTED_FROM
from data.quarantine import CLEANED, DROPPED_BELOW, Mode, Quarantine, QuarantineEntry
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from data.pairs import ImageTextPair

TARGETS = 5  # captions that a targeted attack puts on other images
Splits = dict[str, list["ImageTextPair"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Move captions, look for them, train with and without what was found; print tables, check the promises."""
    parser = argument_parser("doctor", __doc__)
    parser.add_argument("--data", metavar="SOURCE", help="default: openstax of $DATASETS_DIR")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.5], help="shares that move")
    parser.add_argument("--trained-rate", type=float, default=0.3, help="the share that models are trained with")
    parser.add_argument("--targeted-rate", type=float, default=0.1, help="the share of the targeted attack")
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    options = parser.parse_args(argv)
    source = open_source(options.data or default_data()[0])
    load_tensorflow()
    splits = split_pairs(source)
    seeds = range(options.seeds)
    report = Report("doctor", {"data": source.name})
    rates = sorted({*options.rates, options.trained_rate})
    shuffled = {rate: [shuffle_captions(splits, rate, seed) for seed in seeds] for rate in rates}
    attacks = {f"shuffled, {100 * rate:.0f} %": data for rate, data in shuffled.items()}
    noisy, targeted = f"shuffled, {100 * options.trained_rate:.0f} %", f"targeted, {100 * options.targeted_rate:.0f} %"
    attacks[targeted] = [target_captions(splits, options.targeted_rate, seed) for seed in seeds]
    found = {name: [examine(data, splits) for data in corrupted] for name, corrupted in attacks.items()}
    report.figures["detection"] = {name: [figures for figures, _ in runs] for name, runs in found.items()}
    _print_detection(report.figures["detection"], source.name)
    retrieval = {"clean": [_trained(splits, seed) for seed in seeds]}
    for name in (noisy, targeted):
        for seed in seeds:
            data, entries = attacks[name][seed], found[name][seed][1]
            ways = {"as it is": data} | {
                f"doctor, {mode}": data | Quarantine(entries, mode).of_splits({part: data[part] for part in CLEANED})
                for mode in get_args(Mode)
            }
            for way, left in ways.items():
                console.say(f"{name}, {way}, seed {seed}")
                retrieval.setdefault(f"{name}, {way}", []).append(_trained(left, seed))
    report.figures["retrieval"] = retrieval
    _print_retrieval(retrieval, source.name)
    area = np.mean([figures["auroc"] for figures in report.figures["detection"][noisy]])
    report.at_least(f"AUROC, {noisy}", float(area), 0.9)
    report.at_least(f"R@10 / clean, {noisy}, doctor, drop", _retained(retrieval, f"{noisy}, doctor, drop"), 0.9)
    return report.finish(options.json)


def shuffle_captions(splits: Splits, share: float, seed: int) -> Splits:
    """Copies in which a share of the training and validation images exchange their captions in a random circle."""
    images = [pair for part in CLEANED for pair in splits[part]]
    moved = np.random.default_rng(seed).permutation(len(images))[: round(share * len(images))]
    giver = np.arange(len(images))
    giver[moved] = np.roll(moved, 1)
    return _with_captions(splits, [images[number].captions for number in giver])


def target_captions(splits: Splits, share: float, seed: int) -> Splits:
    """Copies in which a share of the training and validation images carry the captions of one of `TARGETS` others."""
    images = [pair for part in CLEANED for pair in splits[part]]
    order = np.random.default_rng(seed).permutation(len(images))
    giver = np.arange(len(images))
    poisoned = order[TARGETS : TARGETS + round(share * len(images))]
    giver[poisoned] = order[np.arange(len(poisoned)) % TARGETS]
    return _with_captions(splits, [images[number].captions for number in giver])


def _with_captions(splits: Splits, captions: list[Any]) -> Splits:
    given = iter(captions)
    return splits | {
        part: [dataclasses.replace(pair, captions=next(given), caption_weights=()) for pair in splits[part]]
        for part in CLEANED
    }


def examine(corrupted: Splits, splits: Splits) -> tuple[dict[str, float], list[QuarantineEntry]]:
    """What the doctor's scorer says of the captions, and its quarantine; `splits` hold the truth."""
    from dual_encoder.calibration_fit import auroc
    from dual_encoder.pair_doctor import mismatched_pairs

    true = {(pair.image_id, caption) for part in CLEANED for pair in splits[part] for caption in pair.captions}
    entries, share = mismatched_pairs([pair for part in CLEANED for pair in corrupted[part]], 0.0)
    wrong = np.array([(entry.image_id, entry.caption) not in true for entry in entries])
    log_odds = np.array([entry.score for entry in entries])  # that the pair fits
    listed = np.array([entry.weight < DROPPED_BELOW for entry in entries])
    figures = {
        "wrong": float(wrong.mean()),
        "estimated": share,
        "auroc": auroc(-log_odds[wrong], -log_odds[~wrong]) if wrong.any() else float("nan"),
        "precision": float(wrong[listed].mean()) if listed.any() else float("nan"),
        "recall": float(listed[wrong].mean()) if wrong.any() else float("nan"),
        "right ones listed": float(listed[~wrong].mean()),
    }
    return figures, [entry for entry in entries if entry.weight <= 1 - LISTED_FROM]


def _trained(splits: Splits, seed: int) -> dict[str, Any]:
    from dual_encoder.recipe import load_recipe
    from dual_encoder.training_run import TrainingRun

    run = TrainingRun(load_recipe("openstax").with_settings(seed=seed), splits["train"], splits["validation"])
    with tempfile.TemporaryDirectory() as directory:
        run.fit(Path(directory), run_key=f"seed {seed}")
    return run.metrics(splits["test"])["text_to_image"]


def _retained(retrieval: dict[str, list[dict[str, Any]]], name: str) -> float:
    mean = {way: np.mean([run["recall@10"] for run in retrieval[way]]) for way in ("clean", name)}
    return float(mean[name] / mean["clean"])


def _print_detection(detection: dict[str, list[dict[str, float]]], data: str) -> None:
    columns = ("wrong", "estimated", "auroc", "precision", "recall", "right ones listed")
    rows = [
        [name, *(f"{np.mean([run[column] for run in runs]):.3f}" for column in columns)]
        for name, runs in detection.items()
    ]
    console.print_table(f"captions on wrong images of {data}, mean of seeds", ["captions moved", *columns], rows)


def _print_retrieval(retrieval: dict[str, list[dict[str, Any]]], data: str) -> None:
    rows = []
    for name, runs in retrieval.items():
        values = [[100 * run[f"recall@{k}"] for run in runs] for k in (1, 10)]
        cells = [f"{np.mean(v):.1f}" + (f" ± {np.std(v, ddof=1):.1f}" if len(v) > 1 else "") for v in values]
        rows.append([name, *cells, f"{_retained(retrieval, name):.2f}"])
    title = f"text → image, clean test split of {data}, mean ± spread of seeds"
    console.print_table(title, ["trained on", "R@1 %", "R@10 %", "of clean R@10"], rows)


if __name__ == "__main__":
    console.run(main)
