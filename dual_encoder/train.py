"""Entry point: trains a dual encoder by a recipe and writes its bundle.

python -m dual_encoder.train --recipe emoji_demo --data emoji --out build/model
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.durable import digest_json
from data.errors import BundleError, SourceError
from data.quiet_tensorflow import load_tensorflow
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs
from dual_encoder.bundle import Bundle, open_bundle
from dual_encoder.recipe import Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from dual_encoder.calibration import Calibration
    from dual_encoder.trainer import Progress
    from dual_encoder.training_run import TrainingRun


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.train",
        description="Train a dual encoder by a recipe and write its bundle. An interrupted run goes on where it was.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--recipe", required=True, help=f"{', '.join(recipe_names())}, or a Python file with a RECIPE")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs, see below")
    parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="directory of the trained model")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="of initial weights and shuffling (default: the recipe's)")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    parser.add_argument("--devices", type=int, metavar="N", help="GPUs to train on (default: all that are visible)")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoint of an earlier run at BUNDLE.run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    options = parser().parse_args(argv)
    recipe = load_recipe(options.recipe).with_settings(
        epochs=options.epochs, batch_size=options.batch_size, seed=options.seed, precision=options.precision
    )
    train(recipe, options.data, options.out, fresh=options.fresh, devices=options.devices)
    return console.EXIT_OK


def train(recipe: Recipe, data: str, out: Path, fresh: bool = False, devices: int | None = None) -> Bundle:
    """Train `recipe` on the source named `data` and write the bundle `out`; the run's files are in `out`.run.

    All visible GPUs take part, or the first `devices`, with the loss and gradients of one.
    """
    load_tensorflow()
    from dual_encoder.bundle_model import check_replaceable, save_bundle
    from dual_encoder.replicas import Replicas
    from dual_encoder.training_data import data_digest
    from dual_encoder.training_run import TrainingRun

    check_replaceable(out)
    replicas = Replicas.on_gpus(devices)
    source = open_source(data)
    splits = split_pairs(source)
    digest = data_digest(splits, recipe.group_positives)
    run_key = digest_json({"recipe": describe(recipe), "data": digest})
    directory = out.resolve().with_name(out.resolve().name + ".run")
    if fresh:
        shutil.rmtree(directory, ignore_errors=True)
    elif (done := _finished(out, run_key)) is not None:
        console.say(f"{out} is the result of this same run: left as it is (--fresh trains again)")
        return done
    run = TrainingRun(recipe, splits["train"], splits["validation"], replicas)
    progress = run.fit(directory, run_key)
    figures = run.metrics()
    trained = {
        "run": run_key,
        "recipe": describe(run.recipe),
        "data": source.name,
        "data_digest": digest,
        "pairs": {name: len(pairs) for name, pairs in splits.items()},
        "best_epoch": progress.best_epoch + 1,
        "epochs": len(progress.history),
    }
    bundle = save_bundle(
        out,
        run.model,
        run.tokenizer,
        name=f"{recipe.name} {digest[:8]}",
        card=model_card(run.recipe, source.name, trained, figures),
        trained=trained,
        metrics={"validation": figures},
        frozen=run.frozen,
        calibration=_calibration(run),
    )
    console.say(f"bundle {out}: fingerprint {bundle.fingerprint[:12]}, best epoch {progress.best_epoch + 1}")
    _write_history(directory, progress)
    return bundle


def _calibration(run: TrainingRun) -> Calibration | None:
    """The run's calibration, or None with the reason said."""
    try:
        return run.calibration()
    except SourceError as error:
        console.say(f"scores are not calibrated: that takes {error.expected}, and there are {error.received}")
        return None


def _finished(out: Path, run_key: str) -> Bundle | None:
    """The intact bundle that this very run wrote, if there is one."""
    try:
        bundle = open_bundle(out)
    except BundleError:
        return None
    return bundle if bundle.manifest["trained"].get("run") == run_key else None


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON."""
    return {
        "name": recipe.name,
        "model": recipe.model.to_config(),
        "objective": {"kind": recipe.objective.kind, **dataclasses.asdict(recipe.objective)},
        "trainer": {
            **dataclasses.asdict(recipe.trainer),
            "schedule": {
                "kind": type(recipe.trainer.schedule).__name__,
                **dataclasses.asdict(recipe.trainer.schedule),  # type: ignore[call-overload]
            },
        },
        "class_prototypes": recipe.class_prototypes,
        "mirrored": recipe.mirrored,
        "group_positives": recipe.group_positives,
        "choose_bridge": recipe.choose_bridge,
        "augmentation": dataclasses.asdict(recipe.augmentation),
    }


def model_card(recipe: Recipe, data: str, trained: dict[str, Any], figures: dict[str, Any]) -> str:
    """What someone who finds this bundle must know, in Markdown."""
    rows = [
        f"| {direction.replace('_', ' ')} | "
        + " | ".join(f"{100 * figures[direction][f'recall@{k}']:.1f}" for k in (1, 5, 10))
        + f" | {figures[direction]['median_rank']:g} | {figures[direction]['gallery']} |"
        for direction in ("text_to_image", "image_to_text")
    ]
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            "A dual encoder for natural-language image search.",
            "",
            f"- image backbone: {recipe.model.image_backbone}",
            f"- text backbone: {recipe.model.text_backbone}",
            f"- trained on: `{data}`, pairs by split {trained['pairs']}, best of {trained['epochs']} epochs: "
            f"{trained['best_epoch']}",
            "- figures below are of the validation split, which chose the epoch; use `python -m dual_encoder.evaluate` "
            "for the test split",
            "",
            "| direction | R@1 | R@5 | R@10 | median rank | gallery |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "It knows what its data and its backbones' data showed it. Scores are cosines and not probabilities; on "
            "images or languages unlike the training data, measure before relying on it.",
            "",
        ]
    )


def _write_history(directory: Path, progress: Progress) -> None:
    from data.durable import write_json

    write_json(directory / "history.json", progress.history)


if __name__ == "__main__":
    console.run(main)
