"""Entry point: trains a dual encoder by a recipe and writes its bundle.

python -m dual_encoder.train --data emoji --out build/model
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.curated import Curated
from data.durable import digest_json
from data.errors import BundleError, SourceError, TrainingError
from data.groups import add_groups_option, chosen_groups
from data.quarantine import Quarantine, add_quarantine_options, chosen_quarantine
from data.quiet_tensorflow import load_tensorflow
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs
from dual_encoder.bundle import Bundle, check_replaceable, open_bundle, package_versions
from dual_encoder.model_card import data_licences, model_card
from dual_encoder.recipe import Recipe, check_named, load_recipe, recipe_names
from dual_encoder.training_data import captioned, data_digest

if TYPE_CHECKING:
    from data.pairs import ImageTextPair, PairSource
    from dual_encoder.calibration import Calibration
    from dual_encoder.trainer import Progress
    from dual_encoder.training_run import TrainingRun

AUTO = "auto"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.train",
        description="Train a dual encoder by a recipe and write its bundle. An interrupted run goes on where it was.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument(
        "--recipe",
        default=AUTO,
        help=f"{AUTO}: chosen for the data and the machine, with reasons (default); {', '.join(recipe_names())}; or a "
        "Python file with a RECIPE",
    )
    parser.add_argument(
        "--start",
        metavar="BUNDLE",
        help="train from the towers, heads, scale and tokeniser of this bundle, such as an imported model; the recipe "
        f"says which towers train and how ({AUTO}: none, only the heads)",
    )
    parser.add_argument(
        "--teacher",
        metavar="BUNDLE",
        help="learn from this bundle's similarities too, usually a larger or slower model's; how much, the recipe's "
        "distillation says (default: half of the loss)",
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs, see below")
    parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="directory of the trained model")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="of initial weights and shuffling (default: the recipe's)")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    parser.add_argument("--devices", type=int, metavar="N", help="GPUs to train on (default: all that are visible)")
    add_groups_option(parser)
    add_quarantine_options(parser)
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoint of an earlier run at BUNDLE.run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    options = parser().parse_args(argv)
    recipe = None if options.recipe == AUTO else options.recipe
    settings = {name: getattr(options, name) for name in ("epochs", "batch_size", "seed", "precision")}
    run = {
        "start": options.start,
        "teacher": options.teacher,
        "fresh": options.fresh,
        "devices": options.devices,
        "groups": chosen_groups(options),
        "quarantine": chosen_quarantine(options),
    }
    train(recipe, options.data, options.out, **run, **settings)
    return console.EXIT_OK


def train(
    recipe: Recipe | str | None,
    data: str,
    out: Path,
    fresh: bool = False,
    devices: int | None = None,
    groups: Mapping[str, str] | None = None,
    quarantine: Quarantine | None = None,
    start: str | Path | None = None,
    teacher: str | Path | None = None,
    **settings: Any,
) -> Bundle:
    """Train on the source named `data` and write the bundle `out`; the run's files are in `out`.run.

    The recipe may be named as on the command line; without one, it is chosen for the data and the machine. `settings`
    of the trainer, where they are not None, take the place of the recipe's. All visible GPUs take part, or the first
    `devices`, with the loss and gradients of one. `groups` (image id → group) replace those of the source; `quarantine`
    changes the train and validation splits. `start` names a bundle to train from, `teacher` one to learn from.
    """
    if isinstance(recipe, str):
        check_named(recipe)
    check_replaceable(out)
    _check_apart(out, {"--start": start, "--teacher": teacher})
    source = open_source(data)
    splits, cleaning = _curated(source, groups, quarantine)

    load_tensorflow()  # takes seconds: whatever can be refused without it has been
    from dual_encoder.replicas import Replicas
    from dual_encoder.training_facts import recipe_for, this_machine
    from dual_encoder.training_run import TrainingRun

    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    replicas = Replicas.on_gpus(devices)
    directory = out.resolve().with_name(out.resolve().name + ".run")
    if fresh:
        shutil.rmtree(directory, ignore_errors=True)
    machine = this_machine(devices)
    choices: list[list[str]] = []
    if start is not None:
        recipe = _started(recipe, start)
    elif recipe is None:
        recipe, choices = recipe_for(splits, machine, directory)
    recipe = _taught(recipe.with_settings(**settings), teacher)
    digest = data_digest(splits, recipe.group_positives)
    run_key = digest_json({"recipe": describe(recipe), "data": digest, **cleaning})
    if not fresh and (done := _finished(out, run_key)) is not None:
        console.say(f"{out} is the result of this same run: left as it is (--fresh trains again)")
        return done
    began = time.monotonic()
    run = TrainingRun(recipe, splits["train"], splits["validation"], replicas)
    progress = run.fit(directory, run_key)
    metrics, calibration = {"validation": run.metrics()}, _calibration(run)
    trained = {
        "run": run_key,
        "data": source.name,
        "data_digest": digest,
        "pairs": {name: len(pairs) for name, pairs in splits.items()},
        "data_licences": data_licences(splits["train"]),
        **_of_run(run, recipe, progress),
        "machine": dataclasses.asdict(machine),
        "seconds": round(time.monotonic() - began, 1),
        **({"choices": choices} if choices else {}),
        **cleaning,
    }
    bundle = _save(out, run, f"{recipe.name} {digest[:8]}", trained, metrics, calibration)
    console.say(f"bundle {out}: fingerprint {bundle.fingerprint[:12]}, best epoch {progress.best_epoch + 1}")
    _write_history(directory, progress)
    return bundle


def _curated(
    source: PairSource, groups: Mapping[str, str] | None, quarantine: Quarantine | None
) -> tuple[dict[str, list[ImageTextPair]], dict[str, Any]]:
    """The splits by other groups and without what is in quarantine, and what is recorded of both.

    `SourceError` where nothing is left to train on or to validate with.
    """
    splits = split_pairs(Curated(source, groups, quarantine))
    record: dict[str, Any] = {} if groups is None else {"groups": digest_json(dict(groups))}
    if quarantine is not None:
        splits = quarantine.of_splits(splits)
        record["quarantine"] = quarantine.to_config()
    for name in ("train", "validation"):
        captioned(splits[name], name)
    return splits, record


def _save(
    out: Path,
    run: TrainingRun,
    name: str,
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any],
    calibration: Calibration | None,
) -> Bundle:
    """Write the bundle of a run that is over."""
    from dual_encoder.bundle_model import save_bundle

    return save_bundle(
        out,
        run.model,
        run.tokenizer,
        name=name,
        card=model_card(name, trained, metrics, calibration, package_versions()),
        trained=trained,
        metrics=metrics,
        frozen=run.frozen,
        calibration=calibration,
        hubness=run.hubness,
    )


def _check_apart(out: Path, bundles: Mapping[str, str | Path | None]) -> None:
    """Refuse to write over a bundle that the run reads, named by its option."""
    for option, given in bundles.items():
        if given is not None and Path(given).resolve() == out.resolve():
            raise TrainingError(f"another directory for --out than for {option}", str(out), "choose another --out")


def _started(recipe: Recipe | None, start: str | Path) -> Recipe:
    """The recipe on the model of the bundle `start`; without one, the recipe for such a start."""
    from dual_encoder.runtime import open_named_bundle
    from dual_encoder.starting_bundle import default_recipe, start_from

    bundle = open_named_bundle(start)
    return default_recipe(bundle) if recipe is None else start_from(bundle, recipe)


def _taught(recipe: Recipe, teacher: str | Path | None) -> Recipe:
    """The recipe with the bundle `teacher` for its distillation's teacher, and every setting of that known."""
    from dual_encoder.distillation import Distillation
    from dual_encoder.runtime import open_named_bundle

    distillation = recipe.distillation
    if teacher is not None:
        opened = open_named_bundle(teacher)
        distillation = dataclasses.replace(distillation or Distillation(opened), teacher=opened)
    if distillation is None:
        return recipe
    return dataclasses.replace(recipe, distillation=distillation.resolved(recipe.objective))


def _of_run(run: TrainingRun, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What a bundle says of its training, data and machine apart."""
    weights = {"alpha": progress.alpha, "validation": progress.alpha_scores}
    return {
        "recipe": describe(run.recipe),
        "best_epoch": progress.best_epoch + 1,
        "epochs": len(progress.history),
        "backbones": _backbones(recipe),
        **({"interpolation": weights} if recipe.trainer.interpolate else {}),
    }


def _backbones(recipe: Recipe) -> dict[str, Any]:
    """Where the weights of both backbones come from, and whether they were trained here."""
    from dual_encoder.towers import provenance_of

    start = recipe.start
    begun = {} if start is None else {"origin": f"the bundle {start.name}, fingerprint {start.fingerprint[:12]}"}
    parts = {name: getattr(recipe.model, name) for name in ("image_backbone", "text_backbone")}
    return {
        name: {
            **dataclasses.asdict(provenance_of(part)),
            **begun,
            "trainable": "trained" if part.trainable else "frozen",
        }
        for name, part in parts.items()
    }


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
        "hubness_correction": recipe.hubness_correction,
        "augmentation": dataclasses.asdict(recipe.augmentation),
        **({} if recipe.distillation is None else {"distillation": recipe.distillation.to_config()}),
        **({} if recipe.start is None else {"start": {"kind": recipe.start.name, "from": recipe.start.fingerprint}}),
    }


def _write_history(directory: Path, progress: Progress) -> None:
    from data.durable import write_json

    write_json(directory / "history.json", progress.history)


if __name__ == "__main__":
    console.run(main)
