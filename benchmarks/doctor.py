"""How well captions on the wrong images are found, and what cleaning them away saves.

python -m benchmarks.doctor --json build/doctor.json

Captions of the training and validation images are moved in memory: among random images, from a few images to many
others, or from one kind of images to another. The test split stays as it is. The epoch is chosen on a validation split
as wrong, or as cleaned, as the training split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks.caption_noise import flipped, shuffled, targeted
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

Splits = dict[str, list["ImageTextPair"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Move captions, look for them, train with and without what was found; print tables, check the promises."""
    parser = argument_parser("doctor", __doc__)
    parser.add_argument("--data", metavar="SOURCE", help="default: openstax of $DATASETS_DIR")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.5], help="shares shuffled")
    parser.add_argument("--trained-rate", type=float, default=0.3, help="the share that models are trained with")
    parser.add_argument("--attack-rate", type=float, default=0.1, help="the share that an attack moves")
    parser.add_argument("--seeds", type=int, default=3, help="of noise and training, default 3")
    options = parser.parse_args(argv)
    source = open_source(options.data or default_data()[0])
    load_tensorflow()
    splits = split_pairs(source)
    report = Report("doctor", {"data": source.name})
    noisy = f"shuffled, {options.trained_rate:.0%}"
    attacks = {f"{name}, {options.attack_rate:.0%}": (name, options.attack_rate) for name in ("targeted", "flipped")}
    cases = {f"shuffled, {rate:.0%}": ("shuffled", rate) for rate in sorted({*options.rates, options.trained_rate})}
    found: dict[str, list[dict[str, float]]] = {}
    retrieval: dict[str, list[dict[str, Any]]] = {"clean": []}
    for seed in range(options.seeds):
        retrieval["clean"].append(_trained(splits, seed))
        for case, (kind, rate) in (cases | attacks).items():
            console.say(f"{case}, seed {seed}")
            data = corrupted(splits, kind, rate, seed)
            figures, entries = examine(data, splits)
            found.setdefault(case, []).append(figures)
            for way, left in ways(data, entries).items() if case in {noisy, *attacks} else ():
                retrieval.setdefault(f"{case}, {way}", []).append(_trained(left, seed))
    report.figures |= {"detection": found, "retrieval": retrieval}
    _print_detection(found, source.name)
    _print_retrieval(retrieval, source.name)
    report.at_least(f"AUROC, {noisy}", float(np.mean([figures["auroc"] for figures in found[noisy]])), 0.9)
    report.at_least(f"R@10 / clean, {noisy}, doctor, drop", _retained(retrieval, f"{noisy}, doctor, drop"), 0.9)
    return report.finish(options.json)


def corrupted(splits: Splits, kind: str, rate: float, seed: int) -> Splits:
    """The splits with captions of that share of training and validation images moved; the test split as it is."""
    from dual_encoder.judged_pairs import FrozenEncoder, judged_pairs

    pairs = [pair for part in CLEANED for pair in splits[part]]
    if kind == "flipped":
        judged = judged_pairs(FrozenEncoder(), pairs)
        moved = flipped([pairs[place] for place in judged.kept], judged.features.images[:], rate, seed)
    else:
        moved = {"shuffled": shuffled, "targeted": targeted}[kind](pairs, rate, seed)
    by_id = {pair.image_id: pair for pair in moved}
    return splits | {part: [by_id.get(pair.image_id, pair) for pair in splits[part]] for part in CLEANED}


def ways(data: Splits, entries: list[QuarantineEntry]) -> dict[str, Splits]:
    """What training is given without the doctor, and with either use of its list."""
    cleaned = {part: data[part] for part in CLEANED}
    return {"as it is": data} | {
        f"doctor, {mode}": data | Quarantine(entries, mode).of_splits(cleaned) for mode in get_args(Mode)
    }


def examine(data: Splits, splits: Splits) -> tuple[dict[str, float], list[QuarantineEntry]]:
    """What the doctor's scorer says of the captions, and its quarantine; `splits` hold the truth."""
    from dual_encoder.calibration_fit import auroc
    from dual_encoder.pair_doctor import mismatched_pairs, pair_encoder

    true = {(pair.image_id, caption) for part in CLEANED for pair in splits[part] for caption in pair.captions}
    entries, share = mismatched_pairs([pair for part in CLEANED for pair in data[part]], 0.0, pair_encoder())
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
