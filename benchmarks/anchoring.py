"""What each part of language anchoring gains: class prompts, temperature, bridge, class prototypes, mirrored views.

python -m benchmarks.anchoring --json build/anchoring.json

Measured on validation splits, where such settings are chosen; training keeps its best epoch by the same split, so
that its figures flatter all rows alike.
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
    from dual_encoder.projection_head import AnchoredHead, LinearHead
    from dual_encoder.recipe import Recipe

NAMES = ("a photo of a {name}",)
DESCRIPTIONS = ("{name}. {description}",)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, check that every part of the recipe is worth its place."""
    parser = argument_parser("anchoring", __doc__)
    parser.add_argument("--data", metavar="SOURCE", action="append", help="as of training_quality")
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    options = parser.parse_args(argv)
    sources = [open_source(name) for name in options.data or default_data()]
    load_tensorflow()
    variants = _variants()
    report = Report("anchoring")
    for source in sources:
        splits = split_pairs(source)
        rows = {}
        for name, recipe in variants.items():
            console.say(f"{source.name}: {name}")
            rows[name] = [_recall(recipe, splits, seed) for seed in range(options.seeds if _trains(recipe) else 1)]
        report.figures[source.name] = rows
        table = [[name, len(runs), *(_cell(runs, k) for k in (1, 10))] for name, runs in rows.items()]
        console.print_table(f"text → image, validation split of {source.name}", ["", "seeds", "R@1 %", "R@10 %"], table)
    first = report.figures[sources[0].name]
    for part in ("without bridge", "without class prototypes"):
        gain = np.mean(first["recipe"], axis=0) - np.mean(first[part], axis=0)
        report.at_least(f"points of R@10 lost {part}", float(gain[1]), 0.0)
    return report.finish(options.json)


def _variants() -> dict[str, Recipe]:
    """Untrained bridges, then the `openstax` recipe with one part changed at a time."""
    from dual_encoder.projection_head import AnchoredHead, LinearHead
    from dual_encoder.recipe import load_recipe

    recipe = load_recipe("openstax")
    trained = recipe.model.image_head
    assert isinstance(trained, AnchoredHead)

    def with_head(head: AnchoredHead | LinearHead, **changes: Any) -> Recipe:
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, image_head=head), **changes)

    def untrained(**settings: Any) -> Recipe:
        return with_head(AnchoredHead(**settings), class_prototypes=False, mirrored=False)

    return {
        "untrained, names, temperature 1": untrained(templates=NAMES, temperature=1.0),
        "untrained, names with descriptions, temperature 1": untrained(templates=DESCRIPTIONS, temperature=1.0),
        "untrained, mean of both, temperature 1": untrained(temperature=1.0),
        "untrained, mean of both, temperature 2": untrained(),
        "recipe": recipe,
        "temperature 1": with_head(dataclasses.replace(trained, temperature=1.0)),
        "temperature and classes chosen on validation": dataclasses.replace(recipe, choose_bridge=True),
        "without bridge": with_head(LinearHead(dropout=trained.dropout)),
        "without class prototypes": dataclasses.replace(recipe, class_prototypes=False),
        "without mirrored views": dataclasses.replace(recipe, mirrored=False),
    }


def _trains(recipe: Recipe) -> bool:
    return getattr(recipe.model.image_head, "trainable", True)


def _recall(recipe: Recipe, splits: dict[str, list[Any]], seed: int) -> list[float]:
    """R@1 and R@10 in %, text → image; an untrained bridge is measured as it starts."""
    from dual_encoder.training_run import TrainingRun

    run = TrainingRun(recipe.with_settings(seed=seed), splits["train"], splits["validation"])
    if _trains(recipe):
        with tempfile.TemporaryDirectory() as directory:
            run.fit(Path(directory), run_key=f"seed {seed}")
    figures = run.metrics()["text_to_image"]
    return [100 * figures["recall@1"], 100 * figures["recall@10"]]


def _cell(runs: Sequence[Sequence[float]], k: int) -> str:
    values = [run[0 if k == 1 else 1] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    console.run(main)
